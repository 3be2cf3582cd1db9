"""Bad input gives a clear error with cause and cure, and nothing already computed is lost."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence import attrib
from whence.attrib import EKFAC, FitOptions
from whence.cache import (
    Classification,
    DataError,
    Examples,
    Interrupted,
    LanguageModelling,
    ModelError,
    NumericalError,
    ResourceError,
    Store,
    find_sites,
)

QUIET = FitOptions(quiet=True)


def test_no_matching_site() -> None:
    with pytest.raises(ModelError, match="has no linear or conv layer"):
        find_sites(nn.ReLU())


def test_unreadable_batch() -> None:
    case = cases.build("mlp")
    with pytest.raises(DataError, match="no column 'input_ids'"):
        EKFAC().fit(case.model, LanguageModelling(), case.examples, options=QUIET)


def test_empty_data() -> None:
    case = cases.build("mlp")
    with pytest.raises(DataError, match="is empty"):
        EKFAC().fit(case.model, case.task, case.examples.select([]), options=QUIET)


def small(case: cases.Case, ids: np.ndarray | None = None) -> Examples:
    """The case's vectors in float32."""
    return Examples.of({"x": case.examples.columns["x"].astype("f4"), "y": case.examples.columns["y"]}, ids=ids)


def test_nan_loss_names_the_example() -> None:
    case = cases.build("mlp")
    bad = small(case, np.arange(12) + 100)
    bad.columns["x"][7] = np.nan
    with pytest.raises(NumericalError, match=r"ids \[107\]"):
        EKFAC().fit(case.model.float(), case.task, bad, options=QUIET)


def test_query_without_a_counted_token() -> None:
    case = cases.build("attention")
    model = case.model.float()
    factors = EKFAC().fit(model, case.task, case.examples, sites=case.sites, options=QUIET)
    tokens = case.examples.columns["input_ids"]
    masked = Examples.of(
        {"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]}, ids=case.examples.ids
    )
    with pytest.raises(DataError, match="have a zero gradient"):
        attrib.score(factors, model, case.task, masked, case.examples, options=QUIET)


def test_all_labels_masked() -> None:
    case = cases.build("attention")
    tokens = case.examples.columns["input_ids"]
    masked = Examples.of({"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]})
    with pytest.raises(DataError, match="no label is counted"):
        EKFAC().fit(case.model.float(), case.task, masked, sites=case.sites, options=QUIET)


def test_other_weights_than_were_fitted() -> None:
    case = cases.build("mlp")
    model = case.model.float()
    examples = small(case)
    factors = EKFAC().fit(model, case.task, examples, options=QUIET)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(ModelError, match="were fitted on a model with fingerprint"):
        attrib.score(factors, model, case.task, examples, examples, options=QUIET)


def test_memory_limit_too_small() -> None:
    case = cases.build("attention")
    with pytest.raises(ResourceError, match="over the limit"):
        EKFAC().fit(
            case.model.float(), case.task, case.examples, sites=case.sites, options=FitOptions(memory=1000, quiet=True)
        )


def test_interrupted_keeps_what_was_done(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.attrib.fit.PARTITION_EXAMPLES", 4)
    case = cases.build("mlp")
    model = case.model.float()
    examples = small(case)
    calls = [0]

    class Impatient(Classification):
        def sampled_loss(self, model, batch, seed):
            calls[0] += 1
            if calls[0] == 6:
                raise KeyboardInterrupt
            return super().sampled_loss(model, batch, seed)

        @property
        def settings(self):
            return Classification().settings

    store = Store(tmp_path)
    with pytest.raises(Interrupted, match="2 of 3 partitions are committed"):
        EKFAC().fit(model, Impatient(), examples, store=store, options=QUIET)
    EKFAC().fit(model, Classification(), examples, store=store, options=QUIET)
    assert "resumed" in {event.what for event in store.events}
