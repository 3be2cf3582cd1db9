"""One bank, three uses: linear datamodeling scores, datamodels and oracles, from the same retrainings in the cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whence import attrib
from whence.attrib.evaluate import lds
from whence.cache import Store, UsageError, oracle_masks, subset_masks
from whence.cache.retrain import bank
from whence.unlearn.datamodels import ridge
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import run
from whence.unlearn.methods import FineTune, Retrain
from whence.unlearn.metrics import KLoM
from whence.unlearn.request import UnlearningRequest

from . import cases

SUBSETS, ORACLES = 40, 2 * cases.MODELS


def test_three_uses_train_once(store: Store, monkeypatch) -> None:
    trained_model = cases.request().trained(quiet=True)
    everything = replace(cases.bank(), keep=("logits", "margins", "measurements"))
    masks = np.concatenate([
        subset_masks(cases.TRAIN, SUBSETS, 0.7), oracle_masks(cases.train().ids, cases.FORGET, ORACLES)
    ])  # fmt: skip
    seeds = np.arange(len(masks))
    trained: list[int] = []
    real = bank.train

    def counted(replicas, *arguments, most=None, **options):
        trained.append(0 if most is not None else len(replicas))  # `most`: the first steps again, as a check
        return real(replicas, *arguments, most=most, **options)

    monkeypatch.setattr(bank, "train", counted)
    subsets, oracles = np.arange(SUBSETS), np.arange(SUBSETS, len(masks))

    # the first asks for a datamodel
    ridge(everything.run(masks, seeds, store, quiet=True).select(subsets))
    assert sum(trained) == len(masks)
    assert [event.what for event in store.events if event.kind == "bank"] == ["built"]

    # the second, another day, for the score of an attribution method
    trained.clear()
    again = Store(store.root)
    kept = everything.run(masks, seeds, again, quiet=True)
    queries = cases.points().select(np.arange(cases.TRAIN, cases.TRAIN + 6))
    scores = attrib.EKFAC().fit(trained_model).score(queries)
    assert lds(scores, kept.select(subsets)).subsets == SUBSETS

    # the third for oracles
    split = OracleSplit.of(
        cases.request(),
        everything.run(masks, seeds, again, quiet=True).select(oracles),
        cases.points(),
        KLoM(bins=4),
    )
    assert split.models == cases.MODELS
    assert trained == []
    assert {event.what for event in again.events if event.kind == "bank"} == {"hit"}


def trained_here(model, examples, seed):
    """Gradient descent, by the caller's own program."""
    optimiser, batch = torch.optim.SGD(model.parameters(), 0.3), examples.batch(np.arange(len(examples)))
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
        optimiser.step()
    return model


def test_models_of_a_training_of_ones_own_forget_and_are_retrained() -> None:
    bank = replace(cases.bank(), recipe=trained_here)
    with pytest.raises(UsageError, match="Give passes"):
        UnlearningRequest.of_bank(bank, cases.FORGET, 2)
    request = UnlearningRequest.of_bank(bank, cases.FORGET, 2, passes=20 * 36)
    assert run(FineTune(1), request).ratio == pytest.approx(36 / 720)
    again, kept = run(Retrain(seed=1), request), cases.train().without(cases.FORGET)
    assert again.ratio == 1.0
    slowly = trained_here(bank.build(10_001), kept, 10_001)
    for name, value in slowly.named_parameters():
        torch.testing.assert_close(again.models.views()[name][0], value.detach())
