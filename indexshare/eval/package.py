"""A held-out file with the rest of its package before it, laid out as training and `indexshare complete` do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.data.splitting import Document, is_near_copy, package_of
from indexshare.repository.context import pack_context
from indexshare.repository.source_tree import SourceFile
from indexshare.text.tokenizer import Tokenizer, file_header

OPENING_TOKENS = 256  # of a file that are given; what is asked comes after them


@dataclass(frozen=True, kw_only=True)
class Target:
    """A held-out file and the files that may stand before it.

    `header` and `body` are token ids of the file line and the text; the first `opening` tokens of the body are given.
    """

    document: Document
    siblings: tuple[Document, ...]
    header: tuple[int, ...]
    body: tuple[int, ...]
    opening: int


def choose_targets(
    tokenizer: Tokenizer, held_out: Sequence[Document], everything: Sequence[Document], *, count: int, seed: int = 0
) -> list[Target]:
    """Held-out files that have other files in their package, `count` of them at most, drawn by seed.

    A file's first tokens, a quarter of it but no more than `OPENING_TOKENS`, are its opening.

    Args:
        held_out: files to draw from.
        everything: all files of the text, trained on or not; its packages are what stands before a target.

    Raises:
        ValueError: no held-out file has another file in its package, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"{count} files; expected at least 1")
    packages: dict[str, list[Document]] = {}
    for document in everything:
        packages.setdefault(package_of(document.name), []).append(document)
    order = random.Random(seed).sample(list(held_out), len(held_out))
    targets = []
    for document in order:
        siblings = tuple(d for d in packages.get(package_of(document.name), []) if d.name != document.name)
        header, body = tokenizer.encode_batch([file_header(document.name), document.text], parse_special=False)
        if siblings and len(body) > 1:
            opening = min(OPENING_TOKENS, len(body) // 4)
            targets.append(
                Target(document=document, siblings=siblings, header=tuple(header), body=tuple(body), opening=opening)
            )
        if len(targets) == count:
            break
    if not targets:
        raise ValueError("no held-out file has another file in its package; score a folder with packages (--text)")
    return targets


def package_context(tokenizer: Tokenizer, target: Target, given: int, budget: int) -> tuple[list[int], tuple[str, ...]]:
    """What to put before a target: files of its package, the most relevant last, each closed by the end-of-text token.

    Relevance is that to the target's first `given` tokens (`repository/context.py`): nothing that is asked later
    has a say. Files that share most of their lines with the target are left out, they would give the answers away.

    Returns:
        At most `budget` token ids, and the names of the files in their order; both empty where nothing fits.
    """
    before = tokenizer.decode(target.body[:given])
    end = tokenizer.end_id

    def count(text: str) -> int:
        return len(tokenizer.encode(text, parse_special=False))

    files = {d.name: SourceFile(name=d.name, text=d.text) for d in target.siblings}
    texts = {d.name: d.text for d in target.siblings}
    own = count(file_header(target.document.name) + before)
    while True:
        packed = pack_context(
            list(files.values()),
            target_name=target.document.name,
            before_cursor=before,
            budget=own + budget,
            count_tokens=count,
            header=file_header,
            separator_tokens=1,
        )
        names = tuple(file.name for file in packed.files[:-1])
        copies = [name for name in names if is_near_copy(target.document.text, texts[name])]
        if not copies:
            break
        for name in copies:
            del files[name]
    pieces = tokenizer.encode_batch(packed.pieces[:-1], parse_special=False)
    return [token for piece in pieces for token in [*piece, end]], names
