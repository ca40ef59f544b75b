"""Known prefixes in files: read when a sequence is admitted, written behind by a thread when it has ended."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Sequence

from indexshare.cache.block_files import NOTHING, BlockFiles, Wanted, wanted
from indexshare.cache.paged import PagedCache
from indexshare.cache.prefix import Node, PrefixCache, Saved
from indexshare.engine.request import Request


class SavedPrefixes:
    """What an engine has in the files of a folder.

    Args:
        files: of the model.
        cache: where the rows lie.
        prefixes: what is known of them.
        lock: held while a block is copied out; steps hold it too.
    """

    def __init__(self, files: BlockFiles, cache: PagedCache, prefixes: PrefixCache, lock: threading.RLock) -> None:
        self._files, self._cache, self._prefixes, self._lock = files, cache, prefixes, lock
        self._waiting: deque[tuple[bytes, list[Node]]] = deque()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def restore(self, request: Request, known: int) -> int:
        """Fill blocks of a request's table behind its `known` tokens from files; how many are known then."""
        packed, size, prefixes = request.packed(), self._cache.block_size, self._prefixes
        found = [node.saved for node in prefixes.chain(packed, known)]
        saved = [entry for entry in found if entry is not None]
        if len(saved) < len(found):  # not written yet, and so is what would come behind it
            return known
        for end in prefixes.boundaries(known, len(request.tokens)):
            more = self._load(packed, saved, request.table.ids[len(saved) : end // size])
            if more is None:
                break
            saved += more
            known = end
        prefixes.insert(packed, request.table.ids, known)
        for node, entry in zip(prefixes.chain(packed, known), saved, strict=True):
            node.saved = entry
        return known

    def remember(self, request: Request) -> None:
        """Have what others may begin with written, and the files of what was there already kept longer."""
        packed = request.packed()
        chain = self._prefixes.chain(packed, len(request.tokens)) if request.epoch == self._prefixes.epoch else []
        if not chain:
            return
        with self._guard:
            self._waiting.append((packed, chain))
            if self._thread is None:  # the interpreter waits for it at its end
                self._thread = threading.Thread(target=self._write_all, name="prefixes to files")
                self._thread.start()

    def flush(self) -> None:
        """Wait until everything that was to be written is."""
        while (thread := self._thread) is not None:
            thread.join()

    def _wanted(self, packed: bytes, number: int, before: Saved) -> Wanted:
        return wanted(self._files.model, before, array("i", self._prefixes.tokens_of(packed, number)).tolist())

    def _load(self, packed: bytes, saved: Sequence[Saved], blocks: Sequence[int]) -> list[Saved] | None:
        """Fill `blocks`, which follow those that are `saved`; None when one of them is in no file."""
        found = list[Saved]()
        for number, block in enumerate(blocks, len(saved)):
            before = found[-1] if found else saved[-1] if saved else NOTHING
            sought = self._wanted(packed, number, before)
            loaded = self._files.load(sought, self._cache.block_bytes)
            if loaded is None:
                return None
            self._cache.write_block(block, loaded[0])
            found.append(Saved(sought.name, loaded[1]))
        return found

    def _write_all(self) -> None:
        try:
            while True:
                with self._guard:
                    if not self._waiting:
                        self._thread = None
                        return
                    packed, chain = self._waiting.popleft()
                self._write(packed, chain)
        except BaseException:
            self._thread = None
            raise

    def _write(self, packed: bytes, chain: Sequence[Node]) -> None:
        before, names = NOTHING, list[str]()
        for number, node in enumerate(chain):
            if node.saved is None:
                sought = self._wanted(packed, number, before)
                with self._lock:
                    if not self._prefixes.is_known(node):  # its block was needed for something else
                        break
                    rows = self._cache.read_block(node.block)
                checksum = self._files.save(sought, rows)
                if checksum is None:
                    return
                node.saved = Saved(sought.name, checksum)
            before = node.saved
            names.append(before.name)
        self._files.touch(names)
        self._files.prune()
