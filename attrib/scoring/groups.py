"""Groups: influence of groups of training examples on groups of queries.

Influence is linear on both sides, so a group's influence is the sum of its members'. On the training side the group's
gradient is summed first, in one matrix product over positions, and multiplied with the queries once. The cost does not
grow with queries times examples, and nothing of size [query, example] is stored.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from whence.cache import DataError, Examples

from .. import kernels
from ..annotations import marked
from ..chosen import rows_of_ids
from ..curvature import Curvature
from .queries import exact_queries
from .rows import gradients_at_hand, row_source

if TYPE_CHECKING:
    import xarray

Groups = Mapping[str, Any]


def group_scores(
    factors: Curvature,
    queries: Examples,
    train: Examples,
    *,
    query_groups: Groups | None = None,
    train_groups: Groups | None = None,
) -> "xarray.DataArray":
    """See Factors.group_scores. If the store has the training gradients, the model is run for the queries only."""
    import xarray

    factors.check_model()
    query_members = members(queries, query_groups or {"all": np.ones(len(queries), bool)}, "queries")
    train_members = members(train, train_groups or {"all": np.ones(len(train), bool)}, "training examples")
    weights = jnp.asarray(np.stack(list(query_members.values())), jnp.float32)
    each = exact_queries(factors, queries)
    summed = {name: jnp.einsum("kq,qoi->koi", weights.astype(value.dtype), value) for name, value in each.items()}
    del each
    source = row_source(factors, train, gradients_at_hand(factors, train))
    out = np.empty((len(query_members), len(train_members)), np.float32)
    for column, mask in enumerate(train_members.values()):
        total: dict[str, kernels.Sum] = {}
        for batch in source.batches(np.flatnonzero(mask), desc=f"group {column + 1}"):
            for name in summed:
                a, g = batch.inputs[name], batch.grads[name]
                start = total.pop(name) if name in total else kernels.zero_sum(summed[name].shape[1:], a.dtype)
                total[name] = kernels.add_gradient(start, a, g)
        out[:, column] = -sum(_product(summed[name], total[name]) for name in summed)
    array = xarray.DataArray(
        out / np.float32(factors.train_size),
        dims=("query", "train"),
        coords={"query": list(query_members), "train": list(train_members)},
        name="influence",
        attrs={"units": factors.score_units, "measurement": factors.measure, **factors.labels}
        | {"meaning": "sum over the groups' members"},
    )
    if (each_logprob := factors.logprobs(queries)) is None or factors.score_units != "nats":
        return array
    logprob = np.stack([each_logprob[mask].sum() for mask in query_members.values()])
    return marked(array, factors.trained, logprob=logprob, caution=factors.caution)


def _product(queries: jax.Array, total: kernels.Sum) -> np.ndarray:
    return np.einsum("koi,oi->k", np.asarray(queries, np.float64), np.asarray(total.high + total.low, np.float64))


def members(examples: Examples, groups: Groups, what: str) -> dict[str, Bool[np.ndarray, " n"]]:
    """Groups as boolean masks over the examples."""
    found = {}
    for name, given in groups.items():
        array = np.asarray(given)
        if array.dtype == bool:
            if array.shape != (len(examples),):
                raise DataError(
                    f"The mask of group {name!r} has shape {array.shape}; there are {len(examples)} {what}.",
                    "Build the mask over the same examples, in the same order, or give the members' ids.",
                )
            mask = array
        else:
            mask = np.zeros(len(examples), bool)
            mask[rows_of_ids(examples, array, f"Group {name!r}")] = True
        if not mask.any():
            raise DataError(f"Group {name!r} has no {what} in it.", "Leave the group out, or check how it was chosen.")
        found[str(name)] = mask
    return found


def groups_by(examples: Examples, about: str) -> dict[str, Bool[np.ndarray, " n"]]:
    """Groups by a column of `examples.about` (title, topic, ...), one for each of its values: name -> mask. Raises
    DataError for an unknown column.

    >>> texts = Examples.of({"input_ids": [[1], [2], [3]]}, about={"topic": ["cats", "dogs", "cats"]})
    >>> groups_by(texts, "topic")["cats"].tolist()
    [True, False, True]
    """
    if about not in examples.about:
        raise DataError(
            f"These examples have no {about!r} in `about`.",
            f"They have: {', '.join(examples.about) or 'nothing'}.",
        )
    values: Sequence[Any] = [str(v) for v in examples.about[about]]
    return {value: np.array([v == value for v in values]) for value in dict.fromkeys(values)}
