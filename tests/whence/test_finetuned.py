"""The fine-tuned problem: what was read apart from what is attributed, one start, orders, documents, the ceiling."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whence.cache import Store, UsageError
from whence.problems import finetuned
from whence.problems.judge import CEILING, judge, retrained, without_each_document
from whence.problems.problem import Problem


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The pretrained model's, so that it is trained once."""
    return Store(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def small(monkeypatch, kept: Store) -> Problem:
    read, chosen, asked = finetuned.passages(48, 4)
    few = read.select(range(32))
    monkeypatch.setattr(finetuned, "passages", lambda *counts: (few, chosen, asked))
    monkeypatch.setattr(finetuned, "PRETRAINING", replace(finetuned.PRETRAINING, epochs=1))
    problem = finetuned.finetuned_problem(store=kept)
    return replace(problem, recipe=replace(problem.recipe, epochs=2))


def test_what_is_read_tuned_on_and_asked_is_disjoint_and_everything() -> None:
    parts = [part.ids.tolist() for part in finetuned.passages()]
    assert [len(part) for part in parts] == [len(parts[0]), 256, 24]
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert len(parts[0]) > 6000
    with pytest.raises(UsageError, match="passages of 32 tokens"):
        finetuned.passages(train=10_000)


def test_the_pretrained_model_is_read_from_the_store(small: Problem, kept: Store) -> None:
    first = small.start
    again = finetuned.finetuned_problem(store=kept).start
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len([line for line in kept.listing() if line.kind == "bank"]) == 1


def test_another_order_trains_on_the_same_subsets(small: Problem, store: Store) -> None:
    first, again = (retrained(small, 4, 0.5, store, True, order) for order in (0, 1))
    assert first.hashes == again.hashes
    assert list(first.train_ids) != list(again.train_ids)
    assert np.abs(first["losses"] - again["losses"]).max() > 1e-6


def test_seeds_differ_in_order_only(small: Problem) -> None:
    steps = replace(small.recipe, epochs=1)
    other = small.model_of(seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(small.model.parameters(), other.parameters()))
    unmoved = replace(small, recipe=replace(steps, optimiser=replace(steps.optimiser, lr=0.0)))
    for a, b in zip(unmoved.model_of(seed=1).parameters(), small.start.parameters()):
        assert torch.equal(a, b)


def test_the_model_of_some_epochs_is_the_run_stopped_there(small: Problem) -> None:
    """Under a falling rate the model of one epoch of two is not that of a run of one epoch."""
    stopped, alone = small.model_of(epochs=1), replace(small, recipe=replace(small.recipe, epochs=1)).model_of()
    assert any(not torch.equal(a, b) for a, b in zip(stopped.parameters(), alone.parameters()))
    for a, b in zip(small.model_of(epochs=2).parameters(), small.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # trained in a bank, and recorded
    assert small.trained().training is not None


def test_each_model_lacks_one_document(small: Problem, store: Store) -> None:
    bank, topics = without_each_document(small, store, True), np.asarray(small.train.about["topic"])
    left = [set(topics[~mask]) for mask in bank.masks]
    assert all(len(one) == 1 for one in left)
    assert set().union(*left) == set(topics)
    assert all(not (set(topics[mask]) & one) for mask, one in zip(bank.masks, left))


def test_the_table_has_the_noise_ceiling(small: Problem, store: Store) -> None:
    rows = judge(small, ["lds", "documents", "qld"], ["bm25"], subsets=12, store=store, quiet=True)
    assert [(row.test, row.method) for row in rows] == [
        ("lds", "bm25"), ("lds", CEILING), ("documents", "bm25"), ("qld", "bm25"),
    ]  # fmt: skip
    assert rows[1].low <= rows[1].value <= rows[1].high <= 1.0
    assert rows[1].value > rows[0].value
