"""What the forward pass does is in a model's fingerprint, and nothing else."""

import copy
import subprocess
import sys
import types
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests import cases
from whence.cache import Classification, TrainedModel
from whence.cache.model.fingerprint import model_fingerprint

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
LLAMA = {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "max_position_embeddings": 16}


def seeded(build):
    torch.manual_seed(0)
    return build()


def gpt2(**changed):
    return lambda: GPT2LMHeadModel(
        GPT2Config(**{"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 12, **changed})
    )


def llama(**changed):
    return lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, **changed))


def mistral(**changed):
    return lambda: MistralForCausalLM(MistralConfig(**LLAMA, **changed))


def gemma(**changed):
    return lambda: Gemma2ForCausalLM(Gemma2Config(**LLAMA, head_dim=4, **changed))


def encoder(heads=2, **changed):
    return lambda: nn.TransformerEncoderLayer(8, heads, 16, batch_first=True, **changed)


class Settings(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer, self.value = nn.Linear(4, 3), value

    def forward(self, x):
        return self.layer(x)


def settings(value):
    return lambda: Settings(value)


def replaced(scale):
    def build():
        model = nn.Linear(4, 3)
        model.forward = types.MethodType(lambda self, x: scale * nn.functional.linear(x, self.weight), model)
        return model

    return build


def written(body, **space):
    """A model whose class was typed in a notebook: no file has its source."""
    text = f"class Net(nn.Module):\n  def __init__(self): super().__init__(); self.a = nn.Linear(4, 3)\n{body}"
    space |= {"nn": nn, "torch": torch, "__name__": "__main__"}
    exec(text, space)
    return lambda: space["Net"]()


FORWARD = "  def forward(self, x): return {}\n"
PAIRS = {
    "number": (settings(1.0), settings(3.0)),
    "text": (settings("gelu"), settings("relu")),
    "dict": (settings({"a": [1, 2]}), settings({"a": [1, 3]})),
    "own seed": (written(FORWARD.format("x") + "  seed = 1\n"), written(FORWARD.format("x") + "  seed = 2\n")),
    "plain tensor": (settings(torch.ones(4)), settings(torch.full((4,), 3.0))),
    "namespace": (settings(types.SimpleNamespace(t=1)), settings(types.SimpleNamespace(t=2))),
    "library function": (settings(torch.relu), settings(torch.tanh)),
    "own function": (settings(lambda x: x), settings(lambda x: 2 * x)),
    "list of modules": (settings([nn.ReLU()]), settings([nn.Tanh()])),
    "forward replaced": (replaced(1.0), replaced(2.0)),
    "class defined again": (
        written(FORWARD.format("torch.relu(self.a(x))")), written(FORWARD.format("torch.tanh(self.a(x))"))
    ),
    "constant of the module": (
        written(FORWARD.format("self.a(x) * scale"), scale=1.0), written(FORWARD.format("self.a(x) * scale"), scale=2.0)
    ),
    "function of the module": (
        written(FORWARD.format("act(self.a(x))"), act=lambda x: x),
        written(FORWARD.format("act(self.a(x))"), act=lambda x: -x),
    ),
    "helper method": (
        written(FORWARD.format("self.f(x)") + "  def f(self, x): return self.a(x)\n"),
        written(FORWARD.format("self.f(x)") + "  def f(self, x): return -self.a(x)\n"),
    ),
    "GPT-2: scaled by layer": (gpt2(), gpt2(scale_attn_by_inverse_layer_idx=True)),
    "GPT-2: not scaled": (gpt2(), gpt2(scale_attn_weights=False)),
    "GPT-2: heads": (gpt2(), gpt2(n_head=4)),
    "Llama: epsilon": (llama(), llama(rms_norm_eps=0.5)),
    "Mistral: window": (mistral(sliding_window=4), mistral(sliding_window=2)),
    "Gemma 2: softcap": (gemma(), gemma(final_logit_softcapping=0.5)),
    "encoder: heads": (encoder(), encoder(4)),
    "encoder: norm first": (encoder(), encoder(norm_first=True)),
    "encoder: activation": (encoder(), encoder(activation="gelu")),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_another_forward_is_another_model(name):
    one, other = (seeded(build) for build in PAIRS[name])
    assert model_fingerprint(one).differs(model_fingerprint(other)) == ("(architecture)",)


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_model_built_again_is_the_same(name):
    build = PAIRS[name][0]
    assert model_fingerprint(seeded(build)) == model_fingerprint(seeded(build))


class Counting(nn.Module):
    """A model that remembers what its forward pass has seen, in every way there is."""

    calls: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.layer, self.count, self.total, self.state = nn.Linear(4, 3), 0, torch.zeros(1), {"n": 0}
        self.cache, self.seen, self.nested = {}, [], types.SimpleNamespace(n=0)

    def note(self, x):
        self.cache[len(self.cache)] = x.shape
        cache = self.state
        cache["n"] += 1

    def forward(self, x):
        self.count += 1
        self.last = x
        self.total.add_(1)
        self.seen.append(x)
        self.nested.n += 1
        self.calls.append(1)
        self.note(x)
        return self.layer(x)


def hooked():
    model = nn.Sequential(nn.Linear(4, 3))

    def keep(module, args, out):
        module.last = out

    model[0].register_forward_hook(keep)
    return model


@pytest.mark.parametrize("build", [Counting, hooked])
def test_what_the_forward_pass_changes_does_not_count(build):
    model = build()
    before = model_fingerprint(model)
    with torch.no_grad():
        model(torch.ones(2, 4))
    model(torch.ones(2, 4))
    assert model_fingerprint(model) == before


TOKENS = torch.tensor([[1, 2, 3, 4]])


@pytest.mark.parametrize("build", [gpt2(), llama(), mistral(sliding_window=2), gemma()])
def test_a_library_model_keeps_its_fingerprint_in_use(build, tmp_path):
    model = seeded(build)
    before = model_fingerprint(model)
    model(TOKENS, labels=TOKENS).loss.backward()
    model.eval().requires_grad_(False)
    model.gradient_checkpointing_enable()
    handle = model.register_forward_hook(lambda *given: None)
    model(TOKENS, attention_mask=torch.ones_like(TOKENS))
    assert model_fingerprint(model) == before
    handle.remove()
    assert model_fingerprint(copy.deepcopy(model)) == before
    model.save_pretrained(tmp_path)
    assert model_fingerprint(type(model).from_pretrained(tmp_path)) == before


def test_a_bridged_model_keeps_its_fingerprint_in_use(tmp_path):
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    seeded(gpt2()).save_pretrained(tmp_path)
    model = bridge.boot_transformers(str(tmp_path))
    before = model_fingerprint(model)
    model(TOKENS)
    model.run_with_cache(TOKENS)
    model.eval()
    assert model_fingerprint(model) == before
    assert model_fingerprint(bridge.boot_transformers(str(tmp_path))) == before


def test_an_adapter_keeps_its_fingerprint_in_use():
    peft = pytest.importorskip("peft")

    def build(alpha):
        config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["c_fc"], fan_in_fan_out=True)
        return seeded(lambda: peft.get_peft_model(gpt2()(), config))

    model = build(4)
    before = model_fingerprint(model)
    model(TOKENS)
    assert model_fingerprint(model.eval()) == before
    assert model_fingerprint(build(8)).differs(before) == ("(architecture)",)


def test_wrappers_do_not_count():
    model = seeded(settings(1.0))
    assert model_fingerprint(torch.compile(model)) == model_fingerprint(model)
    assert model_fingerprint(nn.DataParallel(model)) == model_fingerprint(model)


PROGRAM = """
import torch
from torch import nn
from whence.cache.model.fingerprint import model_fingerprint
TABLE = {"b", "a", "c"}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.names = {"x", "y", "z"}
        self.f = lambda x: x in {"d", "e", "f"} or x in TABLE
    def forward(self, x): return x
print(model_fingerprint(Net()).hex)
"""


def test_every_process_gives_the_same():
    given = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stdout for _ in range(2)]
    assert given[0] == given[1] != ""


def test_a_pass_leaves_the_fingerprint():
    case = cases.build("mlp")
    trained = TrainedModel(case.model, case.examples, Classification(), quiet=True)
    before = trained.fingerprint()
    list(trained.run("loss", trained.find()).batches())
    assert trained.fingerprint() == before
