"""SAELens folders, architecture `matching_pursuit`: written so that SAELens encodes as we do, and read back.

SAELens's encoder is matching pursuit with non-negative coefficients, tied to W_dec. A signed dictionary is written
with mirrored atoms, which is exact; one with another encoder than matching pursuit has no equal there and is
refused. The places of the atoms are in `provenance.safetensors`, which the metadata names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from whence.cache.errors import CorruptEntry, ModelError, StoreError, UsageError

from ..activations import Origin
from ..autoencoder import SparseAutoencoder
from ..dictionary import Dictionary
from ..files import written_folder
from ..provenance import Provenance, Text
from .mirror import mirrored

WEIGHTS, CONFIG, PROVENANCE, SPARSITY = (
    "sae_weights.safetensors",
    "cfg.json",
    "provenance.safetensors",
    "sparsity.safetensors",
)
VERSION = "6.54.12"  # the SAELens that this layout is tested against; below 6 it would be converted on loading


def save(
    dictionary: Dictionary,
    folder: str | Path,
    *,
    model_name: str = "",
    k: int | None = None,
    calibration: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the folder that `SAE.load_from_disk` opens.

    model_name: as TransformerLens names it; k: pursuit steps (the dictionary's own by default); calibration: [t d]
    to leave out mirrored atoms that never fire on them; metadata: more of it (context_size, dataset_path, ...).
    Raises UsageError for a dictionary whose encoder is not matching pursuit, StoreError when it cannot be written.
    """
    if dictionary.pursuit not in ("matching", "nonnegative"):
        raise UsageError(
            f"SAELens has no encoder {dictionary.pursuit!r}.",
            "Export with pursuit='matching'; the atoms are the same.",
        )
    rows = mirrored(dictionary, calibration, k)
    centre = dictionary.centre if dictionary.centre is not None else np.zeros(dictionary.width, np.float32)
    places = {**rows.provenance._asdict(), "parent": rows.parent.astype(np.int64)}
    text = {} if dictionary.text is None else {"text": json.dumps([list(t) for t in dictionary.text])}
    with written_folder(folder) as path:
        save_file({"W_dec": np.ascontiguousarray(rows.atoms), "b_dec": np.asarray(centre)}, path / WEIGHTS)
        save_file(
            {name: np.ascontiguousarray(column) for name, column in places.items()},
            path / PROVENANCE,
            {"pursuit": dictionary.pursuit, **text},
        )
        if calibration is not None:
            density = _log_density(dictionary, rows.parent, rows.provenance.sign, calibration, k)
            save_file({"sparsity": density}, path / SPARSITY)
        config = _config(dictionary, len(rows.atoms), k, {"model_name": model_name, **(metadata or {})})
        (path / CONFIG).write_text(json.dumps(config, indent=1))
    return path


