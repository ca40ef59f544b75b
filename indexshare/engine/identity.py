"""What the rows of a cache depend on beside the tokens: noticed when it changes, and as a name for files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexshare import __version__, ops
from indexshare.cache.paged import PagedCache
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.native import native

_READ_IN_FULL = 256 << 20  # bytes of weights up to which all of them are read
_PIECES, _PIECE = 16, 4096  # of each larger tensor of larger models, evenly spaced


def rows_mark(model: object) -> tuple[object, ...]:
    """Something that changes when rows computed from now on may differ from those computed before.

    It sees replaced weights, changes in place by any operation that torch counts (optimizers, `copy_`, `mul_`, but not
    writes through `.data`; `GlmMoeDsa.weights_changed` announces those), kernels forced by hand, and the number of
    threads.
    """
    tensors = ((t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in _named_tensors(model))
    version = getattr(model, "weights_version", 0)
    return version, hash(tuple(tensors)), ops.forced(), torch.get_num_threads()


def rows_identity(
    model: GlmMoeDsa, cache: PagedCache, directory: Path | None, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """A name for everything that the rows of a cache depend on beside the tokens, and what to tell people of it.

    It is a hash of the configuration, the weights as they are in memory, the way rows are stored, `settings`, the
    kernels, torch, and the number of threads. Of models beyond 256 MiB each tensor is read in 16 places, and for
    those from a directory the names, sizes and times of its files count as well: training changes every tensor
    everywhere, and whoever edits single weights writes a file.
    """
    codecs = {key: pool.codec for key, pool in sorted(cache.pools.items())}
    pools = {f"{layer}.{name}": [type(c).__name__, c.stored, c.layout] for (layer, name), c in codecs.items()}
    facts = {
        "indexshare": __version__,
        "config": model.config.to_dict(),
        "pools": pools,
        "block": cache.block_size,
        "settings": settings,
        "kernels": getattr(native().library, "_name", "").rpartition("/")[2],
        "forced": ops.forced(),
        "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "device": str(cache.device),
        "files": [] if directory is None else _files(directory),
    }
    digest = blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=12)
    _add_weights(digest, model)
    about = {
        "model": "a model in memory" if directory is None else str(directory),
        "dtype": str(cache.dtype).removeprefix("torch."),
        "bytes_per_token": cache.nbytes // cache.num_tokens,
        "block_tokens": cache.block_size,
        "indexshare": __version__,
    }
    return digest.hexdigest(), about


def _files(directory: Path) -> list[tuple[str, int, int]]:
    entries = ((path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file())
    return [(name, facts.st_size, facts.st_mtime_ns) for name, facts in entries]


def _add_weights(digest: Any, model: nn.Module) -> None:
    tensors = sorted(_named_tensors(model), key=lambda entry: entry[0])
    whole = sum(tensor.nbytes for _, tensor in tensors) <= _READ_IN_FULL
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if whole or len(values) <= _PIECES * _PIECE:
            digest.update(values.cpu().numpy())
            continue
        for i in range(_PIECES):
            start = i * (len(values) - _PIECE) // (_PIECES - 1)
            digest.update(values[start : start + _PIECE].cpu().numpy())


def _named_tensors(model: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        yield from chain(model.named_parameters(), model.named_buffers())
