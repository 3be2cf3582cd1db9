"""Dictionaries on disk: a folder with `dictionary.safetensors` and `manifest.json`; and in the store.

The manifest holds what is not an array, and the digest of the tensors, so that a damaged file is told from a
sound one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from whence.cache.errors import CorruptEntry, DataError, NewerFormat, StoreError
from whence.cache.store.store import Store

from .activations import Activations, Origin
from .dictionary import Dictionary, Provenance, Text

FORMAT = 1
TENSORS, MANIFEST = "dictionary.safetensors", "manifest.json"


def tensors_of(dictionary: Dictionary) -> dict[str, np.ndarray]:
    """Arrays by name: atoms, centre when there is one, and the columns of the provenance."""
    arrays = {"atoms": dictionary.atoms, **dictionary.provenance._asdict()}
    if dictionary.centre is not None:
        arrays["centre"] = dictionary.centre
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def manifest_of(dictionary: Dictionary) -> dict[str, Any]:
    """Everything that is not an array, as JSON."""
    return {
        "format": FORMAT,
        "kind": "dictionary",
        "k": dictionary.k,
        "pursuit": dictionary.pursuit,
        "origin": vars(dictionary.origin),
        "settings": dict(dictionary.settings),
        "log": [dict(note) for note in dictionary.log],
        "text": None if dictionary.text is None else [list(text) for text in dictionary.text],
        "fingerprint": dictionary.fingerprint,
    }


def dictionary_of(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], where: str) -> Dictionary:
    """Puts a dictionary together. Raises NewerFormat, or CorruptEntry where something is missing or differs."""
    if int(manifest.get("format", 0)) > FORMAT:
        raise NewerFormat(f"{where} was written by a later version of Whence.", "Update Whence.")
    try:
        dictionary = Dictionary(
            atoms=np.asarray(arrays["atoms"], np.float32),
            provenance=Provenance(*(np.asarray(arrays[name]) for name in Provenance._fields)),
            k=int(manifest["k"]),
            origin=Origin(**manifest["origin"]),
            centre=arrays.get("centre"),
            pursuit=manifest["pursuit"],
            settings=manifest["settings"],
            log=tuple(manifest["log"]),
            text=None if manifest["text"] is None else tuple(Text(*text) for text in manifest["text"]),
        )
    except (KeyError, TypeError, DataError) as error:
        raise CorruptEntry(f"{where} is not a whole dictionary ({error!r}).", "Write it again.") from error
    if dictionary.fingerprint != manifest.get("fingerprint"):
        raise CorruptEntry(f"The arrays in {where} are not those that its manifest names.", "Write it again.")
    return dictionary


def save(dictionary: Dictionary, folder: str | Path) -> Path:
    """Writes the folder; the manifest last. Raises StoreError where it cannot be written.

    >>> save(dictionary, folder / "atoms").name
    'atoms'
    """
    path = Path(folder)
    data = save_tensors(tensors_of(dictionary))
    manifest = {**manifest_of(dictionary), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / TENSORS).write_bytes(data)
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from error
    return path


def load(folder: str | Path) -> Dictionary:
    """Reads a folder written by `save`. Raises StoreError when there is none, CorruptEntry when it is damaged.

    >>> load(save(dictionary, folder / "atoms")).fingerprint == dictionary.fingerprint
    True
    """
    path = Path(folder)
    if not (path / MANIFEST).exists():
        raise StoreError(f"There is no dictionary in {path}.", f"A dictionary is a folder with {MANIFEST}.")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        data = (path / TENSORS).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise CorruptEntry(f"{path / TENSORS} has been changed or cut short.", "Export it again.")
        arrays = load_tensors(data)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, SafetensorError, FileNotFoundError) as error:
        raise CorruptEntry(f"{path} cannot be read ({error}).", "Export it again.") from error
    return dictionary_of(arrays, manifest, str(path))


def put(dictionary: Dictionary, store: Store, inputs: Mapping[str, Any] | None = None) -> Any:
    """Keeps a dictionary in the store, under `inputs` (default: its fingerprint), and returns the entry."""
    manifest = json.dumps(manifest_of(dictionary)).encode()
    arrays = {**tensors_of(dictionary), "manifest": np.frombuffer(manifest, np.uint8)}
    arrays["seed"] = arrays["seed"].astype(np.int8)
    key = {"fingerprint": dictionary.fingerprint} if inputs is None else inputs
    about = {"atoms": len(dictionary), "width": dictionary.width, "origin": vars(dictionary.origin)}
    return store.put("dictionary", key, arrays, about=about)


def from_entry(entry: Any) -> Dictionary:
    """The dictionary of a store's entry."""
    arrays = {name: np.asarray(entry.read(name)) for name in entry.arrays}
    arrays["seed"] = arrays["seed"].astype(bool)
    manifest = json.loads(arrays.pop("manifest").tobytes())
    return dictionary_of(arrays, manifest, f"the dictionary {entry.key[:12]}")


def build_once(
    builder: Any, acts: Activations, store: Store, inputs: Mapping[str, Any], quiet: bool = True, **how: Any
) -> Dictionary:
    """The dictionary that `builder` makes of these activations: from the store when it is there, else built now and
    kept there. inputs: what fixes the rows of `acts` beyond their origin (what was left out, how they were split);
    how: more for the builder's `build` (a checkpoint), which changes nothing in the result."""
    key = {"builder": {"class": type(builder).__name__, **asdict(builder)}, "origin": asdict(acts.origin), **inputs}
    if store.has("dictionary", key):
        return from_entry(store.open("dictionary", key))
    dictionary = builder.build(acts, quiet=quiet, **how)
    put(dictionary, store, key)
    return dictionary
