"""Precision of matrix products.

float32: full products (on a GPU too, where JAX by itself rounds inputs to TF32). tf32: inputs rounded to 10 bits on
GPUs that have it; elsewhere the same as float32. bfloat16: inputs rounded to 8 bits, sums in float32; half the memory
for queries. Eigenvalues, sums over examples and inverses are never narrower than float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import torch

Precision = Literal["float32", "tf32", "bfloat16"]

_PRODUCTS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """A context in which products of float32 arrays have this precision: JAX's, and those of the model's own passes,
    where "bfloat16" is TF32 on a GPU."""
    gpu, cpu = torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul
    before = gpu.allow_tf32, cpu.fp32_precision
    with jax.default_matmul_precision(_PRODUCTS[precision]):
        try:
            gpu.allow_tf32 = before[0] or precision != "float32"
            cpu.fp32_precision = "bf16" if precision == "bfloat16" else before[1]
            yield
        finally:
            gpu.allow_tf32, cpu.fp32_precision = before


def narrowed(array: jax.Array, precision: Precision) -> jax.Array:
    """The array in the type that products take."""
    return array.astype(jnp.bfloat16) if precision == "bfloat16" else array


def itemsize(precision: Precision) -> int:
    """Bytes of a number in that type."""
    return 2 if precision == "bfloat16" else 4
