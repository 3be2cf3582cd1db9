"""Pretrained language models: a folder that save_pretrained wrote, adapters on one, a GGUF file, or a hub name.

Weights are read from safetensors or GGUF, from torch pickles only if that is allowed by name (and then nothing but
tensors); no code of a model's own is run unless that is allowed. A model that lacks a tensor is refused: the library
would fill it with random numbers.
"""

import contextlib
import copy
import importlib.util
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whence.cache import ModelError, UsageError
from whence.cache.jobs.progress import redraws, say
from whence.cache.model.names import own_parameters, parts_of
from whence.cache.model.stateless import named_parameters

from .corpora import Vocabulary
from .options import Loading

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
ADAPTER = "adapter_config.json"
HEADS = {  # form of model (`corpora.rows.FORMS`) -> the class of transformers that loads it
    "text": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "pairs": "AutoModelForSeq2SeqLM",
    "classes": "AutoModelForSequenceClassification",
}  # fmt: skip
WRITE = "Give a folder written by save_pretrained of the model and of its tokenizer."
NAMES = "Give --out FILE.safetensors: it has the weights by the names that they have here."
PICKLE = "Save it as safetensors, or allow the pickle by name (--allow-pickle, Loading(allow_pickle=True))."


def pretrained(name: str, loading: Loading | None = None, *, quiet: bool = False) -> tuple[nn.Module, Vocabulary]:
    """A model in evaluation mode and its vocabulary: a TransformerLens bridge if that library supports the
    architecture, else the model of transformers. Adapters (PEFT) are put on their base; they alone are trained, so they
    alone are attributed. quiet: show none of the libraries' progress bars.

    Raises ModelError if there is no such model, a file of it is missing or damaged, it needs code of its own, or its
    file lacks tensors; UsageError if a package that reads it is missing.
    """
    loading = loading or Loading()
    with _bars(not quiet):
        if (Path(name) / ADAPTER).is_file():
            return _adapted(name, loading)
        model, vocabulary, stored = _loaded(name, loading)
        device = loading.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = _placed(model, device)
        bridge = _bridge(name, model, vocabulary, device) if form_of(model) == "text" else None
    if bridge is not None:
        return bridge, vocabulary
    return (model if loading.dtype else model.to(stored)).eval(), vocabulary


