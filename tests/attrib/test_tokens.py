"""Token-level influence against the scores it splits and against finite differences of whole sequences."""

import numpy as np
import pytest
import torch

from tests import cases
from whence import attrib
from whence.attrib import EKFAC, FitOptions
from whence.attrib.tokens import Directions, input_token_scores, output_token_scores, step_size, token_embedding
from whence.cache import DataError, Examples, ModelError

QUIET = FitOptions(quiet=True)


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention")
    find = {"pattern": ["qkv", "up", "down"]}
    return cases.Case("tokens", found.model.float(), cases.sequences(8, seed=3), found.task, find)


@pytest.fixture(scope="module")
def factors(case: cases.Case) -> attrib.Factors:
    return EKFAC().fit(case.model, case.task, case.examples, sites=case.sites, options=QUIET)


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(2, seed=9)


@pytest.mark.parametrize("how", ["jvp", "difference"])
def test_output_tokens_add_up_to_the_influence(case, factors, queries, how) -> None:
    tokens = output_token_scores(factors, case.model, case.task, queries, case.examples, how=how, options=QUIET)
    whole = attrib.score(factors, case.model, case.task, queries, case.examples, options=QUIET)
    tolerance = 1e-4 if how == "jvp" else 2e-2
    np.testing.assert_allclose(np.nansum(tokens.values, -1), whole.values, atol=tolerance * np.abs(whole.values).max())
    assert (tokens.values[..., 0] == 0).all()
    for row, length in enumerate(case.examples.lengths):
        assert np.isnan(tokens.values[:, row, length:]).all()
        assert not np.isnan(tokens.values[:, row, :length]).any()


def test_output_tokens_of_prompts_are_zero(case, factors, queries) -> None:
    tokens = case.examples.columns["input_ids"]
    labels = [np.concatenate([np.full(2, -100), t[2:]]) for t in tokens]
    prompted = Examples({"input_ids": tokens, "labels": labels}, case.examples.ids)
    found = output_token_scores(factors, case.model, case.task, queries, prompted, options=QUIET)
    assert (found.values[..., :2] == 0).all()
    assert (found.values[..., 2] != 0).any()


def test_input_tokens_are_the_rate_s_own_gradient(case, factors, queries) -> None:
    """Against a finite difference of the influence when one token's embedding is scaled."""
    found = input_token_scores(factors, case.model, case.task, queries, case.examples, options=QUIET)
    model, row, t, h = case.model, 3, 1, 1e-2

    def influence(scale: float) -> np.ndarray:
        def hook(_module, _args, out):
            out = out.clone()
            out[0, t] *= scale
            return out

        v = Directions.of(factors, model, case.task, queries, len(case.examples), QUIET).vectors
        handle = model.embed.register_forward_hook(hook)
        try:
            loss = case.task.loss(model, case.examples.batch([row])).sum()
            names = list(v[0])
            grads = torch.autograd.grad(-loss, [dict(model.named_parameters())[n] for n in names])
            return np.array([sum(float((one[n] * g).sum()) for n, g in zip(names, grads)) for one in v])
        finally:
            handle.remove()

    wanted = (influence(1 + h) - influence(1 - h)) / (2 * h)
    np.testing.assert_allclose(found.values[:, row, t], wanted, rtol=0.05, atol=2e-3 * np.nanmax(np.abs(found.values)))
    assert np.isnan(found.values[:, row, int(case.examples.lengths[row]) :]).all()


def test_what_cannot_be_split(case, factors, queries) -> None:
    with pytest.raises(ModelError, match="no token embedding called 'wte'"):
        token_embedding(case.model, "wte")
    assert token_embedding(case.model) is case.model.embed
    classes = cases.build("mlp")
    with pytest.raises(ModelError, match="were fitted on a model"):
        output_token_scores(factors, classes.model, case.task, queries, case.examples, options=QUIET)
    model = classes.model.float()
    x = classes.examples.columns["x"].astype("f4")
    examples = Examples.of({"x": x, "y": classes.examples.columns["y"]})
    own = EKFAC().fit(model, classes.task, examples, options=QUIET)
    with pytest.raises(DataError, match="Classification predicts no tokens"):
        output_token_scores(own, model, classes.task, examples, examples, options=QUIET)
    moved = {"a": torch.ones(4)}
    assert step_size(moved, {"a": torch.full((4,), 2.0)}) == pytest.approx(5e-4)
