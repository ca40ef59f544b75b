"""Which blocks hold which tokens, so that a prompt that begins like an earlier one starts with its blocks: no tensors.

A tree: every node is a block of tokens behind the blocks above it. Nodes are found by the token ids themselves, never
by a hash of them alone. A block of the tree is never written again: sequences share it, each goes on in blocks of its
own, and it outlives them until the allocator needs the room.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from indexshare.cache.blocks import BlockAllocator

TOKEN_BYTES = 4  # of an id, as `pack_tokens` lays it out


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as 32-bit integers, the form in which they are compared."""
    packed = array("i", tokens)
    assert packed.itemsize == TOKEN_BYTES
    return packed.tobytes()


@dataclass(frozen=True)
class Saved:
    """The file that a block was written to or read from: its name, and the checksum of its contents."""

    name: str
    checksum: bytes


class Node:
    """A block of tokens behind those of `parent`; `block` is where its rows lie."""

    __slots__ = ("block", "children", "parent", "saved", "tokens")

    def __init__(self, parent: Node | None, tokens: bytes, block: int) -> None:
        self.parent, self.tokens, self.block = parent, tokens, block
        self.children: dict[bytes, Node] = {}
        self.saved: Saved | None = None


class PrefixCache:
    """The beginnings of sequences that are known.

    Args:
        allocator: of the blocks; its `on_drop` becomes this object's.
        first: fewest tokens that are worth or allowed to be taken over.
        step: beyond them, only multiples of so many tokens are taken over; a multiple of the block size.
        left: tokens of a sequence that are computed in any case, at least 1.
        ahead: tokens behind a block that its rows depend on as well, 1 where a draft layer has rows in it, which it
            makes from the next token: they are compared too.
        late: tokens at the end of what was read whose rows may not all be there yet, at least `ahead`.

    Raises:
        ValueError: `step` is no multiple of the block size, or `left` is below 1.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        first: int = 1,
        step: int | None = None,
        left: int = 1,
        ahead: int = 0,
        late: int = 0,
    ) -> None:
        size = allocator.block_size
        self.step = size if step is None else step
        if self.step < 1 or self.step % size or left < 1:
            raise ValueError(f"step={step}, left={left}: expected a multiple of the block size {size}, and at least 1")
        self.first, self.left, self.ahead, self.late = first, left, ahead, late
        self.epoch = 0  # how often everything was forgotten
        self._allocator = allocator
        self._piece = size * TOKEN_BYTES
        self._beyond = ahead * TOKEN_BYTES
        self._root = Node(None, b"", -1)
        self._nodes: dict[int, Node] = {}  # by block
        allocator.on_drop = self.forget

    @property
    def num_blocks(self) -> int:
        """Blocks whose tokens are known."""
        return len(self._nodes)

    def usable(self, tokens: int) -> int:
        """How many of the first `tokens` tokens may be taken over."""
        most = tokens // self.step * self.step
        return most if most >= self.first else 0

    def boundaries(self, start: int, length: int) -> Iterator[int]:
        """Numbers of tokens beyond `start` that a sequence of `length` tokens may take over, ascending."""
        for end in range(start + self.step, self.usable(length - self.left) + 1, self.step):
            if end >= self.first:
                yield end

    def find(self, packed: bytes) -> list[int]:
        """Blocks of the longest known beginning of a sequence that may be taken over, in order.

        They belong to nobody new: the caller shares them before it allocates anything.

        Args:
            packed: all of its tokens, from `pack_tokens`.
        """
        most = self.usable(len(packed) // TOKEN_BYTES - self.left)
        found = [node.block for node in self._walk(packed, most // self._allocator.block_size)]
        return found[: self.usable(len(found) * self._allocator.block_size) // self._allocator.block_size]

    def insert(self, packed: bytes, blocks: Sequence[int], tokens: int) -> None:
        """Say that the first of `blocks`, which are in use, hold the first `tokens` tokens of a sequence.

        Only whole blocks count, and nothing below `first` tokens. Where a beginning is known in other blocks, these
        take their place.
        """
        node = self._root
        for i in range(tokens // self._allocator.block_size if tokens >= self.first else 0):
            piece, block = self.tokens_of(packed, i), blocks[i]
            child = node.children.get(piece)
            if child is None:
                child = node.children[piece] = Node(node, piece, block)
            elif child.block != block:
                del self._nodes[child.block]
                self._allocator.drop(child.block)
                child.block = block
            if self._nodes.setdefault(block, child) is not child:
                raise AssertionError(f"block {block} holds the tokens of two sequences")
            self._allocator.keep(block)
            node = child

    def tokens_of(self, packed: bytes, number: int) -> bytes:
        """What decides about block `number` of a sequence, beside the blocks before it."""
        return packed[number * self._piece : (number + 1) * self._piece + self._beyond]

    def chain(self, packed: bytes, tokens: int) -> list[Node]:
        """The nodes of a sequence's first `tokens` tokens as far as they are known, from the first block on."""
        return list(self._walk(packed, tokens // self._allocator.block_size))

    def is_known(self, node: Node) -> bool:
        """Whether a node's block still holds its tokens."""
        return self._nodes.get(node.block) is node

    def forget(self, block: int) -> None:
        """Offer a block, and what is known behind it, to nobody else: its rows are about to be written again."""
        if (node := self._nodes.get(block)) is not None:
            self._cut(node)

    def clear(self) -> None:
        """Forget everything: the rows of the past would be others now."""
        self.epoch += 1
        for block in list(self._nodes):
            self._allocator.drop(block)
        self._nodes.clear()
        self._root = Node(None, b"", -1)

    def check_integrity(self) -> None:
        """Check the tree against the list of its blocks and the allocator; AssertionError when they disagree."""
        seen, waiting = dict[int, Node](), [self._root]
        while waiting:
            node = waiting.pop()
            for tokens, child in node.children.items():
                assert child.parent is node and child.tokens == tokens and len(tokens) == self._piece + self._beyond
                assert child.block not in seen, f"block {child.block} holds the tokens of two sequences"
                seen[child.block] = child
                waiting.append(child)
        assert seen == self._nodes, "the tree and the list of its blocks differ"
        kept = [b for b in range(self._allocator.num_blocks) if self._allocator.is_kept(b)]
        assert sorted(seen) == kept, "a block is kept that is not known, or the other way round"

    def _walk(self, packed: bytes, most: int) -> Iterator[Node]:
        """At most `most` nodes along a sequence; one whose block is not its own any more ends the walk and is cut."""
        node = self._root
        for number in range(most):
            child = node.children.get(self.tokens_of(packed, number))
            if child is None:
                return
            if not self.is_known(child):
                self._cut(child)
                return
            node = child
            yield node

    def _cut(self, node: Node) -> None:
        """Take a node and all below it out of the tree; nothing is left of what nobody can find."""
        if node.parent is not None and node.parent.children.get(node.tokens) is node:
            del node.parent.children[node.tokens]
        waiting = [node]
        while waiting:
            gone = waiting.pop()
            if self._nodes.get(gone.block) is gone:
                del self._nodes[gone.block]
                self._allocator.drop(gone.block)
            waiting += gone.children.values()
