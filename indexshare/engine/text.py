"""Generated tokens to text as it may be shown: whole characters only, and never any part of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from indexshare.text.tokenizer import IncrementalDecoder, Tokenizer


class StopMatcher:
    """Passes text on up to the first stop string, holding back what may turn out to be the start of one.

    The stop string that is complete first wins; of several that end at the same character, the longest. The
    result therefore does not depend on how the text is cut into pieces.

    Args:
        stops: non-empty strings.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece; returns what is now certain to belong to the result."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        matches = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            released, self._held = self._held[: min(matches)[1]], ""
            return released
        keep = self._possible_start()
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        released, self._held = self._held, ""
        return released

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class TextAssembler:
    """The text of one request, token by token; always empty without a tokenizer.

    Args:
        tokenizer: turns ids into bytes.
        stops: the request's stop strings.
        silent: ids that end the text and are not part of it.
        skip_special: leave out special tokens wherever they stand.

    Raises:
        ValueError: stop strings without a tokenizer to make text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        silent: Iterable[int] = (),
        *,
        skip_special: bool = True,
    ) -> None:
        if stops and tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this model has none; use stop_token_ids")
        self._known = 0 if tokenizer is None else tokenizer.vocab_size
        self._decoder = None
        if tokenizer is not None:
            self._decoder = IncrementalDecoder(tokenizer, continuing=True, skip_special=skip_special)
        self._matcher = StopMatcher(stops)
        self._silent = frozenset(silent)
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._matcher.stopped

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._pieces)

    def push(self, token_id: int, *, last: bool = False) -> str:
        """Text released by one token; `last` says that it ended the generation."""
        decoded = ""
        # Embedding tables are often padded beyond the vocabulary; such an id has no text.
        if self._decoder is not None and token_id < self._known and not (last and token_id in self._silent):
            decoded = self._decoder.push(token_id)
        return self._release(self._matcher.push(decoded)) + (self.finish() if last else "")

    def finish(self) -> str:
        """Text released by the end of the generation: an unfinished character and what was held back."""
        tail = "" if self._decoder is None else self._decoder.finish()
        return self._release(self._matcher.push(tail) + self._matcher.finish())

    def _release(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece
