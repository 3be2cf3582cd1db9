"""Pretrained models: a folder that save_pretrained wrote, adapters on one, a GGUF file, or a hub name.

Weights are read from safetensors or GGUF, from torch pickles only if that is allowed by name (and then nothing but
tensors); no code of a model's own is run unless that is allowed. A model that lacks a tensor is refused: the library
would fill it with random numbers.
"""

import contextlib
import copy
import importlib.util
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

from .adapters import Adapters, adapters_of
from .corpora import ImageReader, Vocabulary
from .explained import PICKLE, explained
from .options import Loading

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
HEADS = {  # form of model (`corpora.rows.FORMS`) -> the class of transformers that loads it
    "text": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "pairs": "AutoModelForSeq2SeqLM",
    "classes": "AutoModelForSequenceClassification", "images": "AutoModelForImageClassification",
}  # fmt: skip
WRITE = "Give a folder written by save_pretrained of the model and of its tokenizer (or image processor)."
NAMES = "Give --out FILE.safetensors: it has the weights by the names that they have here."


def pretrained(
    name: str, loading: Loading | None = None, *, quiet: bool = False
) -> tuple[nn.Module, Vocabulary | None]:
    """A model in evaluation mode and its vocabulary (None of an image classifier, for which there is `image_reader`): a
    TransformerLens bridge if that library supports the architecture, else the model of transformers. Adapters (PEFT)
    are put on their base; they alone are trained, so they alone are attributed. quiet: show none of the libraries'
    progress bars.

    Raises ModelError if there is no such model, a file of it is missing or damaged, it needs code of its own, or its
    file lacks tensors; UsageError if a package that reads it is missing.
    """
    loading = loading or Loading()
    with _bars(not quiet):
        adapters = adapters_of(name, loading)
        if adapters is not None:
            return _adapted(adapters)
        model, vocabulary, stored = _loaded(name, loading)
        if loading.device_map is not None:
            return model.eval(), vocabulary
        device = loading.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = _placed(model, device)
        bridge = _bridge(name, model, vocabulary, device) if vocabulary and form_of(model) == "text" else None
    if bridge is not None:
        return bridge, vocabulary
    return (model if loading.dtype else model.to(stored)).eval(), vocabulary


def image_reader(name: str, loading: Loading | None = None) -> ImageReader:
    """How the image classifier of this name reads images: with the image processor and the names of classes that are
    saved beside it (those of its base, if it is adapters). Errors are those of `pretrained`."""
    from transformers import AutoConfig, AutoImageProcessor

    loading = loading or Loading()
    adapters = adapters_of(name, loading)
    if adapters is not None:
        return image_reader(adapters.base, adapters.loading)
    options = _options(loading)
    with explained(name, "configuration"):
        config = AutoConfig.from_pretrained(name, **options)
    with explained(name, "image processor"):  # the same pixels with and without torchvision
        processor = AutoImageProcessor.from_pretrained(name, backend="pil", **options)
    return ImageReader(processor, config.label2id, getattr(config, "num_channels", 3))


def _options(loading: Loading) -> dict[str, Any]:
    revision = {} if loading.revision is None else {"revision": loading.revision}
    return {"trust_remote_code": loading.trust_remote_code} | revision


