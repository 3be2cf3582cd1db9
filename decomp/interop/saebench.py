"""A dictionary as the object that SAEBench evaluates: pass `[("name", adapter(dictionary, ...))]`.

SAEBench wants dense codes [b s d_sae], a unit-norm W_dec [d_sae d_in], a W_enc of the transposed shape, zero biases
and a `cfg`. Codes are mirrored, because it counts densities of positive values only.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.cache.model.bridge import to_torch

from ..dictionary import Dictionary
from ..splice import signals
from .mirror import mirrored


@dataclass
class Config:
    """The fields that SAEBench reads."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    hook_head_index: int | None = None
    context_size: int = 128
    prepend_bos: bool = False
    normalize_activations: str = "none"
    architecture: str = "itda"
    dtype: str = "float32"
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Adapter(torch.nn.Module):
    """encode [... d] -> [... d_sae] non-negative; decode; forward = decode(encode(x))."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor

    def __init__(self, dictionary: Dictionary, cfg: Config, k: int | None = None):
        super().__init__()
        rows = mirrored(dictionary)
        self.dictionary, self.cfg, self.k = dictionary, cfg, k
        centre = np.zeros(dictionary.width, np.float32) if dictionary.centre is None else dictionary.centre
        self.register_buffer("W_dec", torch.from_numpy(rows.atoms.copy()))
        self.register_buffer("W_enc", torch.from_numpy(rows.atoms.T.copy()))
        self.register_buffer("b_dec", torch.from_numpy(centre.copy()))
        self.register_buffer("b_enc", torch.zeros(len(rows.atoms)))

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def encode(self, x: Tensor) -> Tensor:
        code = self.dictionary.encode_array(signals(x, self.dictionary.width), self.k)
        values, indices = to_torch(code.values), to_torch(code.indices).long()
        dense = values.new_zeros(len(values), len(self.W_dec))
        dense.scatter_add_(1, torch.where(values < 0, indices + len(self.dictionary), indices), values.abs())
        return dense.reshape(*x.shape[:-1], -1).to(self.dtype)

    def decode(self, code: Tensor) -> Tensor:
        return code @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def adapter(dictionary: Dictionary, model_name: str, layer: int, k: int | None = None, **more: Any) -> Adapter:
    """The adapter with its configuration; `more` sets other fields of `Config` (context_size, prepend_bos)."""
    size = len(dictionary) * (1 if dictionary.pursuit == "nonnegative" else 2)
    cfg = Config(model_name, dictionary.width, size, layer, dictionary.origin.site, **more)
    return Adapter(dictionary, cfg, k)
