"""Model folders that lack something: an error that names it, never random weights, another's code or a question."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from whence.cache import ModelError
from whence.corpora import Vocabulary
from whence.inputs import load_model
from whence.pretrained import context_of

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
    "a pickle that runs code": (as_pickle, "could run code"),
    "code of its own": (own_code, "code of its own"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), "configuration"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("token*")], "no tokenizer"),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer"),
    "an encoder-decoder": (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "encoder-decoder"),
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
