"""A module is known by the names of its own library and by those of TransformerLens, and both mean the same."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whence import attrib, decomp
from whence.attrib.scoring.atoms import chosen_site
from whence.cache import Examples, LanguageModelling, ModelError, Store, TrainedModel, find_sites
from whence.cache.model.names import full_name, known_as, other_names
from whence.cache.model.outputs import outputs_at
from whence.corpora import Vocabulary
from whence.decomp.activations import Origin

SMALL: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, **SMALL}
    return LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=16, **shape)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, **SMALL)).eval()


def bridged(model: Any) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    words = PreTrainedTokenizerFast(tokenizer_object=Vocabulary.words(["a b c"]).tokenizer)
    return TransformerBridge.boot_transformers("tiny", hf_model=model, tokenizer=words, device="cpu").eval()


def texts() -> Examples:
    rng = np.random.default_rng(0)
    return Examples.of({"input_ids": [rng.integers(1, 30, size=n) for n in (5, 7, 6, 9)]})


def trained(model: nn.Module, store: Store | None = None) -> TrainedModel:
    return TrainedModel(model, texts(), LanguageModelling(), store=store, quiet=True)


# own name, name of TransformerLens
PAIRS = {
    llama: [
        ("model.layers.1", "blocks.1.hook_out"),
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.0.self_attn", "blocks.0.attn.hook_out"),
        ("model.layers.0.mlp", "blocks.0.hook_mlp_out"),
        ("model.embed_tokens", "hook_embed"),
        ("model.norm", "ln_final.hook_out"),
    ],
    gpt2: [
        ("transformer.h.1", "blocks.1.hook_out"),
        ("transformer.h.0.attn", "blocks.0.attn.hook_out"),
        ("transformer.h.0.mlp", "blocks.0.mlp.hook_out"),
        ("transformer.wte", "embed.hook_out"),
    ],
}


@pytest.mark.parametrize("make", PAIRS)
@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "plain"])
def test_both_names_give_the_same_activations(make: Any, bridge: bool) -> None:
    model, ids = bridged(make()) if bridge else make(), torch.tensor([[1, 2, 3, 4]])
    names = [name for pair in PAIRS[make] for name in pair]
    seen = outputs_at(model, names, lambda: model(ids))
    assert all(torch.equal(seen[own], seen[other]) for own, other in PAIRS[make])
    assert len({known_as(model, name) for name in names}) == len(set(names[::2]))
    reference = make()
    own = outputs_at(reference, names[::2], lambda: reference(ids))
    assert all(torch.allclose(seen[name], own[name], atol=1e-5) for name in names[::2])


def test_one_entry_serves_both_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = trained(bridged(llama()), store)
    decomp.observe(model, at=["model.layers.0", "model.layers.1"])
    found = decomp.observe(model, at=["blocks.0.hook_out", "blocks.1.hook_out"])
    assert list(found) == ["blocks.0.hook_out", "blocks.1.hook_out"]
    assert [event.what for event in store.events if event.kind == "activations"][-1] == "hit"


def test_a_change_is_spliced_in_by_either_name() -> None:
    from whence.decomp.splice import zeros

    model = trained(bridged(llama()))
    batch = model.batch(texts(), [0])
    found = []
    for name in ("model.layers.1", "blocks.1.hook_out"):
        with decomp.spliced(model, name, zeros) as changed, torch.no_grad():
            found.append(LanguageModelling().loss(changed, batch))
    assert torch.equal(*found)
    assert not torch.equal(found[0], LanguageModelling().loss(model.model, batch))


def test_sites_are_chosen_by_either_name() -> None:
    own, other = "model.layers.*.mlp.*", "blocks.*.mlp.*"
    for model in (llama(), bridged(llama())):
        one, two = (find_sites(model, name, quiet=True).names for name in (own, other))
        assert one == two
        assert len(one) == 6
    fused = find_sites(bridged(gpt2()), "transformer.h.*.attn.c_attn", quiet=True)
    assert fused.names == ("blocks.0.attn.qkv", "blocks.1.attn.qkv")
    with pytest.raises(ModelError, match="No site matches"):
        find_sites(bridged(llama()), "model.layers.7.*", quiet=True)


def test_a_dictionary_finds_its_site_by_either_name() -> None:
    factors = attrib.Identity().fit(trained(bridged(llama())).replace(sites="*.0.mlp.*", check=False))
    for site in ("blocks.0.mlp.down_proj", "model.layers.0.mlp.down_proj"):
        dictionary = SimpleNamespace(origin=Origin(f"{site}.hook_in"))
        assert chosen_site(factors, dictionary, None) == "blocks.0.mlp.down_proj"
        assert chosen_site(factors, dictionary, site) == "blocks.0.mlp.down_proj"


def test_a_name_of_the_tree_stands_for_itself() -> None:
    model = bridged(llama())
    for name in ("blocks.0", "blocks.0.hook_out", "blocks.0._original_component.mlp"):
        assert known_as(model, name) == name
    assert known_as(model, "model.layers.0") == "blocks.0.hook_out"
    plain = nn.Sequential(nn.Linear(2, 2))
    assert other_names(plain) == {}
    for wrong in ("blocks.0.hook_out", ""):
        with pytest.raises(ModelError, match="no module or hook point"):
            full_name(plain, wrong)
