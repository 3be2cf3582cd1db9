"""Influence of every attention head: rows of the query, key and value maps, columns of the output map.

A score is a sum over the entries of the gradient, so a head's share is the sum over its own rows (of a map that
writes heads) or columns (of one that reads them). The shares of a map's heads add up to the map's, except for the bias
of an output map, which belongs to no head. Fused maps (query, key and value in one) are split into the three first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from whence.cache import Examples, ModelError, Sites
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.model.sites import Site

from .. import kernels
from ..curvature import Curvature
from .queries import exact_queries
from .rows import Values, over_rows, row_inputs

if TYPE_CHECKING:
    import xarray

# last part(s) of a site's clean name -> what it writes or reads, and how many maps it fuses
WRITES = {
    "q": ("q",), "k": ("k",), "v": ("v",),
    "q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",),
    "query": ("q",), "key": ("k",), "value": ("v",),
    "in_proj[0]": ("q",), "in_proj[1]": ("k",), "in_proj[2]": ("v",),
    "qkv": ("q", "k", "v"), "c_attn": ("q", "k", "v"), "query_key_value": ("q", "k", "v"),
}  # fmt: skip
READS = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)(\.\w+)*\.(o|o_proj|c_proj|out_proj|dense|out)$")


@dataclass(frozen=True)
class Head:
    """One head's part of a site: output rows or input columns start to stop."""

    site: str
    part: str
    number: int
    axis: Literal["out", "in"]
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.site}/{self.part}{self.number}"


def find_heads(sites: Sites, heads: int, key_value_heads: int | None = None, width: int | None = None) -> list[Head]:
    """See Factors.heads."""
    found: list[Head] = []
    for site in sites:
        last = site.name.rpartition(".")[2]
        if last in WRITES:
            found += _cut(site, WRITES[last], heads, key_value_heads or heads, width)
        elif READS.search(site.name):
            found += _slices(site, "o", "in", 0, _read_width(site, heads, width), heads)
    if not found:
        raise ModelError(
            "None of these sites is an attention map with a known name.",
            "Fit on attention sites (named q, k, v, o, qkv, c_attn, q_proj, ...), or write the list of Head yourself.",
        )
    return found


def _cut(site: Site, parts: Sequence[str], heads: int, key_value: int, width: int | None) -> list[Head]:
    counts = [heads if part == "q" else key_value for part in parts]
    each = width or site.shape[0] // sum(counts)
    out, start = [], 0
    for part, count in zip(parts, counts):
        out += _slices(site, part, "out", start, each * count, count)
        start += each * count
    if start != site.shape[0]:
        raise _uneven(site, site.shape[0], heads)
    return out


def _read_width(site: Site, heads: int, width: int | None) -> int:
    """Input columns that belong to heads: all but the bias's."""
    if width is not None:
        return width * heads
    bias = any(attribute == "bias" for attribute, _ in site.parameters)
    return site.shape[1] - bias


def _slices(site: Site, part: str, axis: Literal["out", "in"], start: int, width: int, count: int) -> list[Head]:
    if width % count:
        raise _uneven(site, width, count)
    each = width // count
    return [Head(site.name, part, n, axis, start + n * each, start + (n + 1) * each) for n in range(count)]


def _uneven(site: Site, width: int, heads: int) -> ModelError:
    return ModelError(
        f"{site.name} is {width} wide, which does not divide into {heads} heads.",
        "Give the model's number of heads, of key and value heads, and the width of one head if it differs.",
    )


def head_scores(
    factors: Curvature,
    queries: Examples,
    train: Examples,
    heads: Sequence[Head],
) -> "xarray.DataArray":
    """Influence by head, [query, train, head], in nats, heads named site/part and number. See Factors.head_scores."""
    factors.check_model()
    unknown = sorted({head.site for head in heads} - set(factors.sites.names))
    if unknown:
        raise ModelError(f"The factors have no site {unknown[0]!r}.", f"They have {', '.join(factors.sites.names)}.")
    about = [[h.name, h.axis, h.start, h.stop] for h in heads]
    inputs = row_inputs(factors, train, queries=queries.fingerprint, what="heads", heads=about)
    work = _ByHead(factors, queries, tuple(heads))
    values = over_rows(factors, train, inputs, (len(queries), len(heads)), [(factors, work)], "heads")
    size = np.float32(factors.train_size)
    array = factors.labelled(values.transpose(1, 0, 2) / size, queries, train, last="head")
    return array.assign_coords(head=[head.name for head in heads])


@dataclass(frozen=True)
class _ByHead:
    """Scores of a batch's examples by head, times -N, [b q h]."""

    factors: Curvature
    queries: Examples
    heads: tuple[Head, ...]

    def __call__(self, source: BatchSource) -> Values:
        whole = exact_queries(self.factors, self.queries)
        parts_of_queries = [_part(whole[head.site], head, 1 if head.axis == "out" else 2) for head in self.heads]

        def values(batch: CapturedBatch) -> np.ndarray:
            parts = []
            for head, mine in zip(self.heads, parts_of_queries):
                a, g = batch.inputs[head.site], batch.grads[head.site]
                a, g = (a, _part(g, head, 2)) if head.axis == "out" else (_part(a, head, 2), g)
                parts.append(kernels.pair_products(mine, a, g))
            return -np.asarray(jnp.stack(parts, -1), np.float32).swapaxes(0, 1)[: len(batch.rows)]

        return values


def _part(array: Any, head: Head, axis: int) -> Any:
    index = [slice(None)] * array.ndim
    index[axis] = slice(head.start, head.stop)
    return array[tuple(index)]
