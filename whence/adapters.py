"""Adapters (PEFT) by name: their folder, which may be the hub's, and the model that they are for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from whence.cache import ModelError

from .explained import explained
from .options import Loading

ADAPTER = "adapter_config.json"
ADAPTER_FILES = ("adapter_*", "*.json", "*.txt", "*.model")


class Adapters(NamedTuple):
    """The folder of adapters, the model that they are for, and how that is loaded."""

    folder: str
    base: str
    loading: Loading


def adapters_of(name: str, loading: Loading) -> Adapters | None:
    """The adapters of this name: in a folder, or of a hub name in the local cache. None for whole models, and where
    the hub cannot be asked. A revision is that of what the name stands for: adapters of the hub state their base's.
    Raises ModelError if nothing names the base."""
    folder = name if (Path(name) / ADAPTER).is_file() else _downloaded(name, loading.revision)
    if folder is None:
        return None
    with explained(name, "adapter's configuration"):
        stated = json.loads((Path(folder) / ADAPTER).read_text("utf-8"))
    base = loading.base or stated.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{name} does not name the model that its adapters are for.", "Give --base MODEL.")
    beside = Path(folder) / base
    own = str(beside) if loading.base is None and not Path(base).is_dir() and beside.is_dir() else str(base)
    revision = (loading.revision if folder == name else None) or (None if loading.base else stated.get("revision"))
    return Adapters(folder, own, replace(loading, base=None, revision=revision))


def _downloaded(name: str, revision: str | None) -> str | None:
    """The folder, in the local cache, of adapters on the hub; None if the name is of something else."""
    if Path(name).exists() or Path(name).suffix == ".gguf":
        return None
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        return str(snapshot_download(name, revision=revision, allow_patterns=list(ADAPTER_FILES)))
    except (OSError, ValueError):  # also of a name that is none: what loads a whole model explains it
        return None
