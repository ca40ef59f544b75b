"""One decode step of a whole trunk in C++ (`cpu_impl.cpp`): one call for all layers, caches read and written in place.

`reference.py` is the same contract as formulas; the model's own forward pass is a second twin. A step computes, for a
few rows (new tokens), what that pass computes:

* the rows' latents and, in Full layers, index keys are written to the pools before anything is read;
* a row at position p attends to everything when `p + 1 <= limit`, else to the `topk` keys that the last Full layer
  chose, equal scores by lower position;
* activations are rounded to the model's type at the same places; sums are float32. Products sum in another order, and
  short contexts use the absorbed form at any length, so that results agree within rounding and not bit by bit;
* a row's result does not depend on the other rows, nor on the number of threads: not in one bit.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from indexshare.ops.native import native
from indexshare.step.spilled_rows import Fetch, Places
from indexshare.step.structs import Batch, ModelWeights, integers, pointers


def max_rows() -> int:
    """Most rows of one step; 0 without the kernels."""
    library = native().library
    if library is None:
        return 0
    return int(library.indexshare_decode_max_rows())


class _Filled(NamedTuple):
    """A batch, what it gives, and whatever has to live as long as it."""

    batch: Batch
    hidden: Tensor
    logits: Tensor
    keep: Any


class Decoder:
    """A model prepared for decode steps.

    Args:
        weights: filled in with addresses; its layers and every tensor behind an address must stay alive and in place,
            which is what `keep` is for.
        dtype: type of weights, activations and pools, float32 or bfloat16.
        keep: whatever has to live as long as the decoder.

    Raises:
        MemoryError: no memory.
    """

    def __init__(self, weights: ModelWeights, dtype: torch.dtype, keep: Any) -> None:
        library = native().library
        assert library is not None, "ask `native_step.unavailable` first"
        self._handle = library.indexshare_decode_new(dtype == torch.bfloat16, ctypes.byref(weights))
        if not self._handle:
            raise MemoryError("no memory for the decode step")
        self._step, self._round = library.indexshare_decode_step, library.indexshare_draft_round
        self._weights, self._dtype, self._keep = weights, dtype, keep
        weakref.finalize(self, library.indexshare_decode_free, self._handle)

    def step(
        self, ids: Sequence[int], positions: Tensor, slots: Tensor, tables: Sequence[Tensor], *,
        latents: Any, index_keys: Any, latent_strides: Any, latent_form: tuple[int, int] = (0, 0),
        key_form: tuple[int, int] = (0, 0), block_size: int, limit: int, wanted: Sequence[int],
        states: Tensor | None = None, ahead: int = 0, reuse: Sequence[int] | None = None,
        fetch: Fetch | None = None, fetch_each: bool = False, places: Places | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Compute the rows and write their latents and index keys.

        Args:
            ids: token of each row, N at most `max_rows()`.
            positions, slots: int64 `[N]`, a row's position in its sequence and the row of the pools to write.
            tables: of each row, the block ids int64 of its sequence, covering its positions up to the row's.
            latents, index_keys: `structs.pointers` of all layers' pools (null keys in Shared layers).
            latent_strides: of each layer, `structs.integers` of the bytes from one row of latents to the next.
            latent_form, key_form: how their rows are stored, from `ops.coded.rows.kernel_form`.
            block_size: slots of a block.
            limit: rows with at most this much context attend to everything; at least `topk`.
            wanted: rows whose logits are wanted.
            states: of a draft layer, what stands beside the embeddings, `[N, hidden]` in the model's type.
            ahead: rotary positions are `positions` and so many more.
            reuse: rows of the last step, ascending, whose keys and choice these rows reuse; nothing is written then.
            fetch, places: of a cache with rows in files (`spilled_rows`), whose latents are those in memory.
            fetch_each: fetch for every layer alone.

        Returns:
            Hidden states after the final norm `[N, hidden]` in the model's type, float32 logits `[len(wanted), V]`.

        Raises:
            ValueError: an id is outside the vocabulary; nothing has been written then.
            MemoryError: no memory for the activations; nothing has been written then.
        """
        batch = self._batch(
            ids, positions, slots, tables, latents=latents, index_keys=index_keys, latent_strides=latent_strides,
            latent_form=latent_form, key_form=key_form, block_size=block_size, limit=limit, wanted=wanted,
            states=states, ahead=ahead, reuse=reuse, fetch=fetch, fetch_each=fetch_each, places=places,
        )  # fmt: skip
        self._check(self._step(self._handle, ctypes.byref(batch.batch)), ids, fetch)
        return batch.hidden, batch.logits

    def draft(
        self, ids: Sequence[int], states: Tensor, positions: tuple[Tensor, Tensor], slots: Tensor,
        tables: tuple[Sequence[Tensor], Sequence[Tensor]], *, anchors: Sequence[int], steps: int,
        places: tuple[Places, Places] | None = None, **common: Any,
    ) -> list[list[int]]:  # fmt: skip
        """A round of a draft layer: step 1 over all rows, later steps of anchors, each behind the most likely token.

        Args:
            ids, states: of step 1, as in `step`.
            positions, tables: of the rows of step 1, and of the anchors alone.
            slots: of the rows of step 1.
            anchors: rows of step 1, ascending.
            steps: tokens to draft, at least 1.
            places: of the rows of step 1, and of the anchors alone.
            common: `latents`, `index_keys`, their forms, `block_size` and `limit`, as in `step`.

        Returns:
            The tokens of each step, by anchor.

        Raises:
            ValueError, MemoryError: as in `step`; in step 1 nothing has been written then.
        """
        of_first, of_later = (None, None) if places is None else places
        first = self._batch(
            ids, positions[0], slots, tables[0], wanted=anchors, states=states, places=of_first, **common
        )
        count = len(anchors)
        later = self._batch(
            [0] * count, positions[1], positions[1], tables[1], wanted=range(count), reuse=range(count),
            places=of_later, **common,
        )  # fmt: skip
        drafts = integers([0] * (steps * count))
        failed = self._round(
            self._handle, ctypes.byref(first.batch), ctypes.byref(later.batch), steps, ctypes.addressof(drafts)
        )
        self._check(failed, ids, common.get("fetch"))
        return [drafts[at : at + count] for at in range(0, steps * count, count)]

    def _check(self, failed: int, ids: Sequence[int], fetch: Fetch | None) -> None:
        if failed == 3:
            assert fetch is not None
            fetch.raise_error()
        if failed == 2:
            bad = next(i for i in ids if not 0 <= i < self._weights.vocabulary)
            raise ValueError(f"token id {bad} is outside the vocabulary 0..{self._weights.vocabulary - 1}")
        if failed:
            raise MemoryError(f"no memory for a decode step of {len(ids)} rows")

    def _batch(
        self, ids: Sequence[int], positions: Tensor, slots: Tensor, tables: Sequence[Tensor], *,
        latents: Any, index_keys: Any, latent_strides: Any, latent_form: tuple[int, int] = (0, 0),
        key_form: tuple[int, int] = (0, 0), block_size: int, limit: int, wanted: Sequence[int],
        states: Tensor | None = None, ahead: int = 0, reuse: Sequence[int] | None = None,
        fetch: Fetch | None = None, fetch_each: bool = False, places: Places | None = None,
    ) -> _Filled:  # fmt: skip
        weights, rows = self._weights, len(ids)
        assert positions.dtype == slots.dtype == torch.int64 and positions.is_contiguous() and slots.is_contiguous()
        assert positions.numel() == slots.numel() == len(tables) == rows and limit >= weights.topk
        hidden = torch.empty(rows, weights.hidden, dtype=self._dtype)
        logits = torch.empty(len(wanted), weights.vocabulary, dtype=torch.float32)
        c_ids, c_wanted, c_tables = integers(ids), integers(wanted), pointers(tables)
        c_reuse = None if reuse is None else integers(reuse)
        states = None if states is None else states.contiguous()
        assert states is None or (states.dtype == self._dtype and states.shape == hidden.shape)
        batch = Batch(
            ids=ctypes.addressof(c_ids), positions=positions.data_ptr(), slots=slots.data_ptr(),
            tables=ctypes.addressof(c_tables), latents=ctypes.addressof(latents),
            index_keys=ctypes.addressof(index_keys), rows=rows, block_size=block_size, limit=limit,
            hidden=hidden.data_ptr(), wanted=ctypes.addressof(c_wanted), num_wanted=len(wanted),
            logits=logits.data_ptr(), threads=torch.get_num_threads(),
            states=None if states is None else states.data_ptr(), ahead=ahead,
            reuse=None if c_reuse is None else ctypes.addressof(c_reuse),
            latent_kind=latent_form[0], latent_precise=latent_form[1], key_kind=key_form[0], key_precise=key_form[1],
            latent_strides=ctypes.addressof(latent_strides), fetch_each=fetch_each,
            fetch=None if fetch is None else fetch.address,
            latent_slots=None if places is None else ctypes.addressof(places.slots),
            latent_tables=None if places is None else ctypes.addressof(places.tables),
        )  # fmt: skip
        keep = (c_ids, c_wanted, c_tables, c_reuse, tables, states, positions, slots, fetch, places, latent_strides)
        return _Filled(batch, hidden, logits, keep)
