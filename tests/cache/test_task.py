"""Tasks: sums over counted positions, the same positions in all three parts, labels keyed by example and position."""

import numpy as np
import pytest
import torch

from tests import cases
from whence.cache import Classification, DataError, Examples, LanguageModelling, Regression
from whence.cache.model import rng as draws
from whence.cache.model.task import margin


def test_loss_is_the_sum_over_counted_tokens() -> None:
    case = cases.build("attention with prompts")
    batch = case.examples.batch(range(6))
    logp = case.model(batch["input_ids"], batch["attention_mask"]).log_softmax(-1).detach()
    wanted = []
    for b in range(6):
        length = int(case.examples.lengths[b])
        labels = batch["labels"][b]
        wanted.append(-sum(float(logp[b, t, labels[t + 1]]) for t in range(length - 1) if labels[t + 1] != -100))
    np.testing.assert_allclose(case.task.loss(case.model, batch).detach(), wanted, rtol=1e-10)
    np.testing.assert_allclose(case.task.measurement(case.model, batch).detach(), -np.array(wanted), rtol=1e-10)


def test_margin_is_the_log_odds() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    p = logits.softmax(-1)[torch.arange(5), y]
    torch.testing.assert_close(margin(logits, y), (p / (1 - p)).log())


@pytest.mark.parametrize("name", ["attention", "attention with prompts"])
def test_sampled_labels_are_masked_as_true_ones(name: str) -> None:
    """Changing what stands at positions that are not counted changes nothing (bergson draws labels there too)."""
    case = cases.build(name)
    batch = case.examples.batch(range(6))
    before = case.task.sampled_loss(case.model, batch, 0)
    changed = {k: v.clone() for k, v in batch.items()}
    changed["input_ids"][~batch["attention_mask"].bool()] = 7
    torch.testing.assert_close(case.task.sampled_loss(case.model, changed, 0), before, rtol=1e-12, atol=0)
    if name == "attention with prompts":
        none = {**batch, "labels": torch.full_like(batch["labels"], -100)}
        assert (case.task.sampled_loss(case.model, none, 0) == 0).all()
        assert (case.task.loss(case.model, none) == 0).all()


def test_draws_do_not_depend_on_the_batch() -> None:
    case = cases.build("attention")
    whole = case.task.sampled_loss(case.model, case.examples.batch(range(6)), 3)
    for row in range(6):
        alone = case.task.sampled_loss(case.model, case.examples.batch([row], pad_to=9), 3)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-10, atol=0)
    other = case.task.sampled_loss(case.model, case.examples.batch(range(6)), 4)
    assert not torch.allclose(other, whole)


