"""Bad input gives a clear error with cause and cure, and nothing already computed is lost."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import EKFAC
from whence.cache import (
    Classification,
    DataError,
    Examples,
    LanguageModelling,
    ModelError,
    NumericalError,
    ResourceError,
    Store,
    find_sites,
)
from whence.cache.errors import Interrupted


def test_no_matching_site() -> None:
    with pytest.raises(ModelError, match="has no linear or conv layer"):
        find_sites(nn.ReLU())


def test_unreadable_batch() -> None:
    case = cases.build("mlp")
    with pytest.raises(DataError, match="no column 'input_ids'"):
        EKFAC().fit(case.trained(task=LanguageModelling()))


def test_empty_data() -> None:
    case = cases.build("mlp")
    with pytest.raises(DataError, match="is empty"):
        EKFAC().fit(case.trained(train=case.examples.select([])))


def small(case: cases.Case, ids: np.ndarray | None = None) -> Examples:
    """The case's vectors in float32."""
    return Examples.of({"x": case.examples.columns["x"].astype("f4"), "y": case.examples.columns["y"]}, ids=ids)


def test_nan_loss_names_the_example() -> None:
    case = cases.build("mlp")
    bad = small(case, np.arange(12) + 100)
    bad.columns["x"][7] = np.nan
    with pytest.raises(NumericalError, match=r"ids \[107\]"):
        EKFAC().fit(case.trained(model=case.model.float(), train=bad))


def test_query_without_a_counted_token() -> None:
    case = cases.build("attention")
    factors = EKFAC().fit(case.trained(model=case.model.float()))
    tokens = case.examples.columns["input_ids"]
    masked = Examples.of(
        {"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]}, ids=case.examples.ids
    )
    with pytest.raises(DataError, match="have a zero gradient"):
        factors.score(masked)


def test_all_labels_masked() -> None:
    case = cases.build("attention")
    tokens = case.examples.columns["input_ids"]
    masked = Examples.of({"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]})
    with pytest.raises(DataError, match="no label is counted"):
        EKFAC().fit(case.trained(model=case.model.float(), train=masked))


def test_other_weights_than_were_fitted() -> None:
    case = cases.build("mlp")
    model = case.model.float()
    examples = small(case)
    factors = EKFAC().fit(case.trained(model=model, train=examples))
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(ModelError, match="fitted on a model with fingerprint"):
        factors.score(examples)


def test_memory_limit_too_small() -> None:
    case = cases.build("attention")
    with pytest.raises(ResourceError, match="over the limit"):
        EKFAC().fit(case.trained(model=case.model.float(), memory=1000))


def test_interrupted_keeps_what_was_done(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.attrib.fit.PARTITION_EXAMPLES", 4)
    case = cases.build("mlp")
    trained = case.trained(model=case.model.float(), train=small(case), store=Store(tmp_path), check=False)
    calls = [0]

    own = Classification.sampled_loss

    def impatient(self, model, batch, seed):
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return own(self, model, batch, seed)

    with monkeypatch.context() as patched:
        patched.setattr(Classification, "sampled_loss", impatient)
        with pytest.raises(Interrupted, match="2 of 3 partitions are committed"):
            EKFAC().fit(trained)
    EKFAC().fit(trained)
    assert trained.store is not None
    assert "resumed" in {event.what for event in trained.store.events}


def test_no_query_and_no_training_example() -> None:
    case = cases.build("attention")
    factors = EKFAC().fit(case.trained(model=case.model.float()))
    with pytest.raises(DataError, match="is empty"):
        factors.score(case.examples.select([]))
    with pytest.raises(DataError, match="training examples is empty"):
        factors.token_scores(case.examples, case.examples.select([]))