def _loaded(name: str, loading: Loading) -> tuple[Any, Vocabulary, torch.dtype]:
    """The model of transformers on the CPU, in `loading.dtype` or float32, its vocabulary, and the type that its files
    are in."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    place, gguf = _files(name, loading.allow_pickle)
    options: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    options |= {} if gguf is None else {"gguf_file": gguf}
    options |= {} if loading.revision is None else {"revision": loading.revision}
    with _explained(name, "configuration"):
        config = AutoConfig.from_pretrained(place, **options)
    if getattr(config, "auto_map", None) and not loading.trust_remote_code:
        say(f"{name} brings code of its own, which is not run: transformers' {type(config).__name__} is used.")
    with _explained(name, "tokenizer"):
        vocabulary = Vocabulary(AutoTokenizer.from_pretrained(place, **options))
    with _explained(name, "weights"):
        own: Any = getattr(transformers, HEADS[_form(config)])  # its own type has no report of the loading
        model, found = own.from_pretrained(
            place, **options, weights_only=True, use_safetensors=None if loading.allow_pickle else True,
            dtype=getattr(torch, loading.dtype or "float32"), output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    _check_complete(name, found)
    if gguf is not None:  # read into plain tensors: nothing of it is quantised any more
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
    return model, vocabulary, getattr(config, "dtype", None) or torch.float32


def form_of(model: nn.Module) -> str:
    """What a loaded model does, as `corpora.load` names it: "text", "masked", "pairs" or "classes"."""
    own = getattr(model, "get_base_model", lambda: model)()
    return _form(getattr(own, "config", None), type(own).__name__)


def _form(config: Any, name: str = "") -> str:
    names = [name, *(getattr(config, "architectures", None) or [])]
    if getattr(config, "is_encoder_decoder", False):
        return "pairs"
    ends = {"ForSequenceClassification": "classes", "ForMaskedLM": "masked"}
    return next((form for end, form in ends.items() if any(n.endswith(end) for n in names)), "text")


def save_pretrained(
    folder: Path, name: str, loading: Loading, original: nn.Module, changed: nn.Module, *, quiet: bool = False
) -> None:
    """Write a changed copy of a loaded model, with its tokenizer, as transformers opens it.

    Args:
        folder: where.
        name, loading: what `original` was loaded from, and how.
        original: the model as it was loaded: a bridge may show one matrix of the library as several.
        changed: a copy of it with other weights.
        quiet: show no progress bars.

    Of a model with adapters, which alone are trained, the adapters are written. Raises ModelError if the library's
    model cannot be made equal to the changed one.
    """
    changed.eval()  # not as for a borrowed model: a bridge has modules, of dropout, that are not in its tree
    if (Path(name) / ADAPTER).is_file():
        adapted: Any = changed
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = str(_base_of(name, loading))
        adapted.save_pretrained(folder)
        return
    with _bars(not quiet), torch.no_grad():
        plain, vocabulary, _ = _loaded(name, replace(loading, device=None))
        plain.to(next(changed.parameters()).dtype).eval()
        found, ids = _own_tensors(original, changed), torch.arange(1, 9)[None] % len(vocabulary)
        for own, parameter in plain.named_parameters():
            value = found.get(own)
            if value is None or value.shape != parameter.shape:
                raise ModelError(f"No weights of the changed model stand for {own}.", NAMES)
            parameter.copy_(value)
        want = changed(ids.to(next(changed.parameters()).device))
        want, got = (getattr(out, "logits", out).float().cpu() for out in (want, plain(ids)))
        if not torch.allclose(want, got, rtol=1e-2, atol=1e-2 * float(want.abs().max())):
            raise ModelError(f"{name} with the changed weights gives other outputs in transformers than here.", NAMES)
        plain.save_pretrained(folder)
        vocabulary.tokenizer.save_pretrained(folder)


def _own_tensors(original: nn.Module, changed: nn.Module) -> dict[str, torch.Tensor]:
    """The changed weights by the names of the model's own library. Where the original shows a part of a matrix as a
    parameter of its own (queries, keys and values of a joint map), the changed part is written into the matrix."""
    before, names = named_parameters(original), own_parameters(original)
    after: dict[str, torch.Tensor] = {n: p.detach().cpu().clone() for n, p in named_parameters(changed).items()}
    for part, whole in parts_of(original).items():
        own, after[whole] = before[part], after[whole].contiguous()
        place = own.storage_offset() - before[whole].storage_offset()
        after[whole].as_strided(own.shape, own.stride(), place).copy_(after[part])
    return {names.get(name, name): value for name, value in after.items()}


def _files(name: str, allow_pickle: bool) -> tuple[str, str | None]:
    """What transformers is to read: the folder or hub name, and the GGUF file in it if it is one."""
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        found = sorted(file.name for file in path.glob("*.gguf"))
        if len(found) > 1:
            raise ModelError(f"The folder {name} has {len(found)} GGUF files.", f"Give one: {path / found[0]}.")
        if not found:
            raise ModelError(f"The folder {name} has no config.json.", WRITE)
        path = path / found[0]
    if path.suffix == ".gguf":
        if not path.is_file() and path.parent.is_dir():
            raise ModelError(f"There is no file {name}.", "Give the path of a GGUF file.")
        _needs("gguf", f"{name} is a GGUF file, which the package gguf reads.")
        return str(path.parent), path.name
    if path.is_file():
        raise ModelError(f"{name} is a file.", f"Give its folder, {path.parent}.")
    if path.is_dir():
        if not any(file for pattern in TOKENIZER_FILES for file in path.glob(pattern)):
            raise ModelError(f"The folder {name} has no tokenizer.", WRITE)
        if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")) and not allow_pickle:
            raise ModelError(f"The weights of {name} are a pickle, which can hold code: it is not read.", PICKLE)
    return name, None


def _needs(package: str, why: str) -> None:
    """Raise UsageError, with the command that installs it, if a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(why, f"pip install {package}")