def _config(dictionary: Dictionary, size: int, k: int | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`cfg.json` of so many rows, with these metadata beside its own."""
    about = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": "",
        "hook_name": dictionary.origin.site,
        "hf_hook_name": None,
        "prepend_bos": False,
        "context_size": None,
        "dataset_path": None,
        "neuronpedia_id": None,
        "provenance": PROVENANCE,
        "model_fingerprint": dictionary.origin.model,
        "data_fingerprint": dictionary.origin.data,
        "dictionary_fingerprint": dictionary.fingerprint,
        "builder": json.loads(json.dumps({n: v for n, v in dictionary.settings.items() if n != "curve"})),
    }
    return {
        "architecture": "matching_pursuit",
        "d_in": dictionary.width,
        "d_sae": size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "residual_threshold": 0.0,
        "max_iterations": dictionary.k if k is None else k,
        "stop_on_duplicate_support": False,
        "metadata": {**about, **metadata},
    }


def _log_density(dictionary: Dictionary, parent: np.ndarray, sign: np.ndarray, x: Any, k: int | None) -> np.ndarray:
    """log10 of the share of signals on which each exported row fires, −10 where none."""
    code = dictionary.encode(x, k=k)
    values, indices = np.asarray(code.values), np.asarray(code.indices)
    fired = [np.bincount(indices[s * values > 0], minlength=len(dictionary)) for s in (1, -1)]
    share = np.where(sign > 0, fired[0][parent], fired[1][parent]) / max(len(values), 1)
    return np.log10(np.maximum(share, 1e-10)).astype(np.float32)


def load(folder: str | Path) -> Dictionary | SparseAutoencoder:
    """A dictionary from a matching-pursuit folder (ours comes back with its places, mirrors folded in), or an
    autoencoder from one of architecture `topk`, `jumprelu` (BatchTopK is saved as that) or `standard`.

    Raises StoreError when nothing is there, CorruptEntry for a damaged folder, ModelError for an architecture or a
    scaling of its inputs that is not read here.
    """
    path = Path(folder)
    config, arrays = read(path, CONFIG, WEIGHTS)
    origin = Origin(str((config.get("metadata") or {}).get("hook_name") or ""))
    try:
        atoms, centre = arrays["W_dec"].astype(np.float32), arrays["b_dec"].astype(np.float32)
        kind = config["architecture"]
        if atoms.shape != (config["d_sae"], config["d_in"]):
            raise CorruptEntry(
                f"W_dec is {list(atoms.shape)}, {CONFIG} says {[config['d_sae'], config['d_in']]}.", "Export it again."
            )
        if kind == "matching_pursuit":
            return _dictionary(path, config, atoms, centre, origin)
        if config.get("normalize_activations", "none") in ("layer_norm", "constant_norm_rescale"):
            raise ModelError(
                f"{path} scales its inputs ({config['normalize_activations']}).", "Use SAELens itself for it."
            )
        if kind in ("topk", "jumprelu", "standard"):
            return _autoencoder(config, arrays, atoms, centre, origin)
    except KeyError as error:
        raise CorruptEntry(f"{path} lacks {error}.", "Export it again.") from error
    raise ModelError(
        f"{path} has the architecture {kind!r}.",
        "matching_pursuit, topk, jumprelu and standard are read; use SAELens itself for the others.",
    )


def read(path: Path, config: str, weights: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The two files of a folder. Raises StoreError where they are not, CorruptEntry where they are damaged."""
    if not (path / config).exists() or not (path / weights).exists():
        raise StoreError(f"{path} lacks {config} or {weights}.", "Give the folder that holds both.")
    try:
        return json.loads((path / config).read_text()), load_file(path / weights)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CorruptEntry(f"{path} cannot be read ({error}).", "Export it again.") from error


def _autoencoder(
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    atoms: np.ndarray,
    centre: np.ndarray,
    origin: Origin,
) -> SparseAutoencoder:
    """Decoder rows are kept as they are: the choice of the k largest depends on them, unless the configuration says
    that latents are counted in units of their row's norm."""
    encoder: Any = arrays["W_enc"].astype(np.float32)
    bias: Any = arrays["b_enc"].astype(np.float32)
    if config.get("rescale_acts_by_decoder_norm"):
        norms = np.linalg.norm(atoms, axis=1).astype(np.float32)
        encoder, bias, atoms = encoder * norms, bias * norms, atoms / norms[:, None]
    if not config.get("apply_b_dec_to_input", True):
        bias = bias + centre @ encoder
    if config["architecture"] == "topk":
        return SparseAutoencoder(encoder, bias, atoms, centre, int(config["k"]), origin=origin)
    threshold: Any = 0.0
    if config["architecture"] == "jumprelu":  # passed by what exceeds it; ours by what reaches it
        threshold = np.nextafter(arrays["threshold"].astype(np.float32), np.float32(np.inf))
    return SparseAutoencoder(encoder, bias, atoms, centre, len(atoms), "jumprelu", threshold, origin)


def _dictionary(
    path: Path, config: Mapping[str, Any], atoms: np.ndarray, centre: np.ndarray, origin: Origin
) -> Dictionary:
    norms = np.linalg.norm(atoms, axis=1)
    if (norms == 0).any() or not np.isfinite(norms).all():
        raise CorruptEntry(f"{path} has atoms that are zero or not finite.", "Export it again.")
    metadata = config.get("metadata") or {}
    k = min(int(config["max_iterations"] or config["d_in"]), len(atoms))
    fixed = centre if centre.any() else None
    settings = {"imported": "SAELens", **(metadata.get("builder") or {})}
    if not (path / PROVENANCE).exists():
        provenance = Provenance.unknown(len(atoms))
        return Dictionary(atoms / norms[:, None], provenance, k, origin, fixed, "nonnegative", settings)
    from safetensors import safe_open

    with safe_open(str(path / PROVENANCE), "np") as file:
        about = file.metadata() or {}
    columns = load_file(path / PROVENANCE)
    original = columns["sign"] == 1 if about.get("pursuit") == "matching" else np.ones(len(atoms), bool)
    first = np.unique(columns["parent"][original], return_index=True)[1]
    chosen = np.flatnonzero(original)[first]
    origin = Origin(origin.site, metadata.get("model_fingerprint", ""), metadata.get("data_fingerprint", ""))
    return Dictionary(
        atoms[chosen],
        Provenance(*(columns[name][chosen] for name in Provenance._fields)),
        k,
        origin,
        fixed,
        about.get("pursuit", "matching"),
        settings,
        text=tuple(Text(*t) for t in json.loads(about["text"])) if "text" in about else None,
    )