def test_left_padding_draws_the_same_labels() -> None:
    case = cases.build("attention")
    tokens = torch.tensor([[1, 2, 3, 4]])
    left = {"input_ids": torch.tensor([[0, 0, 1, 2, 3, 4]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}

    class Uniform(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return torch.linspace(0, 1, 11, dtype=torch.float64).expand(*input_ids.shape, 11)

    ids = {"example_id": torch.tensor([5])}
    a = case.task.sampled_loss(Uniform(), {"input_ids": tokens, **ids}, 0)
    b = case.task.sampled_loss(Uniform(), {**left, **ids}, 0)
    torch.testing.assert_close(a, b)


def test_draws_follow_the_distribution() -> None:
    u = draws.uniforms(0, np.arange(20000), np.zeros((20000, 1), np.int64))
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(u.var() - 1 / 12) < 0.002
    logits = torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64).log().expand(20000, 1, 3)
    counts = np.bincount(draws.categorical(logits, u).ravel().numpy(), minlength=3) / 20000
    np.testing.assert_allclose(counts, [0.1, 0.5, 0.4], atol=0.02)
    z = draws.normals(1, np.arange(20000), np.zeros((20000, 1), np.int64))
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.03
    one, two = draws.uniforms(0, np.array([1]), np.array([[2]])), draws.uniforms(0, np.array([2]), np.array([[1]]))
    assert one != two


def test_sampled_gradients_have_the_fisher_as_second_moment() -> None:
    """Over many seeds, the mean square of a sampled gradient is the exact Fisher's diagonal."""
    model = torch.nn.Linear(3, 4).double()
    batch = {"x": torch.randn(1, 3, dtype=torch.float64), "y": torch.tensor([0]), "example_id": torch.tensor([0])}
    p = model(batch["x"]).softmax(-1)[0].detach()
    exact = torch.outer(p * (1 - p), batch["x"][0] ** 2)
    squares = []
    for seed in range(4000):
        (g,) = torch.autograd.grad(Classification().sampled_loss(model, batch, seed).sum(), [model.weight])
        squares.append(g**2)
    torch.testing.assert_close(torch.stack(squares).mean(0), exact, rtol=0.15, atol=0.01)


def test_regression() -> None:
    case = cases.build("regression")
    batch = case.examples.batch(range(10))
    out = case.model(batch["x"])
    torch.testing.assert_close(case.task.loss(case.model, batch), ((out - batch["y"]) ** 2).sum(1) / 2)
    sign = Regression(noise="sign").sampled_loss(case.model, batch, 0)
    torch.testing.assert_close(sign, torch.ones(10, dtype=torch.float64))  # two outputs, each half of one


def test_missing_column_says_what_there_is() -> None:
    case = cases.build("mlp")
    with pytest.raises(DataError, match="no column 'input_ids'; it has example_id, x, y"):
        LanguageModelling().loss(case.model, case.examples.batch([0]))


class TestExamples:
    def test_from_what_people_have(self) -> None:
        x, y = np.ones((3, 2)), np.arange(3)
        for data in ({"x": x, "y": y}, (x, y), [{"x": a, "y": b} for a, b in zip(x, y)], list(zip(x, y))):
            assert Examples.of(data).batch([1])["y"].tolist() == [1]
        with pytest.raises(DataError, match="not a data set"):
            Examples.of(iter([1]))
        with pytest.raises(DataError, match="is empty"):
            Examples.of([])

    def test_ids_stay_with_their_rows(self) -> None:
        some = cases.sequences().select([4, 2])
        assert some.ids.tolist() == [17, 11]
        assert some.without([17]).ids.tolist() == [11]
        whole = some.joined(cases.sequences().select([0]))
        assert whole.ids.tolist() == [*some.ids.tolist(), int(cases.sequences().ids[0])]
        assert len(whole.columns["input_ids"]) == 3
        with pytest.raises(DataError, match="repeat"):
            some.joined(some)
        assert some.rows_of([11, 17]).tolist() == [1, 0]
        with pytest.raises(DataError, match="2 ids are not among"):
            some.rows_of([1, 2])
        with pytest.raises(DataError, match="ids repeat"):
            Examples.of({"x": np.ones(2)}, ids=[3, 3])

    def test_where(self) -> None:
        some = Examples.of({"x": np.arange(3)}, about={"title": ["a", "b", "a"]})
        assert some.where(title="a").ids.tolist() == [0, 2]
        with pytest.raises(DataError, match="Known: title"):
            some.where(name="a")

    def test_fingerprint_is_of_content(self) -> None:
        a = cases.sequences()
        assert a.fingerprint == cases.sequences().fingerprint
        assert a.fingerprint != a.select([1, 0, 2, 3, 4, 5]).fingerprint
        assert a.fingerprint != cases.sequences(seed=1).fingerprint
        assert a.fingerprint == Examples(a.columns, a.ids, {"title": list("abcdef")}).fingerprint

    def test_columns_must_agree(self) -> None:
        with pytest.raises(DataError, match="Column 'y' has 2 rows for 3 ids"):
            Examples.of({"x": np.ones(3), "y": np.ones(2)})
