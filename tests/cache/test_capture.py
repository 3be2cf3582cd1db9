"""Per-example gradients from capture equal autograd's, for every kind of site; the model comes back as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases, reference
from whence.cache import LanguageModelling, ModelError, NumericalError, find_sites
from whence.cache.model.capture import capture
from whence.cache.model.sites import matrices_of, parameters_of
from whence.cache.model.stateless import named_parameters


@pytest.mark.parametrize("name", cases.TABLE)
def test_gradients_equal_autograd(name: str) -> None:
    case = cases.build(name)
    wanted = reference.site_gradients(case.model, case.sites, case.examples, case.task.loss)
    seen = capture(case.model, case.sites, case.examples.batch(range(len(case.examples))), case.task.loss)
    for site in case.sites:
        found = torch.einsum("bso,bsi->boi", seen.grads[site.name], seen.inputs[site.name]).numpy()
        assert found.shape[1:] == site.shape
        np.testing.assert_allclose(found, wanted[site.name], rtol=1e-10, atol=1e-12, err_msg=site.name)


@pytest.mark.parametrize("name", cases.TABLE)
def test_every_parameter_is_covered_or_named(name: str) -> None:
    case = cases.build(name)
    assert case.sites.coverage == 1.0
    assert case.sites.left_out == ()
    values = {n: torch.randn_like(p) for n, p in named_parameters(case.model).items()}
    back = parameters_of(case.model, case.sites, matrices_of(case.model, case.sites, values))
    assert back.keys() == values.keys()
    for n in values:
        torch.testing.assert_close(back[n], values[n])


@pytest.mark.parametrize("prompts", [False, True])
def test_padding_changes_nothing(prompts: bool) -> None:
    case = cases.build("attention with prompts" if prompts else "attention")
    short = capture(case.model, case.sites, case.examples.batch([1]), case.task.loss)
    padded = capture(case.model, case.sites, case.examples.batch([1], pad_to=9), case.task.loss)
    for site in case.sites:
        g = [torch.einsum("bso,bsi->boi", c.grads[site.name], c.inputs[site.name]) for c in (short, padded)]
        torch.testing.assert_close(g[0], g[1], rtol=1e-10, atol=1e-12)


def state_of(model: nn.Module) -> list:
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    return [modes, [p.requires_grad for p in model.parameters()], hooks, [p.grad for p in model.parameters()]]


def test_model_comes_back_as_it_was_also_after_an_exception() -> None:
    case = cases.build("attention")
    case.model.train()
    case.model.ln.eval()
    case.model.up.weight.requires_grad_(False)
    before = state_of(case.model)
    batch = case.examples.batch([0, 1])
    capture(case.model, case.sites, batch, case.task.loss)
    assert state_of(case.model) == before

    def broken(model, batch):
        case.task.loss(model, batch)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        capture(case.model, case.sites, batch, broken)
    assert state_of(case.model) == before


def test_nan_names_the_examples() -> None:
    case = cases.build("mlp")
    batch = case.examples.batch([3, 4, 5])
    batch["x"][1] = float("nan")
    with pytest.raises(NumericalError, match=r"ids \[4\]"):
        capture(case.model, case.sites, batch, case.task.loss)


def test_a_site_that_is_never_called_is_an_error() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    examples = cases.vectors()
    with pytest.raises(ModelError, match="unused was never called"):
        capture(model.double(), find_sites(model, quiet=True), examples.batch([0]), cases.Classification().loss)


class TestSites:
    def test_glob_and_regex_and_exclude(self) -> None:
        import re

        model = cases.Attention()
        assert find_sites(model, "*out*", quiet=True).names == ("out",)
        assert find_sites(model, re.compile("^(up|down)$"), quiet=True).names == ("up", "down")
        assert "qkv" not in find_sites(model, "*", exclude="q*", quiet=True).names

    def test_no_match_lists_near_names(self) -> None:
        with pytest.raises(ModelError, match="Near names: down"):
            find_sites(cases.Attention(), "dawn", quiet=True)

    def test_coverage_is_said(self, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WHENCE_QUIET", raising=False)
        sites = find_sites(cases.Attention(), ["up", "down"])
        assert "2 sites cover" in capsys.readouterr().err
        assert 0 < sites.coverage < 1
        assert "place.weight" in dict(sites.left_out)
        assert "up" in str(sites)
        assert "136" in sites._repr_html_()
        assert repr(sites) == f"Sites({sites.summary})"

    def test_groups_are_sites(self) -> None:
        names = find_sites(cases.Convolutional(), "b*", quiet=True).names
        assert names == ("b[0]", "b[1]")


def test_transformer_bridge_names_and_gradients() -> None:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(
        d_model=8, d_head=4, n_layers=2, n_ctx=9, n_heads=2, d_vocab=11, d_mlp=16, act_fn="gelu",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = TransformerBridge.boot_native(config).double()
    sites = find_sites(model, "*", kinds=cases.ALL_KINDS, quiet=True)
    assert "blocks.0.mlp.fc_in" in sites.names
    examples = cases.sequences()
    task = LanguageModelling()
    wanted = reference.site_gradients(model, sites, examples, task.loss)
    seen = capture(model, sites, examples.batch(range(len(examples))), task.loss)
    for site in sites:
        found = torch.einsum("bso,bsi->boi", seen.grads[site.name], seen.inputs[site.name]).numpy()
        np.testing.assert_allclose(found, wanted[site.name], rtol=1e-10, atol=1e-12, err_msg=site.name)
