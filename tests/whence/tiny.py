"""Tiny random language models in folders as transformers writes them, and texts for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from whence.corpora import Vocabulary

FIELDS: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}


def saved(folder: Path, kind: str = "llama", layers: int = 2) -> Path:
    """The folder of a random model of this kind and of its tokenizer."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=layers, n_head=2, n_positions=64, **FIELDS))
    else:
        shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": layers}
        sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **shape, **FIELDS))
    model.save_pretrained(folder)
    words = Vocabulary.byte_pairs([text(n) for n in range(50)], 400)
    PreTrainedTokenizerFast(tokenizer_object=words.tokenizer).save_pretrained(folder)
    return folder


def image_classifier(folder: Path, kind: str = "vit", names: tuple[str, ...] = ("cats", "dogs")) -> Path:
    """The folder of a random image classifier of this kind and of its image processor, for 16 x 16 pixels."""
    torch.manual_seed(0)
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    if kind == "vit":
        shape = {"num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
        model: Any = ViTForImageClassification(ViTConfig(hidden_size=16, intermediate_size=24, **shape, **classes))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(**sizes, **classes))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def images(folder: Path, count: int = 4, names: tuple[str, ...] = ("cats", "dogs"), seed: int = 0) -> Path:
    """A folder with a folder of `count` random images per class, of unequal sizes."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for n in range(count):
            pixels = rng.integers(0, 256, (20 + n, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def text(number: int) -> str:
    return f"the quick brown fox {number} jumps over the lazy dog and {7 * number} run away"


def texts_file(path: Path, count: int) -> Path:
    """A .jsonl file of texts with the ids 0, 1, ..."""
    path.write_text("".join(json.dumps({"id": n, "text": text(n)}) + "\n" for n in range(count)))
    return path
