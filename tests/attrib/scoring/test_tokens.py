"""Token-level influence against the scores it splits and against finite differences of whole sequences."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import EKFAC, Factors
from whence.attrib.scoring.heads import find_heads
from whence.attrib.scoring.tokens import directions, step_size, token_embedding
from whence.cache import Classification, DataError, Examples, ModelError, TrainedModel


@pytest.fixture(scope="module")
def factors() -> Factors:
    case, sites = cases.build("attention"), ["qkv", "up", "down"]
    return EKFAC().fit(TrainedModel(case.model.float(), cases.sequences(8, seed=3), case.task, sites=sites, quiet=True))


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(2, seed=9)


@pytest.mark.parametrize("how", ["jvp", "difference"])
def test_output_tokens_add_up_to_the_influence(factors, queries, how) -> None:
    tokens = factors.token_scores(queries, by="output", how=how)
    whole = factors.score(queries)
    tolerance = 1e-4 if how == "jvp" else 2e-2
    np.testing.assert_allclose(np.nansum(tokens.values, -1), whole.values, atol=tolerance * np.abs(whole.values).max())
    assert (tokens.values[..., 0] == 0).all()
    for row, length in enumerate(factors.trained.train.lengths):
        assert np.isnan(tokens.values[:, row, length:]).all()
        assert not np.isnan(tokens.values[:, row, :length]).any()


def test_output_tokens_of_prompts_are_zero(factors, queries) -> None:
    tokens = factors.trained.train.columns["input_ids"]
    labels = [np.concatenate([np.full(2, -100), t[2:]]) for t in tokens]
    prompted = Examples({"input_ids": tokens, "labels": labels}, factors.trained.train.ids)
    found = factors.token_scores(queries, prompted, by="output")
    assert (found.values[..., :2] == 0).all()
    assert (found.values[..., 2] != 0).any()


def test_input_tokens_are_the_rate_s_own_gradient(factors, queries) -> None:
    """Against a finite difference of the influence when one token's embedding is scaled."""
    found = factors.token_scores(queries, by="input")
    trained, row, t, h = factors.trained, 3, 1, 1e-2

    def influence(scale: float) -> np.ndarray:
        def hook(_module, _args, out):
            out = out.clone()
            out[0, t] *= scale
            return out

        v = directions(factors, queries)
        handle = trained.model.embed.register_forward_hook(hook)
        try:
            loss = trained.task.loss(trained.model, trained.train.batch([row])).sum()
            names = list(v[0])
            grads = torch.autograd.grad(-loss, [dict(trained.model.named_parameters())[n] for n in names])
            return np.array([sum(float((one[n] * g).sum()) for n, g in zip(names, grads)) for one in v])
        finally:
            handle.remove()

    wanted = (influence(1 + h) - influence(1 - h)) / (2 * h)
    np.testing.assert_allclose(found.values[:, row, t], wanted, rtol=0.05, atol=2e-3 * np.nanmax(np.abs(found.values)))
    assert np.isnan(found.values[:, row, int(trained.train.lengths[row]) :]).all()


def test_layer_tokens_of_torch_s_attention_add_up_to_the_influence() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.layer(x).mean(1))

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = Examples.of((rng.normal(size=(6, 5, 8)), rng.integers(0, 3, 6)))
    fitted = EKFAC().fit(TrainedModel(Encoder(), data, Classification(), quiet=True))
    heads = {head.name.rpartition("/")[2] for head in find_heads(fitted.sites, 2)}
    assert heads == {"q0", "q1", "k0", "k1", "v0", "v1", "o0", "o1"}
    scores = fitted.score(data).values
    parts = fitted.token_scores(data, by="layer").values
    np.testing.assert_allclose(parts[..., :5].sum(-1), scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())


def test_what_cannot_be_split_is_refused(factors, queries) -> None:
    trained = factors.trained
    with pytest.raises(ModelError, match="no token embedding called 'wte'"):
        token_embedding(trained, trained.train, "wte")
    assert token_embedding(trained, trained.train) is trained.model.embed
    other = cases.build("mlp").trained()
    with pytest.raises(ModelError, match="was fitted on a model"):
        factors.on(other).token_scores(queries, by="output")
    own = EKFAC().fit(other)
    with pytest.raises(DataError, match="Classification predicts no tokens"):
        own.token_scores(other.train, by="output")
    moved = {"a": torch.ones(4)}
    assert step_size(moved, {"a": torch.full((4,), 2.0)}) == pytest.approx(5e-4)
