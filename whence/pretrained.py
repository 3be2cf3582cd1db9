"""Pretrained language models: a folder that save_pretrained wrote, or a hub name.

Weights are read from safetensors, or from torch files with nothing but tensors in them; no code of a model's own is
run. A model that lacks a tensor is refused: the library would fill it with random numbers.
"""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whence.cache import ModelError
from whence.cache.jobs.progress import say

from .corpora import Vocabulary

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
WRITE = "Give a folder written by save_pretrained of the model and of its tokenizer."


def pretrained(name: str) -> tuple[nn.Module, Vocabulary]:
    """A model in evaluation mode and its vocabulary: a TransformerLens bridge if that library supports the
    architecture, else the model of transformers.

    Raises ModelError if there is no such model, a file of it is missing or damaged, it needs code of its own, or its
    file lacks tensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"The folder {name} has no config.json.", WRITE)
        if not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
            raise ModelError(f"The folder {name} has no tokenizer.", WRITE)
    safe: dict[str, Any] = {"trust_remote_code": False}
    with _explained(name, "configuration"):
        config = AutoConfig.from_pretrained(name, **safe)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder.", "Write a cache.Task for it, and call Whence from Python.")
    if getattr(config, "auto_map", None):
        say(f"{name} brings code of its own, which is not run: transformers' {type(config).__name__} is used.")
    with _explained(name, "tokenizer"):
        vocabulary = Vocabulary(AutoTokenizer.from_pretrained(name, **safe))
    with _explained(name, "weights"):
        own: Any = AutoModelForCausalLM  # its own type has no report of the loading
        model, found = own.from_pretrained(
            name, **safe, weights_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _check_complete(name, found)
    dtype = getattr(config, "dtype", None) or torch.float32
    return _bridge(name, model, vocabulary) or model.to(dtype).eval(), vocabulary


def context_of(model: nn.Module) -> int | None:
    """The most positions that a model can read: the smallest limit of its configuration and of its tables of learned
    positions; None if it states none."""
    limits = []
    for part in (model, getattr(model, "original_model", None)):
        for config in (getattr(part, "config", None), getattr(part, "cfg", None)):
            limits += [getattr(config, field, None) for field in CONTEXT_FIELDS]
    limits += [
        table.num_embeddings
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding) and ("pos" in path.rpartition(".")[2] or path.rpartition(".")[2] == "wpe")
    ]
    found = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(found, default=None)


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse missing and misshapen tensors by name; say which were not used."""
    unexpected = sorted(found["unexpected_keys"])
    wrong = {
        "has no": sorted(found["missing_keys"]),
        "has other shapes for": sorted(
            str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]
        ),
    }
    if any(wrong.values()):
        causes = [f"{what} {_few(keys)}" for what, keys in wrong.items() if keys]
        causes += [f"has {_few(unexpected)}, which the model does not use"] if unexpected else []
        raise ModelError(
            f"The file of {name} {'; it '.join(causes)}.",
            "The model would run on random numbers. Save the whole model again, or load it yourself and call Whence "
            "from Python.",
        )
    if unexpected:
        say(f"{name}: the model does not use {_few(unexpected)}.")


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


@contextlib.contextmanager
def _explained(name: str, part: str) -> Iterator[None]:
    """Errors of the libraries as a ModelError, without their advice to run a model's own code."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        cause = f"The weights of {name} are cut or damaged: {error}."
        raise ModelError(cause, "Copy or save the file again.") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The weights of {name} are a pickle that holds more than tensors, which could run code: it is not read.",
            "Get the model as safetensors.",
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} needs code of its own (auto_map), which is not run.",
                "Load it yourself, after reading that code, and call Whence from Python.",
            ) from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(
            f"The {part} of {name!r} could not be loaded: {type(error).__name__}: {first}",
            "Give demo, biographies, a folder written by save_pretrained, or a hub name if there is a network.",
        ) from error


def _bridge(name: str, model: nn.Module, vocabulary: Vocabulary) -> nn.Module | None:
    """The model as a TransformerLens bridge, None if that library does not support its architecture."""
    from transformer_lens.model_bridge import TransformerBridge

    if torch.cuda.is_available():
        model = model.to("cuda")
    try:
        own = copy.deepcopy(vocabulary.tokenizer)  # the library adds tokens to what it is given
        return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=own).eval()
    except (ValueError, KeyError, NotImplementedError):
        return None
