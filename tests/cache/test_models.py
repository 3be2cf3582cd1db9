"""Models as people have them: Hugging Face GPT-2 (transposed linears, tied head), a TransformerLens bridge of it, and
PEFT LoRA layers. Per-example gradients equal autograd's."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.cache import LanguageModelling, Sites, Store, TrainedModel, activations, find_sites
from whence.cache.model.capture import capture
from whence.cache.model.sites import matrices_of
from whence.cache.model.stateless import call_with, named_parameters


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=12, attn_implementation="eager")
    return GPT2LMHeadModel(config).double().eval()


def check(model: nn.Module, sites: Sites) -> None:
    examples, task = cases.sequences(4), LanguageModelling()
    seen = capture(model, sites, examples.batch(range(4)), task.loss)
    for row in range(4):
        parameters = named_parameters(model)
        for p in parameters.values():
            p.requires_grad_(True)
        value = task.loss(model, examples.batch([row])).sum()
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        by_name = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads)}
        wanted = matrices_of(model, sites, by_name)
        for site in sites:
            found = torch.einsum("so,si->oi", seen.grads[site.name][row], seen.inputs[site.name][row])
            np.testing.assert_allclose(found, wanted[site.name], rtol=1e-9, atol=1e-11, err_msg=site.name)


def test_hugging_face_gpt2_with_every_parameter_covered(gpt2: nn.Module) -> None:
    sites = find_sites(gpt2, kinds=cases.ALL_KINDS, quiet=True)
    assert sites.coverage == 1.0
    assert "transformer.h.0.mlp.c_fc" in sites.names
    assert len([site for site in sites if len(site.modules) == 2]) == 1  # the head is the embedding
    check(gpt2, sites)


def test_bridge_from_transformers(gpt2: nn.Module, tmp_path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    gpt2.float().save_pretrained(tmp_path)
    gpt2.double()
    model = TransformerBridge.boot_transformers(str(tmp_path)).double().eval()
    sites = find_sites(model, ["*.mlp.*", "*.attn.*"], quiet=True)
    examples, task = cases.sequences(4), LanguageModelling()
    trained = TrainedModel(model, examples, task, store=Store(tmp_path / "store"), quiet=True)
    called = trained.find(sites)
    assert "blocks.0.mlp.c_fc" in called.names
    check(model, called)
    entry = activations(trained, "blocks.1.hook_out")
    assert entry.read("blocks.1.hook_out").shape == (int(examples.lengths.sum()), 8)


def test_lora_layers(gpt2: nn.Module) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(gpt2), config).double().eval()
    sites = find_sites(model, "*lora*", quiet=True)
    assert len(sites) == 4
    check(model, sites)


@pytest.mark.parametrize("name", ["first.weight", "again.first.weight"])
def test_call_with_leaves_a_module_that_is_reached_by_two_names_as_it_was(name) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.again = nn.ModuleDict({"first": self.first})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x)

    model = Twice()
    own = model.first.weight
    assert call_with(model, {name: torch.zeros(2, 2)}, (torch.ones(1, 2),)).eq(0).all()
    with pytest.raises(RuntimeError):
        call_with(model, {name: torch.zeros(2, 3)}, (torch.ones(1, 2),))
    assert model.first.weight is own
    assert model.again["first"].weight is own
