"""What a result says beside its numbers: titles and texts, the log-probability of each query, and what cannot be right.

A predicted change of a log-probability that is larger than what is left of it, -log p, is impossible: the estimate is
outside the range in which it means anything. Such scores are marked, in the coordinate `impossible` and in
`attrs["warning"]`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from whence.cache import Classification, DataError, Examples, LanguageModelling, TrainedModel
from whence.cache.jobs.progress import say
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy

if TYPE_CHECKING:
    import xarray

TEXT = 80  # characters of a title or text that results carry
CERTAIN = 1e-6  # nats that a query's log-probability has left, below which it cannot be attributed
SLACK = 1e-3  # nats above what is left that rounding may give


def values_of(
    trained: TrainedModel, examples: Examples, of: Callable[[nn.Module, dict[str, Tensor]], Tensor]
) -> Float[np.ndarray, " n"]:
    """of(model, batch) -> [b] of every example, without gradients, in the examples' order."""
    out = np.empty(len(examples), np.float64)
    with borrowed(trained.model), torch.no_grad():
        for planned, tensors in trained.planned(examples, "values"):
            out[planned.rows] = to_numpy(of(trained.model, tensors).double())
    return out


def logprobs(trained: TrainedModel, queries: Examples) -> Float[np.ndarray, " q"] | None:
    """log p of every query: of its label, or of its counted tokens together. None for a task without probabilities, or
    queries without labels."""
    if not isinstance(trained.task, (LanguageModelling, Classification)):
        return None
    try:
        return -values_of(trained, queries, trained.task.loss)
    except DataError:
        return None


def impossible(
    values: Float[np.ndarray, "q n"], logprob: Float[np.ndarray, " q"], measure: str
) -> Bool[np.ndarray, "q n"]:
    """Whether a predicted change [q n] of the measurement would raise a query's probability above one."""
    if measure not in ("logprob", "loss"):
        return np.zeros(values.shape, bool)
    return (values if measure == "logprob" else -values) > -logprob[:, None] + SLACK


def annotated(
    scores: "xarray.DataArray",
    trained: TrainedModel,
    queries: Examples,
    train: Examples,
    *,
    logprob: Float[np.ndarray, " q"] | None,
    caution: str = "",
) -> "xarray.DataArray":
    """Scores [query, train, ...] with the coordinates `title` and `text` of the training examples and `query_text` (the
    beginnings of what `about` has), `logprob` of the queries, and, with `attrs["warning"]`, `impossible` [query, train]
    if a score is. The last axis is summed for it if it is `site`. caution: of the fit, first in the warning."""
    found: dict[str, Any] = {
        name: ("train", texts_of(train, name)) for name in ("title", "text") if name in train.about
    }
    found |= {"query_text": ("query", text)} if (text := query_texts(queries)) is not None else {}
    warnings: list[str] = []
    values = scores.values.sum(-1) if scores.dims[2:] == ("site",) else scores.values
    if logprob is not None:
        found["logprob"] = ("query", logprob)
        if scores.attrs["units"] == "nats" and values.ndim == 2:
            marks, said = _marks(scores, values, logprob)
            found, warnings = found | marks, warnings + said
    sure: Any = [] if logprob is None or scores.attrs["measurement"] not in ("logprob", "loss") else logprob > -CERTAIN
    if np.any(sure):
        warnings.append(
            f"The model is certain of the queries with ids {queries.ids[sure][:5].tolist()} (probability 1): the "
            'gradient of their log-probability vanishes, and so do their scores. measure="margin" has one.'
        )
    return scores.assign_coords(found).assign_attrs(warned(warnings, trained, caution))


def marked(
    scores: "xarray.DataArray", trained: TrainedModel, *, logprob: Float[np.ndarray, " q"], caution: str = ""
) -> "xarray.DataArray":
    """Scores [query, train] of groups, with the `logprob` of the queries' groups, and `impossible` and
    `attrs["warning"]` if a score is. caution: of the fit, first in the warning."""
    marks, said = _marks(scores, scores.values, logprob)
    return scores.assign_coords(logprob=("query", logprob), **marks).assign_attrs(warned(said, trained, caution))


def _marks(
    scores: "xarray.DataArray", values: Float[np.ndarray, "q n"], logprob: Float[np.ndarray, " q"]
) -> tuple[dict[str, Any], list[str]]:
    """The coordinate `impossible` [query, train] of scores with these values, if one is, and the warning about them."""
    marks = impossible(values, logprob, str(scores.attrs["measurement"]))
    said = impossible_text(values, logprob, marks, scores["query"].values, scores["train"].values)
    return {"impossible": (("query", "train"), marks)} if marks.any() else {}, said


def impossible_text(
    values: Float[np.ndarray, "q n"],
    logprob: Float[np.ndarray, " q"],
    marks: Bool[np.ndarray, "q n"],
    query_ids: np.ndarray,
    ids: np.ndarray,
) -> list[str]:
    """The warning about the scores that are marked, if any. query_ids: [q]. ids: of the training examples, [n] or
    [q n]."""
    if not marks.any():
        return []
    excess = np.where(marks, np.abs(values) + logprob[:, None], -np.inf)
    q, n = np.unravel_index(int(excess.argmax()), marks.shape)
    example = np.broadcast_to(ids, marks.shape)[q, n]
    return [
        f"{int(marks.sum())} of {marks.size} predicted changes are impossible: larger than what is left of the query's "
        f"log-probability (query {query_ids[q]}, example {example}: {abs(values[q, n]):.4g} nats predicted, "
        f"{-logprob[q]:.4g} left). Fit on more data, with a larger damping or at fewer sites; read ranks, not values."
    ]


def warned(warnings: list[str], trained: TrainedModel, caution: str = "") -> dict[str, str]:
    """The warnings as an attribute, after the caution of the fit; printed too, unless quiet. The fit has printed its
    caution."""
    if warnings and not trained.quiet:
        say(f"warning: {' '.join(warnings)}")
    text = " ".join([*([caution] if caution else []), *warnings])
    return {"warning": text} if text else {}


def texts_of(examples: Examples, name: str) -> np.ndarray:
    """The beginnings of what `about` has under this name, in one line each."""
    return np.array([" ".join(str(value)[: 2 * TEXT].split())[:TEXT] for value in examples.about[name]], str)


def query_texts(queries: Examples) -> np.ndarray | None:
    """The queries as text: prompt and completion, else text or title; None if they have none."""
    if {"prompt", "completion"} <= set(queries.about):
        pairs = zip(queries.about["prompt"], queries.about["completion"])
        return np.array([f"{str(prompt)[-TEXT:]}{str(completion)[:TEXT]}" for prompt, completion in pairs], str)
    return next((texts_of(queries, name) for name in ("text", "title") if name in queries.about), None)


def titled(ids: Mapping[str, np.ndarray], train: Examples) -> dict[str, Any]:
    """`helpful_title`, `harmful_title` (else text) of the ids [q k] of a top-k, if there are any."""
    name = next((name for name in ("title", "text") if name in train.about), None)
    if name is None:
        return {}
    texts = texts_of(train, name)
    return {f"{side}_{name}": texts[train.rows_of(found.ravel())].reshape(found.shape) for side, found in ids.items()}