def _loaded(name: str, loading: Loading) -> tuple[Any, Vocabulary | None, torch.dtype]:
    """The model of transformers on the CPU, in `loading.dtype` or float32, or over several devices in the type of its
    files; its vocabulary (None if it reads images); and that type."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    place, gguf = _files(name, loading.allow_pickle)
    options = _options(loading) | ({} if gguf is None else {"gguf_file": gguf})
    with explained(name, "configuration"):
        config = AutoConfig.from_pretrained(place, **options)
    form, vocabulary = _form(config), None
    _check_attributable(name, config)
    if getattr(config, "auto_map", None) and not loading.trust_remote_code:
        say(f"{name} brings code of its own, which is not run: transformers' {type(config).__name__} is used.")
    patterns = TOKENIZER_FILES if form != "images" else PROCESSOR_FILES
    if gguf is None and Path(name).is_dir() and not any(f for p in patterns for f in Path(name).glob(p)):
        lacking = "tokenizer" if form != "images" else "image processor (preprocessor_config.json)"
        raise ModelError(f"The folder {name} has no {lacking}.", WRITE)
    if form != "images":
        with explained(name, "tokenizer"):
            vocabulary = Vocabulary(AutoTokenizer.from_pretrained(place, **options))
    spread: dict[str, Any] = {"dtype": getattr(torch, loading.dtype or "float32")}
    if loading.device_map is not None:
        _needs("accelerate", "The package accelerate spreads a model over devices.")
        if loading.device is not None:
            raise UsageError("--device names one device, --device-map several.", "Give one of them.")
        spread = {"device_map": loading.device_map} | (spread if loading.dtype else {"dtype": "auto"})
    with explained(name, "weights"):
        own: Any = getattr(transformers, HEADS[form])  # its own type has no report of the loading
        model, found = own.from_pretrained(
            place, **options, **spread, weights_only=True, use_safetensors=None if loading.allow_pickle else True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    _check_complete(name, found)
    if gguf is not None:  # read into plain tensors: nothing of it is quantised any more
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
    return model, vocabulary, getattr(config, "dtype", None) or torch.float32


def form_of(model: nn.Module) -> str:
    """What a loaded model does, as `corpora.load` names it: "text", "masked", "pairs", "classes" or "images"."""
    own = getattr(model, "get_base_model", lambda: model)()
    return _form(getattr(own, "config", None), type(own).__name__)


def _form(config: Any, name: str = "") -> str:
    names = [name, *(getattr(config, "architectures", None) or [])]
    if getattr(config, "is_encoder_decoder", False):
        return "pairs"
    ends = {
        "ForSequenceClassification": "classes", "ForMaskedLM": "masked", "ForImageClassification": "images",
        "ForImageClassificationWithTeacher": "images",
    }  # fmt: skip
    return next((form for end, form in ends.items() if any(n.endswith(end) for n in names)), "text")


def save_pretrained(
    folder: Path, name: str, loading: Loading, original: nn.Module, changed: nn.Module, *, quiet: bool = False
) -> None:
    """Write a changed copy of a loaded model, with its tokenizer or image processor, as transformers opens it.

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
    adapters = adapters_of(name, loading)
    if adapters is not None:
        adapted: Any = changed
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = adapters.base
        adapted.save_pretrained(folder)
        return
    with _bars(not quiet), torch.no_grad():
        plain, vocabulary, _ = _loaded(name, replace(loading, device=None, device_map=None))
        dtype, found = next(changed.parameters()).dtype, _own_tensors(original, changed)
        plain.to(dtype).eval()
        if vocabulary is None:
            reader = image_reader(name, loading)
            beside, given = reader.processor, torch.as_tensor(reader.blank()[None], dtype=dtype)
        else:
            beside, given = vocabulary.tokenizer, torch.arange(1, 9)[None] % len(vocabulary)
        for own, parameter in plain.named_parameters():
            value = found.get(own)
            if value is None or value.shape != parameter.shape:
                raise ModelError(f"No weights of the changed model stand for {own}.", NAMES)
            parameter.copy_(value)
        want = changed(given.to(next(changed.parameters()).device))
        want, got = (getattr(out, "logits", out).float().cpu() for out in (want, plain(given)))
        if not torch.allclose(want, got, rtol=1e-2, atol=1e-2 * float(want.abs().max())):
            raise ModelError(f"{name} with the changed weights gives other outputs in transformers than here.", NAMES)
        plain.save_pretrained(folder)
        beside.save_pretrained(folder)


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
    if path.is_dir() and any(path.glob("*.bin")) and not any(path.glob("*.safetensors")) and not allow_pickle:
        raise ModelError(f"The weights of {name} are a pickle, which can hold code: it is not read.", PICKLE)
    return name, None


def _needs(package: str, why: str) -> None:
    """Raise UsageError, with the command that installs it, if a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(why, f"pip install {package}")


def _adapted(adapters: Adapters) -> tuple[nn.Module, Vocabulary | None]:
    """A base model with the adapters of a folder on it, which are trained; the base is frozen."""
    name, base, loading = adapters
    _needs("peft", f"{name} holds adapters, which the package peft reads.")
    from peft import PeftModel
    from transformers import AutoTokenizer

    folder = Path(name)
    if not (folder / "adapter_model.safetensors").is_file() and not loading.allow_pickle:
        raise ModelError(f"{name} has no adapter_model.safetensors.", PICKLE)
    try:
        model, vocabulary, _ = _loaded(base, loading)
    except ModelError as error:
        raise ModelError(f"The base of {name}: {error.cause}", f"{error.cure} Or name its base with --base.") from error
    if any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        with explained(name, "tokenizer"):
            vocabulary = Vocabulary(AutoTokenizer.from_pretrained(name, trust_remote_code=loading.trust_remote_code))
    with explained(name, "adapters"):
        adapted: Any = PeftModel.from_pretrained(model, name, is_trainable=True)
    return (adapted if loading.device_map else _placed(adapted, loading.device or "cpu")).eval(), vocabulary


def _placed(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The model cannot be moved to {device}: {str(error).splitlines()[0]}",
            "Leave --device out, or install a torch that sees this device (docs/gpu.md).",
        ) from error


def _check_attributable(name: str, config: Any) -> None:
    """Refuse a model whose examples have no loss of their own."""
    own = (getattr(config, "architectures", None) or [""])[0]
    if hasattr(config, "vision_config") and hasattr(config, "text_config") and own.endswith("Model"):
        raise ModelError(
            f"{name} is a {own}: its training compares every image with every text of a batch, so that an example has "
            "no loss of its own.",
            "Give a classifier that was made of it (CLIPForImageClassification, for instance). In Python, use "
            "tasks.ZeroShot, or write a Task whose loss is one pair's, as SigLIP's is (docs/models.md).",
        )


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


def _bridge(name: str, model: nn.Module, vocabulary: Vocabulary, device: str) -> nn.Module | None:
    """The model as a TransformerLens bridge, None if that library does not support its architecture."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        own = copy.deepcopy(vocabulary.tokenizer)  # the library adds tokens to what it is given
        return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=own, device=device).eval()
    except (ValueError, KeyError, NotImplementedError):
        return None
