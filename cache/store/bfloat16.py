"""bfloat16 as a Zarr data type, under the name and byte layout that tensorstore uses.

Zarr 3.1 has no bfloat16, and casts such an array by value when it is assigned to a uint16 one (1.0 turns into 1).
Importing this module registers the type. Endianness is part of the type because Zarr's bytes codec otherwise
writes no `endian`, and other readers then refuse the array.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import data_type_registry

BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)


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


if BFloat16._zarr_v3_name not in data_type_registry.contents:
    data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
