"""bfloat16 as a Zarr data type, under the name and byte layout that tensorstore uses.

Zarr 3.1 knows no bfloat16, and an array of it assigned to a uint16 one is value-cast without a word (1.0 turns
into 1). Importing this module registers the type, so both directions go through bits. Endianness is a mixin
because Zarr's bytes codec writes no `endian` for a type without it, and other readers then refuse the array.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.npy.common import check_json_floatish_str
from zarr.core.dtype.wrapper import ZDType
from zarr.dtype import data_type_registry

BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """The Zarr v3 data type "bfloat16": little-endian, two bytes, numpy side `ml_dtypes.bfloat16`."""

    dtype_cls = type(BFLOAT16)
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return dtype == BFLOAT16

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> "BFloat16":
        if cls._check_native_dtype(dtype):
            return cls(endianness="little")
        raise DataTypeValidationError(f"{dtype} is not bfloat16.")

    def to_native_dtype(self) -> Any:
        return BFLOAT16

    @classmethod
    def _from_json_v2(cls, data: Any) -> "BFloat16":
        raise DataTypeValidationError("bfloat16 exists in Zarr v3 only.")

    @classmethod
    def _from_json_v3(cls, data: Any) -> "BFloat16":
        if data == cls._zarr_v3_name:
            return cls(endianness="little")
        raise DataTypeValidationError(f"{data!r} is not the name of bfloat16.")

    def to_json(self, zarr_format: Any) -> Any:
        if zarr_format != 3:
            raise ValueError("bfloat16 exists in Zarr v3 only.")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.floating, np.integer, ml_dtypes.bfloat16)) or (
            isinstance(data, str) and check_json_floatish_str(data)
        )

    def cast_scalar(self, data: Any) -> Any:
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number that bfloat16 can hold.")
        return BFLOAT16.type(float(data))

    def default_scalar(self) -> Any:
        return BFLOAT16.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        return self.cast_scalar(data)

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> Any:
        value = float(self.cast_scalar(data))
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value

    @property
    def item_size(self) -> int:
        return 2


def register() -> None:
    """Make Zarr know the type; called on import, once."""
    if BFloat16._zarr_v3_name not in data_type_registry.contents:
        data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)


register()
