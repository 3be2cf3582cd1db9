"""Dictionaries, autoencoders and transcoders on disk, a folder with their tensors and `manifest.json`; in the store.

The manifest holds what is not an array, and the digest of the tensors, so that a damaged file is distinguished from a
sound one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from whence.cache import Entry, Store
from whence.cache.errors import CorruptEntry, DataError, NewerFormat, StoreError

from .activations import Origin
from .autoencoder import SparseAutoencoder
from .codec import Codec
from .dictionary import Dictionary
from .provenance import Provenance, Text
from .transcoder import Transcoder

FORMAT = 1
MANIFEST = "manifest.json"
KIND = "dictionary"  # of entries in the store; the manifest says which codec it is
WEIGHTS = ("encoder", "bias", "atoms", "centre")


def tensors_of(codec: Codec) -> dict[str, np.ndarray]:
    """Arrays by name: atoms and the columns of the provenance of a dictionary, the weights of an autoencoder."""
    if isinstance(codec, Transcoder):
        arrays = {f"codec.{name}": array for name, array in tensors_of(codec.codec).items()}
        arrays |= {"outputs": codec.outputs, "centre": codec.centre}
    elif isinstance(codec, SparseAutoencoder):
        arrays = {name: getattr(codec, name) for name in WEIGHTS}
        arrays["threshold"] = np.asarray(codec.threshold, np.float32)
    else:
        assert isinstance(codec, Dictionary)
        arrays = {"atoms": codec.atoms, **codec.provenance._asdict()}
        if codec.centre is not None:
            arrays["centre"] = codec.centre
    return {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}


def manifest_of(codec: Codec) -> dict[str, Any]:
    """Everything that is not an array, as JSON."""
    if isinstance(codec, Transcoder):
        about: dict[str, Any] = {"kind": "transcoder", "codec": manifest_of(codec.codec), "to": codec.to}
        return {"format": FORMAT, **about, "fingerprint": codec.fingerprint}
    origin = vars(codec.origin)
    if isinstance(codec, SparseAutoencoder):
        about = {"kind": "autoencoder", "k": codec.k, "encoder": codec.kind, "origin": origin}
        return {"format": FORMAT, **about, "fingerprint": codec.fingerprint}
    assert isinstance(codec, Dictionary)
    return {
        "format": FORMAT,
        "kind": "dictionary",
        "k": codec.k,
        "pursuit": codec.pursuit,
        "origin": origin,
        "settings": dict(codec.settings),
        "log": [dict(note) for note in codec.log],
        "text": None if codec.text is None else [list(text) for text in codec.text],
        "fingerprint": codec.fingerprint,
    }


def codec_of(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], where: str) -> Any:
    """Put a codec together. Raises NewerFormat, or CorruptEntry if something is missing or differs."""
    if int(manifest.get("format", 0)) > FORMAT:
        raise NewerFormat(f"{where} was written by a later version of Whence.", "Update Whence.")
    kind = manifest.get("kind", "dictionary")
    try:
        found = KINDS[kind](arrays, manifest)
    except (KeyError, TypeError, DataError) as error:
        raise CorruptEntry(f"{where} is not a whole {kind} ({error!r}).", "Write it again.") from error
    if found.fingerprint != manifest.get("fingerprint"):
        raise CorruptEntry(f"The arrays in {where} are not those that its manifest names.", "Write it again.")
    return found


def _dictionary(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Dictionary:
    return Dictionary(
        atoms=np.asarray(arrays["atoms"], np.float32),
        provenance=Provenance(*(np.asarray(arrays[name]) for name in Provenance._fields))._replace(
            seed=np.asarray(arrays["seed"], bool)
        ),
        k=int(manifest["k"]),
        origin=Origin(**manifest["origin"]),
        centre=arrays.get("centre"),
        pursuit=manifest["pursuit"],
        settings=manifest["settings"],
        log=tuple(manifest["log"]),
        text=None if manifest["text"] is None else tuple(Text(*text) for text in manifest["text"]),
    )


def _autoencoder(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> SparseAutoencoder:
    threshold = np.asarray(arrays["threshold"], np.float32)
    threshold = threshold[0] if threshold.shape == (1,) else threshold  # the store has no array without axes
    return SparseAutoencoder(
        **{name: np.asarray(arrays[name], np.float32) for name in WEIGHTS},
        k=int(manifest["k"]),
        kind=manifest["encoder"],
        threshold=threshold if threshold.ndim else float(threshold),
        origin=Origin(**manifest["origin"]),
    )


def _transcoder(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Transcoder:
    inner = {name.removeprefix("codec."): array for name, array in arrays.items() if name.startswith("codec.")}
    codec = codec_of(inner, manifest["codec"], "the codec of a transcoder")
    outputs, centre = (np.asarray(arrays[name], np.float32) for name in ("outputs", "centre"))
    return Transcoder(codec, outputs, centre, manifest["to"])


KINDS: Mapping[str, Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Codec]] = {
    "dictionary": _dictionary,
    "autoencoder": _autoencoder,
    "transcoder": _transcoder,
}


def save(codec: Codec, folder: str | Path) -> Path:
    """Write the folder; the manifest last. Raises StoreError if it cannot be written.

    >>> save(dictionary, folder / "atoms").name
    'atoms'
    """
    data, manifest = save_tensors(tensors_of(codec)), manifest_of(codec)
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    with written_folder(folder) as path:
        (path / f"{manifest['kind']}.safetensors").write_bytes(data)
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return path


@contextmanager
def written_folder(folder: str | Path) -> Iterator[Path]:
    """The folder, there to be written into. Raises StoreError if it cannot be."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from error


def load(folder: str | Path) -> Any:
    """Read a folder written by `save`. Raises StoreError if there is none, CorruptEntry if it is damaged.

    >>> load(save(dictionary, folder / "atoms")).fingerprint == dictionary.fingerprint
    True
    """
    path = Path(folder)
    if not (path / MANIFEST).exists():
        raise StoreError(
            f"There is no dictionary in {path}.",
            f"Give a folder that `whence decomp build --out` wrote (it has a {MANIFEST}).",
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        tensors = path / f"{manifest.get('kind', 'dictionary')}.safetensors"
        data = tensors.read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise CorruptEntry(f"{tensors} has been changed or cut short.", "Export it again.")
        arrays = load_tensors(data)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, SafetensorError, FileNotFoundError) as error:
        raise CorruptEntry(f"{path} cannot be read ({error}).", "Export it again.") from error
    return codec_of(arrays, manifest, str(path))


def put(codec: Codec, store: Store, inputs: Mapping[str, Any] | None = None) -> Entry:
    """Keep a codec in the store, under `inputs` (by default a hash of all that it is), and return the entry."""
    about = manifest_of(codec)
    arrays = {**tensors_of(codec), "manifest": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, array in arrays.items():
        arrays[name] = (array.astype(np.int8) if array.dtype == bool else array).reshape(array.shape or (1,))
    if inputs is None:
        manifest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        inputs = {"fingerprint": about["fingerprint"], "manifest": manifest}
    shown = {"atoms": len(codec), "width": codec.width, "origin": vars(codec.origin)}
    return store.put(KIND, inputs, arrays, about=shown)


def from_entry(entry: Entry) -> Any:
    """The dictionary or autoencoder of a store's entry."""
    arrays = {name: np.asarray(entry.read(name)) for name in entry.arrays}
    manifest = json.loads(arrays.pop("manifest").tobytes())
    return codec_of(arrays, manifest, f"the {manifest['kind']} {entry.key[:12]}")
