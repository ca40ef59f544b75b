"""What the server and the engine's process say to each other. Plain Python, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from indexshare.engine.outputs import Chunk, TokenLogprobs
from indexshare.engine.params import SamplingParams


@dataclass(frozen=True)
class Submit:
    """Complete a prompt."""

    key: int
    ids: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class Score:
    """Give the log-probabilities of all tokens but the first, and of the `top` most likely ones in their places."""

    key: int
    ids: Sequence[int]
    top: int


@dataclass(frozen=True)
class Abort:
    """End a request and free its blocks."""

    key: int


@dataclass(frozen=True)
class Stop:
    """Leave, whatever runs."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the engine is doing."""

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    blocks_used: int = 0


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    max_context: int
    cache_tokens: int
    vocab_size: int
    state: EngineState


@dataclass(frozen=True)
class Stepped:
    """What a step gave: chunks by request, and the state behind it."""

    chunks: Sequence[tuple[int, Sequence[Chunk]]]
    state: EngineState


@dataclass(frozen=True)
class Scored:
    """The answer to `Score`."""

    key: int
    tokens: Sequence[TokenLogprobs]


@dataclass(frozen=True)
class Refused:
    """A request that gets no tokens, or no more; `wrong` says that the client's request is the reason."""

    key: int
    message: str
    wrong: bool = True


@dataclass(frozen=True)
class Broken:
    """The engine cannot go on; the process ends behind it."""

    message: str


Order = Submit | Score | Abort | Stop
Report = Ready | Stepped | Scored | Refused | Broken


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What the engine's process loads: a model, and arguments of `LLM`."""

    model: str
    options: dict[str, object] = field(default_factory=dict)
