"""Routed experts: each is a site, in a list of modules or in one parameter of all; an example that does not reach one
has the gradient zero there; its moments count the positions that reach it; scores equal autograd's."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import reference
from whence.attrib import EKFAC, Identity
from whence.cache import Classification, Examples, ModelError, Store, TrainedModel
from whence.cache.model.capture import capture
from whence.cache.model.gradients import gradients, open_gradients
from whence.cache.model.sites import matrices_of, parameters_of


class Listed(nn.Module):
    """Vectors go to one of three experts by the size of their first number."""

    def __init__(self, name: str = "experts") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.name = name
        setattr(self, name, nn.ModuleList([nn.Linear(6, 6) for _ in range(3)]))

    def route(self, x: Tensor) -> Tensor:
        return torch.bucketize(x[:, 0].detach().contiguous(), torch.tensor([-0.5, 0.5]).to(x))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return self.head(torch.tanh(self.routed(torch.tanh(self.mix(flat)), self.route(flat))).view_as(x).mean(1))

    def routed(self, h: Tensor, choice: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for number, expert in enumerate(getattr(self, self.name)):
            if bool((choice == number).any()):
                out[choice == number] = expert(h[choice == number])
        return out


class Fused(Listed):
    """The same with the experts in one parameter, by a linear function or by products with the transpose."""

    def __init__(self, how: str) -> None:
        super().__init__("replaced")
        self.how, self.is_transposed, self.num_experts = how, how != "linear", 3
        layers = self.replaced
        del self.replaced
        weight = torch.stack([layer.weight.data for layer in layers])
        self.up = nn.Parameter(weight.transpose(1, 2).contiguous() if self.is_transposed else weight)
        self.up_bias = nn.Parameter(torch.stack([layer.bias.data for layer in layers]))

    def routed(self, h: Tensor, choice: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        if self.how == "stacked":  # every expert sees every row, and zero where it is not chosen
            chosen = nn.functional.one_hot(choice, 3).T[..., None].to(h)
            return ((torch.bmm(h * chosen, self.up) + self.up_bias[:, None]) * chosen).sum(0)
        for number in range(3):
            rows = choice == number
            if self.how == "linear":
                out[rows] = nn.functional.linear(h[rows], self.up[number], self.up_bias[number])
            else:
                out[rows] = h[rows] @ self.up[number] + self.up_bias[number]
        return out


MODELS: dict[str, Any] = {
    "listed": Listed, "listed under another name": lambda: Listed("branches"),
    "linear": lambda: Fused("linear"), "product": lambda: Fused("product"), "stacked": lambda: Fused("stacked"),
}  # fmt: skip


def data(count: int = 8, length: int = 3) -> Examples:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, length, 6))
    x[0, :, 0], x[1, :, 0] = -1.0, -2.0  # all of the first two examples go to the first expert
    return Examples.of((x, rng.integers(0, 3, count)))


def bound(model: nn.Module, examples: Examples | None = None, **more: Any) -> TrainedModel:
    return TrainedModel(model.double(), examples or data(), Classification(), quiet=True, **more)


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_autograd(name: str) -> None:
    trained = bound(MODELS[name]())
    assert trained.find().coverage == 1.0
    trained.check()
    fitted = Identity().fit(trained)
    rows = reference.gradients(trained.model.requires_grad_(True).eval(), trained.train, trained.task.loss)
    g = np.stack([np.concatenate([row[each].numpy().ravel() for each in sorted(row)]) for row in rows])
    np.testing.assert_allclose(fitted.score(trained.train).values, g @ g.T / len(g), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stored", [False, True])
def test_moments_count_the_positions_that_reach_an_expert(name: str, stored: bool, store: Store) -> None:
    trained = bound(MODELS[name](), positions=9)
    sites = trained.find()
    run = trained.run("loss", sites)
    source = gradients(run, store) if stored else run
    if stored:
        source = open_gradients(run, store)
    flat = torch.as_tensor(trained.train.columns["x"]).flatten(0, 1)
    reached = torch.bincount(trained.model.route(flat), minlength=3)
    experts = [site for site in sites if site.routed]
    assert len(experts) == 3
    for expert, count in zip(experts, reached.tolist()):
        weights = [np.asarray(batch.weights[expert.name]) for batch in source.batches()]
        assert sum(weight.sum() for weight in weights) == count


def test_an_example_that_does_not_reach_an_expert_has_the_gradient_zero() -> None:
    trained = bound(Listed())
    sites = trained.find()
    seen = capture(trained.model, sites, trained.batch(trained.train, [0, 3]), trained.task.loss)
    assert not seen.grads["experts.1"][0].any()
    assert seen.grads["experts.0"][0].any()


@pytest.mark.parametrize("name", ["listed", "linear"])
def test_an_expert_that_no_training_example_reaches_changes_no_score(name: str) -> None:
    """It has no curvature; its gradients for queries, which reach it, meet none of the training data."""
    x = data().columns["x"][[0, 1] * 4] * np.linspace(0.8, 1.2, 8)[:, None, None]
    train = Examples.of((x, np.arange(8) % 3))
    trained = bound(MODELS[name](), train)
    assert sum(site.routed for site in trained.find()) == 3
    fitted = EKFAC().fit(trained)
    scores = fitted.score(data()).values
    assert np.isfinite(scores).all()
    reached = trained.find().only(
        [site.name for site in trained.find() if not site.name.endswith(("1", "2", "1]", "2]"))]
    )
    np.testing.assert_allclose(scores, EKFAC().fit(trained, sites=reached).score(data()).values, rtol=1e-5, atol=1e-9)


def test_one_expert_alone_is_a_site_and_its_parameter_has_zeros_elsewhere() -> None:
    trained = bound(Fused("linear"), sites="up[[]1]")
    (site,) = trained.find()
    assert site.name == "up[1]"
    trained.check()
    matrix = torch.randn(site.shape, dtype=torch.double)
    whole = parameters_of(trained.model, [site], {site.name: matrix})
    assert whole["up"].shape == trained.model.up.shape
    assert not whole["up"][[0, 2]].any()
    torch.testing.assert_close(matrices_of(trained.model, [site], whole)[site.name], matrix)


def test_token_scores_by_layer_say_that_experts_have_no_positions() -> None:
    trained = bound(Listed())
    fitted = Identity().fit(trained)
    with pytest.raises(ModelError, match="no positions of the text"):
        fitted.token_scores(trained.train, trained.train.ids[:2], by="layer")
