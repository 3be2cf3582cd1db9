"""Probes on samples whose law is known, and on sums by hand."""

import numpy as np
import pytest
import xarray

from tests import cases
from whence.attrib import Identity
from whence.attrib.evaluate.probes import by_layer, fictional_facts, power_law, word_order
from whence.cache import (
    DataError,
    Examples,
    LanguageModelling,
    TrainedModel,
)


def test_a_power_law_is_recognised() -> None:
    rng = np.random.default_rng(0)
    law = (1 - rng.random(20_000)) ** (-1 / 1.5)
    found = power_law(law, draws=60)
    assert found.exponent == pytest.approx(2.5, abs=0.25)
    assert found.p > 0.1
    other = power_law(np.abs(rng.normal(size=20_000)), top=8_000, draws=60)
    assert other.p < 0.1
    assert power_law(np.r_[np.full(20, 1e-3) * np.arange(1, 21), 100.0], top=19, draws=5).sparse
    assert "exponent" in str(found)
    with pytest.raises(DataError, match="too few"):
        power_law(np.full(30, -1.0))


def test_influence_by_layer_sums_to_one() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(2, 5, 4)))
    scores = xarray.DataArray(
        values,
        dims=("query", "train", "site"),
        coords={"query": [0, 1], "site": ["blocks.0.mlp.in", "blocks.0.mlp.out", "blocks.1.mlp.in", "head"]},
    )
    parts = by_layer(scores, top=5)
    assert parts["layer"].values.tolist() == ["0", "1", "head"]
    np.testing.assert_allclose(parts.sum("layer"), 1.0)
    np.testing.assert_allclose(parts.values[0, 0], values[0, :, :2].sum() / values[0].sum())
    with pytest.raises(DataError, match="no sites"):
        by_layer(scores.sum("site"))


def test_word_order_with_any_encoder() -> None:
    facts = fictional_facts(3)
    words = sorted({w for f in facts for text in [*f.forms.values(), f.prompt + f.completion] for w in text.split()})

    def encode(text: str) -> list[int]:
        return [words.index(w) for w in text.split()]

    model = cases.Attention(vocabulary=len(words), context=12).double()
    train = Examples.of({"input_ids": [np.array(encode(f.forms["exact"])) for f in facts]})
    fitted = Identity().fit(TrainedModel(model, train, LanguageModelling(), quiet=True))
    found = word_order(fitted, encode, facts)
    assert found.dims == ("fact", "form")
    assert (found.sel(form="exact") > found.sel(form="unrelated")).all()
    assert (found.sel(form="exact") > found.sel(form="flipped")).all()
    with pytest.raises(DataError, match="no token"):
        word_order(fitted, lambda text: [], facts)
