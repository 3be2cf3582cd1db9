"""bfloat16 as a Zarr data type, for arrays that are read through this package.

Zarr 3.1 has no bfloat16: it cannot open such an array, nor list a group that has one. So the files say uint16 (the
bits), with the attribute `logical_dtype`, and any reader views those as bfloat16. Entries of earlier versions say
"bfloat16" in their files, as tensorstore does. This package shows both as bfloat16: importing this module registers the
type, and `as_bfloat16` rewrites the metadata. Endianness is part of the type because Zarr's bytes codec otherwise
writes no `endian`, and other readers then refuse the array.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import data_type_registry

BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)
LOGICAL_DTYPE = "logical_dtype"


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """The Zarr v3 data type "bfloat16": little-endian, two bytes, `ml_dtypes.bfloat16` in numpy. Not in Zarr v2."""

    dtype_cls = type(BFLOAT16)
    _zarr_v3_name: ClassVar[Any] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return dtype == BFLOAT16

    def to_native_dtype(self) -> Any:
        return BFLOAT16

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return BFLOAT16.type(float(data))

    def cast_scalar(self, data: Any) -> Any:
        return self._cast_scalar_unchecked(data) if isinstance(data, ml_dtypes.bfloat16) else super().cast_scalar(data)

    @property
    def item_size(self) -> int:
        return 2


def as_bfloat16(metadata: bytes) -> bytes:
    """A `zarr.json` in which an array of bfloat16's bits has that type."""
    document = json.loads(metadata)
    if document.get("attributes", {}).get(LOGICAL_DTYPE) != "bfloat16":
        return metadata
    return json.dumps({**document, "data_type": "bfloat16", "fill_value": "NaN"}).encode()


if BFloat16._zarr_v3_name not in data_type_registry.contents:
    data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
