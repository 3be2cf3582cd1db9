"""Tiny random models of the architectures that people bring, each with data and a task: two layers, a few thousand
parameters, float64. One table for tests and for the documents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import cases
from whence.cache import Classification, Examples, LanguageModelling

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SIZES | {
    "vocab_size": 19,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 1}


class Architecture(NamedTuple):
    """model, data, task; blocks: some of its blocks, with the rows of an example there (None: one a position)."""

    model: Callable[[], nn.Module]
    data: Callable[[], Examples]
    task: Any
    blocks: dict[str, int | None]


def causal(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))

    return build


def tokens(count: int = 4) -> Examples:
    return cases.sequences(count, 19, longest=9)


def labelled_tokens() -> Examples:
    texts = tokens().columns["input_ids"]
    return Examples.of({"x": [np.maximum(t, 3) for t in texts], "y": np.arange(len(texts)) % 3})


def images() -> Examples:
    return Examples.of((np.random.default_rng(0).normal(size=(3, 3, 16, 16)), np.arange(3)))


def with_adapters(build: Callable[[], nn.Module], *targets: str) -> Callable[[], nn.Module]:
    def adapted() -> nn.Module:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(build(), LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False))

    return adapted


@dataclass(frozen=True)
class SequenceToSequence:
    """The text of a source is predicted from the tokens before it: an encoder-decoder's task in ten lines."""

    settings: ClassVar = {"task": "SequenceToSequence"}

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"),
            decoder_input_ids=batch["targets"][:, :-1], use_cache=False,
        ).logits  # fmt: skip

    def _nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self._nll(self.logits(model, batch), batch["targets"][:, 1:])

    def sampled_loss(self, model: nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
        logits = self.logits(model, batch)
        return self._nll(logits, (logits.detach().argmax(-1) + batch["example_id"][:, None] + seed) % logits.shape[-1])

    def measurement(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return -self.loss(model, batch)

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()


def sources_and_targets() -> Examples:
    rng = np.random.default_rng(0)
    return Examples.of({"input_ids": tokens().columns["input_ids"], "targets": rng.integers(3, 19, (4, 5))})


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=19, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    )


def classifier(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(name, num_labels=3, **settings)
        return AutoModelForSequenceClassification.from_config(config)

    return build


def image_classifier(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import AutoConfig, AutoModelForImageClassification

        return AutoModelForImageClassification.from_config(AutoConfig.for_model(name, num_labels=3, **settings))

    return build


@dataclass(frozen=True)
class Pairs:
    """Whether a picture and a text belong together, each pair on its own (the loss of SigLIP with no other pairs)."""

    settings: ClassVar = {"task": "Pairs"}

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), pixel_values=batch["pixels"]
        )
        return (out.text_embeds * out.image_embeds).sum(-1, keepdim=True) * 3

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.softplus(-self.logits(model, batch)[:, 0] * (2 * batch["match"] - 1))

    def sampled_loss(self, model: nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
        return F.softplus(-self.logits(model, batch)[:, 0] * (1 - 2 * ((batch["example_id"] + seed) % 2)))

    def measurement(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.logits(model, batch)[:, 0]

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["match"]), 1, dtype=torch.bool, device=batch["match"].device)


def pictures_and_texts() -> Examples:
    texts = [np.append(np.maximum(t, 3)[:-1], 2) for t in tokens(3).columns["input_ids"]]
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16))
    return Examples.of({"input_ids": texts, "pixels": pixels, "match": np.array([1, 0, 1])})


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    vision = SIZES | {"image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8))


class Encoder(nn.Module):
    """A classifier of texts from torch's own layers, positions before examples, as they are by default."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(19, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24), 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        out = self.encoder(self.embed(x).transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)
        return self.head((out * ~padding[..., None]).sum(1))


LM = LanguageModelling()
EXPERTS = GROUPED | {"num_experts_per_tok": 2}
LLAMA_BLOCKS = {"model.layers.0": None, "model.layers.1": None}
TABLE: dict[str, Architecture] = {
    "GPT-2": Architecture(
        causal("gpt2", n_embd=16, n_layer=2, n_head=2, vocab_size=19, n_positions=16), tokens, LM,
        {"transformer.h.0": None, "transformer.h.1": None},
    ),
    "GPT-NeoX": Architecture(
        causal("gpt_neox", **TEXT), tokens, LM, {"gpt_neox.layers.0": None, "gpt_neox.layers.1": None}
    ),
    "Llama": Architecture(causal("llama", **GROUPED), tokens, LM, LLAMA_BLOCKS),
    "Mistral": Architecture(causal("mistral", **GROUPED, sliding_window=4), tokens, LM, LLAMA_BLOCKS),
    "Qwen 2": Architecture(causal("qwen2", **GROUPED), tokens, LM, LLAMA_BLOCKS),
    "Qwen 3": Architecture(causal("qwen3", **GROUPED, head_dim=8), tokens, LM, LLAMA_BLOCKS),
    "Gemma 2": Architecture(causal("gemma2", **GROUPED, head_dim=8), tokens, LM, LLAMA_BLOCKS),
    "Gemma 3": Architecture(causal("gemma3_text", **GROUPED, head_dim=8), tokens, LM, LLAMA_BLOCKS),
    "Phi": Architecture(causal("phi", **GROUPED), tokens, LM, LLAMA_BLOCKS),
    "OLMo 2": Architecture(causal("olmo2", **GROUPED), tokens, LM, LLAMA_BLOCKS),
    "Mamba": Architecture(
        causal("mamba", hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=19, use_mambapy=False),
        tokens, LM, {"backbone.layers.0": None, "backbone.layers.1": None},
    ),
    "Mixtral": Architecture(causal("mixtral", **EXPERTS, num_local_experts=4), tokens, LM, LLAMA_BLOCKS),
    "Qwen 2 MoE": Architecture(
        causal("qwen2_moe", **EXPERTS, num_experts=4, moe_intermediate_size=12, shared_expert_intermediate_size=12),
        tokens, LM, LLAMA_BLOCKS,
    ),
    "Qwen 3 MoE": Architecture(
        causal("qwen3_moe", **EXPERTS, num_experts=4, moe_intermediate_size=12, head_dim=8), tokens, LM, LLAMA_BLOCKS
    ),
    "gpt-oss": Architecture(
        causal("gpt_oss", **EXPERTS, num_local_experts=4, head_dim=8, sliding_window=4), tokens, LM, LLAMA_BLOCKS
    ),
    "T5": Architecture(t5, sources_and_targets, SequenceToSequence(), {"encoder.block.0": None, "decoder.block.1": 4}),
    "BERT": Architecture(
        classifier("bert", **TEXT), labelled_tokens, Classification(),
        {"bert.encoder.layer.0": None, "bert.encoder.layer.1": None},
    ),
    "ModernBERT": Architecture(
        classifier("modernbert", **TEXT, local_attention=4, cls_token_id=1, sep_token_id=2, mask_token_id=3),
        labelled_tokens, Classification(), {"model.layers.0": None, "model.layers.1": None},
    ),
    "torch.nn.Transformer": Architecture(Encoder, labelled_tokens, Classification(), {}),
    "ViT": Architecture(
        image_classifier("vit", **SIZES, image_size=16, patch_size=8), images, Classification(), {"vit.layers.1": 5}
    ),
    "ResNet": Architecture(
        image_classifier("resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        images, Classification(), {"resnet.encoder.stages.1": 1},
    ),
    "CLIP": Architecture(
        clip, pictures_and_texts, Pairs(), {"text_model.encoder.layers.1": None, "vision_model.encoder.layers.1": 5}
    ),
    "LoRA on Llama": Architecture(
        with_adapters(causal("llama", **GROUPED), "q_proj", "down_proj"), tokens, LM,
        {"base_model.model.model.layers.0": None, "base_model.model.model.layers.1": None},
    ),
    "LoRA on GPT-NeoX": Architecture(
        with_adapters(causal("gpt_neox", **TEXT), "query_key_value"), tokens, LM,
        {"base_model.model.gpt_neox.layers.1": None},
    ),
}  # fmt: skip
