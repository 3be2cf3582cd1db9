"""Folders of sparsify (EleutherAI): `cfg.json` and `sae.safetensors`, one-shot TopK autoencoders.

Its encoder takes the k largest of relu(W (x − b) + bias) at once. Our TopK autoencoders are exactly that. A
dictionary is not: pursuit takes one atom, subtracts it, and looks again. So a dictionary is written only on request,
mirrored and tied, and its codes there are equal to ours for k = 1 alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from whence.cache.errors import CorruptEntry, ModelError, UsageError

from ..activations import Origin
from ..autoencoder import SparseAutoencoder
from ..dictionary import Dictionary
from ..files import written_folder
from .mirror import mirrored
from .saelens import read

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def save(codec: SparseAutoencoder | Dictionary, folder: str | Path, *, one_shot: bool = False) -> Path:
    """Writes the folder that sparsify's `SparseCoder.load_from_disk` opens.

    one_shot: write a dictionary although its codes will differ (see above). Raises UsageError without it, or for a
    BatchTopK autoencoder, whose threshold the format has no place for.
    """
    if isinstance(codec, Dictionary):
        if not one_shot:
            raise UsageError(
                "sparsify takes the k largest latents at once; pursuit takes them one after another.",
                "Export to SAELens, which has matching pursuit; or ask for one-shot codes (one_shot=True, --one-shot).",
            )
        decoder = mirrored(codec).atoms
        encoder, bias = decoder, np.zeros(len(decoder), np.float32)
        centre = np.zeros(codec.width, np.float32) if codec.centre is None else codec.centre
    else:
        if codec.kind != "topk":
            raise UsageError("sparsify has no threshold for BatchTopK.", "Export a TopK autoencoder.")
        encoder, bias, decoder, centre = codec.encoder.T, codec.bias, codec.atoms, codec.centre
    config = {
        "activation": "topk",
        "expansion_factor": max(1, len(decoder) // codec.width),
        "normalize_decoder": True,
        "num_latents": len(decoder),
        "k": codec.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": codec.width,
    }
    tensors = {"encoder.weight": encoder, "encoder.bias": bias, "W_dec": decoder, "b_dec": centre}
    with written_folder(folder) as path:
        save_file({n: np.ascontiguousarray(a, np.float32) for n, a in tensors.items()}, path / WEIGHTS)
        (path / CONFIG).write_text(json.dumps(config))
    return path


def load(folder: str | Path, site: str = "") -> SparseAutoencoder:
    """The autoencoder in a folder, its decoder rows as they are.

    site: its hook point (sparsify keeps it in the folder's name only). Raises StoreError, CorruptEntry, or
    ModelError for transcoders and other activations than TopK.
    """
    path = Path(folder)
    config, arrays = read(path, CONFIG, WEIGHTS)
    if config.get("transcode") or config.get("skip_connection") or config.get("activation", "topk") != "topk":
        raise ModelError(f"{path} is no plain TopK autoencoder.", "Use sparsify itself for it.")
    try:
        parts: dict[str, Any] = {
            name: arrays[name].astype(np.float32) for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
        }
        k, width = int(config["k"]), int(config["d_in"])
    except KeyError as error:
        raise CorruptEntry(f"{path} lacks {error}.", "Export it again.") from error
    if parts["W_dec"].shape[1] != width or parts["W_dec"].shape != parts["encoder.weight"].shape:
        raise CorruptEntry(f"{path}: its weights are not those that {CONFIG} describes.", "Export it again.")
    return SparseAutoencoder(
        parts["encoder.weight"].T,
        parts["encoder.bias"],
        parts["W_dec"],
        parts["b_dec"],
        k,
        origin=Origin(site),
    )