def _adapted(name: str, loading: Loading) -> tuple[nn.Module, Vocabulary]:
    """A base model with the adapters of a folder on it, which are trained; the base is frozen."""
    _needs("peft", f"{name} holds adapters, which the package peft reads.")
    from peft import PeftModel
    from transformers import AutoTokenizer

    folder, base = Path(name), _base_of(name, loading)
    if not (folder / "adapter_model.safetensors").is_file() and not loading.allow_pickle:
        raise ModelError(f"{name} has no adapter_model.safetensors.", PICKLE)
    try:
        model, vocabulary, _ = _loaded(base, replace(loading, base=None))
    except ModelError as error:
        raise ModelError(f"The base of {name}: {error.cause}", f"{error.cure} Or name its base with --base.") from error
    if any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        with _explained(name, "tokenizer"):
            vocabulary = Vocabulary(AutoTokenizer.from_pretrained(name, trust_remote_code=loading.trust_remote_code))
    with _explained(name, "adapters"):
        adapted: Any = PeftModel.from_pretrained(model, name, is_trainable=True)
    return _placed(adapted, loading.device or "cpu").eval(), vocabulary


def _base_of(name: str, loading: Loading) -> str:
    """The model that the adapters in a folder are for. Raises ModelError if nothing names it."""
    with _explained(name, "adapter's configuration"):
        named = json.loads((Path(name) / ADAPTER).read_text("utf-8")).get("base_model_name_or_path")
    base = loading.base or named
    if not base:
        raise ModelError(f"{name} does not name the model that its adapters are for.", "Give --base MODEL.")
    beside = Path(name) / base
    return str(beside) if loading.base is None and not Path(base).is_dir() and beside.is_dir() else base


def _placed(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The model cannot be moved to {device}: {str(error).splitlines()[0]}",
            "Leave --device out, or install a torch that sees this device (docs/gpu.md).",
        ) from error


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
def _bars(shown: bool) -> Iterator[None]:
    """The progress bars of transformers and of the hub, or none of them and none in a log. As before at the end."""
    from transformers.utils import logging

    before, shown = logging.is_progress_bar_enabled(), shown and redraws()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before and not shown:
            logging.enable_progress_bar()


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
    except OSError as error:
        if "safetensors" not in str(error) or part != "weights":
            raise _failed(name, part, error) from error
        raise ModelError(
            f"{name} has no weights in safetensors files.", f"{PICKLE} Or check that the copy is whole."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} needs code of its own (auto_map), which is not run.",
                "Read that code; then allow it by name, or load the model yourself and call Whence from Python.",
            ) from error
        raise _failed(name, part, error) from error


def _failed(name: str, part: str, error: Exception) -> ModelError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if part == "configuration" and "connect to" in first:
        return ModelError(
            f"There is no folder or file {name!r} here, and the hub, which may have such a model, cannot be reached.",
            "Check the path: it leads to a folder with config.json, written by save_pretrained.",
        )
    return ModelError(
        f"The {part} of {name!r} could not be loaded: {type(error).__name__}: {first}",
        "Give demo, biographies, a folder written by save_pretrained, or a hub name if there is a network.",
    )


def _bridge(name: str, model: nn.Module, vocabulary: Vocabulary, device: str) -> nn.Module | None:
    """The model as a TransformerLens bridge, None if that library does not support its architecture."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        own = copy.deepcopy(vocabulary.tokenizer)  # the library adds tokens to what it is given
        return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=own, device=device).eval()
    except (ValueError, KeyError, NotImplementedError):
        return None
