"""A builder's state on disk, so that a long build resumes and gives the same result."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from whence.cache.errors import CorruptEntry, UsageError

from ..kernels import Basis
from ..provenance import Provenance
from .growth import Grown


def write(path: Path, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Arrays and JSON. Writes beside and renames, so that an interrupted save leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    about = json.dumps({**state, "settings": dict(settings)})
    whole = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    save_file(whole, beside, {"about": about})
    os.replace(beside, path)


def read(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Raises UsageError when the checkpoint is of a build with other settings or rows, CorruptEntry when damaged."""
    try:
        with safe_open(str(path), "np") as file:
            about = json.loads(file.metadata()["about"])
        arrays = load_file(path)
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError) as error:
        raise CorruptEntry(f"{path} is not a whole checkpoint.", "Delete it and build again.") from error
    if about["settings"] != json.loads(json.dumps(dict(settings))):
        raise UsageError(
            f"{path} is the checkpoint of a build with other settings or rows ({about['settings']}).",
            "Use the same settings and activations, or another checkpoint file; or delete this one to begin anew.",
        )
    return arrays, about


def save(path: Path, grown: Grown, settings: Mapping[str, Any]) -> None:
    """The state of a dictionary that grows."""
    arrays = {"atoms": np.asarray(grown.basis.atoms), **grown.provenance._asdict()}
    if grown.basis.gram is not None:
        arrays["gram"] = np.asarray(grown.basis.gram)  # kept: computed anew it may round otherwise
    write(path, arrays, settings, {"count": grown.filled, "taken": grown.taken, "curve": grown.curve})


def load(path: Path, settings: Mapping[str, Any]) -> Grown:
    """Raises the errors of `read`."""
    arrays, about = read(path, settings)
    gram = jnp.asarray(arrays["gram"]) if "gram" in arrays else None
    provenance = Provenance(*(arrays[name] for name in Provenance._fields))
    curve = tuple((int(t), int(n)) for t, n in about["curve"])
    return Grown(Basis(jnp.asarray(arrays["atoms"]), gram), about["count"], provenance, about["taken"], curve)
