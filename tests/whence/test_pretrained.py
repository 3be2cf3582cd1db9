"""Model folders that lack something: an error that names it, never random weights, another's code or a question."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whence.adapters import adapters_of
from whence.cache import Classification, Examples, ModelError, TrainedModel, UsageError, find_sites
from whence.cache.model.borrowing import borrowed, modules_of
from whence.cli import main
from whence.corpora import Vocabulary
from whence.inputs import load_model
from whence.options import Loading
from whence.pretrained import context_of, pretrained

WEIGHTS = "model.safetensors"
ONE = "transformer.h.0.mlp.c_fc.weight"
ADVICE = ("trust_remote_code", "weights_only", "ignore_mismatched_sizes")  # to switch a safeguard off


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    words = Vocabulary.byte_pairs(["some text"], 300)
    PreTrainedTokenizerFast(tokenizer_object=words.tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def with_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def as_pickle(folder: Path) -> None:
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(folder / "ran"),)

    (folder / WEIGHTS).unlink()
    torch.save({ONE: Runs()}, folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(folder / 'ran')!r})")


def test_a_quiet_command_shows_no_bar_of_another_library(folder: Path, capfd, monkeypatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    for terminal, quiet in ((True, False), (True, True), (False, False), (True, False)):
        monkeypatch.setattr("whence.pretrained.redraws", lambda terminal=terminal: terminal)
        load_model(str(folder), quiet=quiet)
        assert ("Loading weights" in capfd.readouterr().err) is (terminal and not quiet)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "lacks a tensor": (lambda f: with_tensors(f, lambda t: t.pop(ONE)), f"has no {ONE}"),
    "a tensor of another shape": (lambda f: with_tensors(f, lambda t: t.update({ONE: torch.ones(2, 3)})), ONE),
    "a tensor of another name": (
        lambda f: with_tensors(f, lambda t: t.update(odd=t.pop(ONE))),
        f"has no {ONE}; it has odd, which the model does not use",
    ),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:999]), "cut or damaged"),
    "not safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "cut or damaged"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "weights"),
    "a pickle": (as_pickle, "--allow-pickle"),
    "code of its own": (own_code, "code of its own"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "configuration"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("token*")], "no tokenizer"),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused(name: str, folder: Path, monkeypatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("a question on standard input")

    monkeypatch.setattr("builtins.input", asked)
    breaks, said = BROKEN[name]
    breaks(folder)
    with pytest.raises(ModelError) as refused:
        load_model(str(folder))
    assert said in str(refused.value)
    assert not [advice for advice in ADVICE if advice in str(refused.value)]
    assert not (folder / "ran").exists()


def test_a_whole_folder_is_read_and_its_context_known(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors.update(extra=torch.ones(1)))  # takes nothing from the model
    model, words = load_model(str(folder))
    assert context_of(model) == 16
    assert words is not None
    stored = load_file(folder / WEIGHTS)["transformer.wte.weight"]
    assert any(torch.equal(stored, p) for p in model.parameters())


def test_context_is_the_smallest_limit() -> None:
    model = torch.nn.Module()
    assert context_of(model) is None
    model.positions = torch.nn.Embedding(12, 4)
    assert context_of(model) == 12
    model.config = GPT2Config(n_positions=8)
    assert context_of(model) == 8


def test_a_pickle_is_read_if_it_is_allowed_and_holds_tensors_alone(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    as_pickle(folder)
    with pytest.raises(ModelError, match="more than tensors"):
        load_model(str(folder), loading=Loading(allow_pickle=True))
    assert not (folder / "ran").exists()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="allow_pickle=True"):
        load_model(str(folder))
    model, _ = load_model(str(folder), loading=Loading(allow_pickle=True))
    assert any(torch.equal(tensors[ONE], p) for p in model.parameters())


def test_the_type_is_the_one_that_is_asked_for(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)[ONE]
    model, _ = load_model(str(folder), loading=Loading(dtype="bfloat16", device="cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert any(torch.equal(stored.bfloat16(), p) for p in model.parameters())
    with pytest.raises(ModelError, match="cannot be moved to cuda:7"):
        load_model(str(folder), loading=Loading(device="cuda:7"))


def test_a_model_is_spread_by_accelerate_and_refused_if_it_does_not_fit(folder: Path, capsys) -> None:
    pytest.importorskip("accelerate")
    spread, _ = load_model(str(folder), loading=Loading(device_map="auto"))
    assert any(torch.equal(load_file(folder / WEIGHTS)[ONE], p.cpu()) for p in spread.parameters())
    with pytest.raises(UsageError, match="Give one of them"):
        load_model(str(folder), loading=Loading(device_map="auto", device="cpu"))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(ModelError, match="on no device"):
        TrainedModel(model, Examples.of((np.ones((2, 2), np.float32), np.zeros(2, np.int64))), Classification())
    assert main(["attrib", "self", "--model", str(folder), "--device", "cuda:0,cuda:1"]) == 2
    assert "--device-map auto" in capsys.readouterr().err


def test_code_of_its_own_runs_if_it_is_allowed(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder.parent / "modules"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class C(GPT2Config):\n    model_type = 'mine'\n"
        "class M(GPT2LMHeadModel):\n    config_class = C\n"
    )
    model, _ = load_model(str(folder), loading=Loading(trust_remote_code=True))
    assert any(torch.equal(load_file(folder / WEIGHTS)[ONE], p) for p in model.parameters())


def test_a_revision_reaches_the_library(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **options: asked.append(options))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name, **options: asked.append(options))
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained",
        lambda name, **options: asked.append(options) or (_ for _ in ()).throw(ValueError("seen")),
    )
    with pytest.raises(ModelError, match="seen"):
        load_model("someone/model", loading=Loading(revision="step1000"))
    assert [options["revision"] for options in asked] == ["step1000"] * 3
    assert {options["trust_remote_code"] for options in asked} == {False}


def test_adapters_are_read_onto_their_base_and_are_what_is_attributed(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = GPT2LMHeadModel.from_pretrained(folder)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(p)
    adapted.save_pretrained(folder.parent / "adapters")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
    for loading in (None, Loading(base=str(folder))):  # the adapters name the folder that they are of
        model, words = load_model(str(folder.parent / "adapters"), loading=loading)
        assert words is not None
        assert torch.allclose(model(ids).logits, expected)
        assert len(find_sites(model, quiet=True)) == 2
        assert all("lora" in name for name in find_sites(model, quiet=True).names)
    with pytest.raises(ModelError, match="Or name its base with --base"):
        load_model(str(folder.parent / "adapters"), loading=Loading(base=str(folder / "nothing")))
    (folder.parent / "adapters" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_model(str(folder.parent / "adapters"))


def test_adapters_of_the_hub_are_read_onto_the_base_that_they_name(folder: Path, monkeypatch) -> None:
    """With the two functions that ask the hub replaced."""
    peft = pytest.importorskip("peft")
    place = folder.parent / "cached"
    config = peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(folder), config)
    adapted.save_pretrained(place)
    asked = []

    def config_file(name: str, revision: str | None = None) -> str | None:
        asked.append(("config", name, revision))
        return str(place / "adapter_config.json") if name == "someone/adapters" else None

    def snapshot(name: str, revision: str | None = None, allow_patterns: object = None) -> str:
        asked.append(("files", name, revision))
        return str(place)

    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", config_file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model, words = load_model("someone/adapters", loading=Loading(revision="v2"))
    assert words is not None
    assert all("lora" in name for name in find_sites(model, quiet=True).names)
    assert asked == [("config", "someone/adapters", "v2"), ("files", "someone/adapters", "v2")]
    with pytest.raises(ModelError, match="no folder or file 'someone/other'"):
        load_model("someone/other")
    assert asked[2:] == [("config", "someone/other", None)]


def test_a_revision_is_of_what_the_name_stands_for(tmp_path: Path, monkeypatch) -> None:
    stated = {"base_model_name_or_path": "someone/base", "revision": "r1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    monkeypatch.setattr("whence.adapters._downloaded", lambda name, revision: str(tmp_path))
    for name, loading, base, revision in (
        (str(tmp_path), Loading(), "someone/base", "r1"),
        (str(tmp_path), Loading(revision="v2"), "someone/base", "v2"),
        (str(tmp_path), Loading(revision="v2", base="mine"), "mine", "v2"),
        ("someone/adapters", Loading(revision="v2"), "someone/base", "r1"),
        ("someone/adapters", Loading(revision="v2", base="mine"), "mine", None),
    ):
        found = adapters_of(name, loading)
        assert found is not None
        assert (found.base, found.loading.revision) == (base, revision)


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(UsageError, match="pip install gguf"):
            load_model(str(name))
    with pytest.raises(ModelError, match="no file"):
        load_model(str(tmp_path / "other.gguf"))


def test_a_gguf_file_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config = LlamaConfig(
        vocab_size=300, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=False,
    )  # fmt: skip
    own = LlamaForCausalLM(config).state_dict()
    as_gguf(gguf, tmp_path / "tiny.gguf", own)
    for name in (tmp_path, tmp_path / "tiny.gguf"):
        model, words = load_model(str(name))
        assert words is not None
        assert words.decode(words.encode("some text")) == "some text"
        assert any(torch.equal(own["lm_head.weight"], p) for p in model.parameters())
    as_gguf(gguf, tmp_path / "second.gguf", own)
    with pytest.raises(ModelError, match="2 GGUF files"):
        load_model(str(tmp_path))


def as_gguf(gguf, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A Llama of one layer as llama.cpp writes it: rows of query and key by rotary pairs."""
    words = Vocabulary.byte_pairs(["some text"], 300).tokenizer
    vocabulary = sorted(words.get_vocab(), key=words.get_vocab().get)
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_block_count(1)
    file.add_context_length(16)
    file.add_embedding_length(8)
    file.add_feed_forward_length(16)
    file.add_head_count(2)
    file.add_head_count_kv(2)
    file.add_rope_dimension_count(4)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_vocab_size(300)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(vocabulary + [f"<{n}>" for n in range(300 - len(vocabulary))])
    file.add_token_types([1] * 300)
    file.add_token_scores([0.0] * 300)
    merges = [" ".join(pair) for pair in json.loads(words.to_str())["model"]["merges"]]
    file.add_token_merges(merges)
    file.add_bos_token_id(0)
    file.add_eos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q", "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v", "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate", "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }  # fmt: skip
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = values.reshape(2, 2, 2, 8).swapaxes(1, 2).reshape(8, 8)
        file.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_every_module_of_a_bridge_is_in_evaluation_mode_while_it_is_borrowed(folder: Path) -> None:
    model, _ = pretrained(str(folder))
    inside = modules_of(model)
    assert len(inside) > len(list(model.modules()))  # a dropout that the bridge's own tree does not have
    for module in inside:
        module.training = True
    with borrowed(model), torch.no_grad():
        first, second = (model(torch.arange(8)[None]) for _ in range(2))
    torch.testing.assert_close(getattr(first, "logits", first), getattr(second, "logits", second), rtol=0, atol=0)
    assert all(module.training for module in inside)
