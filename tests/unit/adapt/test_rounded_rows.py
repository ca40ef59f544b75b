"""Evaluations over rounded rows: the model as over a cache of few bits."""

import pytest
import torch

from indexshare import ops
from indexshare.adapt.rounded_rows import round_rows
from indexshare.cache.codecs import codecs_by_stream
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selectors import recent

CONFIG = preset("tiny")


@torch.no_grad()
@pytest.mark.parametrize(("everything", "keys"), [("int8", None), ("fp8", "bfloat16"), (None, "int8"), (None, None)])
def test_whole_texts_are_computed_as_over_the_cache(everything: str | None, keys: str | None) -> None:
    names = codecs_by_stream(CONFIG, everything, keys)
    model, ids = GlmMoeDsa(CONFIG).initialise(3).eval(), torch.randint(CONFIG.vocab_size, (40,))
    with ops.force("torch"):
        plain = model.trunk(ids, InFlightView([40]))
        over_cache = model.trunk(ids, PagedCache(CONFIG, 5, 8, codecs=names).view([[0, 1, 2, 3, 4]], [(0, 40)]))
        rounded = round_rows(model, names).trunk(ids, InFlightView([40]))
        other = model.trunk(ids, InFlightView([40]), selector=recent)
        assert model(ids[None]).shape == (1, 40, CONFIG.vocab_size)
    assert torch.equal(rounded, over_cache)
    assert torch.equal(rounded, plain) == (not names)
    assert not torch.equal(rounded, other)
