"""Scores for the eye: who helped and who hindered a query, and which of a passage's tokens carried it."""

from typing import TYPE_CHECKING

import numpy as np

from whence.cache import DataError
from whence.cache.display import Shown, axes_or_new, heat, table

from .reporting import Docs, summed, title_of

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def influences(scores: "xarray.DataArray", docs: Docs, query: int = 0, top: int = 10, bottom: int = 5) -> Shown:
    """A sortable table of the examples that help and hinder a query most, in the scores' units; sites are summed.

    Args:
        scores: [query train] or [query train site].
        docs: what was scored, as for `report`.
        query: its place along `scores`.
        top: examples shown that help.
        bottom: examples shown that hinder.
    """
    values = summed(scores).values[query]
    order = np.argsort(-values, kind="stable")
    chosen = np.unique(np.r_[np.arange(min(top, len(order))), np.arange(max(0, len(order) - bottom), len(order))])
    rows = docs.train.rows_of(scores["train"].values[order[chosen]])
    about = docs.train.about
    named = [name for name in ("title", "text") if name in about]
    own = about.get("document", docs.train.ids)
    if any(own[row] != docs.train.ids[row] for row in rows):
        named = ["document", *named]
    head = ["rank", str(scores.attrs.get("units", "nats")), "id", *named]
    lines = []
    for n, row in zip(chosen, rows):
        texts = (str(about[name][row])[:200] for name in named)
        lines.append([int(n) + 1, float(values[order[n]]), str(docs.train.ids[row]), *texts])
    return table(head, lines, _query(docs, int(scores["query"].values[query])))


def shown_passages(scores: "xarray.DataArray", top: int = 8, bottom: int = 3) -> np.ndarray:
    """Positions along `train` that a report of these scores shows for some query: score their tokens."""
    order = np.argsort(-summed(scores).values, axis=1, kind="stable")
    return np.unique(np.concatenate([order[:, :top], order[:, order.shape[1] - bottom :]], axis=1))


def token_map(tokens: "xarray.DataArray", docs: Docs, query: int = 0, train: int = 0) -> Shown:
    """A training passage's tokens shaded by their influence on a query.

    What position t of `token_scores` carried is shown on token t + 1, which it predicts.

    Args:
        tokens: [query train position] from `Factors.token_scores`.
        docs: what was scored.
        query: its place along `tokens`.
        train: the passage's place along `tokens`.

    Raises:
        DataError: the examples are not text.
    """
    if docs.vocabulary is None:
        raise DataError("These examples are not text.", "Use attrib.show.influences.")
    (row,) = docs.train.rows_of(tokens["train"].values[train : train + 1])
    pieces = list(docs.vocabulary.pieces(docs.train.columns["input_ids"][row]))
    values = np.asarray(tokens.values[query, train], np.float64)[: len(pieces)]
    if tokens.attrs.get("position") != "token":
        values = np.concatenate([[np.nan], values[:-1]])
    caption = f"{title_of(docs, int(row))}, for: {_query(docs, int(tokens['query'].values[query]))}"
    return heat(pieces, values, str(tokens.attrs.get("units", "nats")), caption)


def _query(docs: Docs, query: int) -> str:
    (row,), about = docs.queries.rows_of(np.array([query])), docs.queries.about
    if "prompt" in about and "completion" in about:
        return f"{about['prompt'][row]} → {about['completion'][row]}"
    return str(about["title"][row]) if "title" in about else f"query {query}"


def plot_tail(scores: "xarray.DataArray", queries: int = 4, ax: "Axes | None" = None) -> "Axes":
    """Positive influences in order, on logarithmic axes, one line per query for the first few: a steep line is a few
    examples that carry most. Returns the axes."""
    axes, total = axes_or_new(ax), summed(scores)
    for name, row in zip(total["query"].values, total.values[:queries]):
        positive = np.sort(row[row > 0])[::-1]
        axes.loglog(np.arange(1, len(positive) + 1), positive, label=f"query {name}")
    axes.set(xlabel="rank of the example", ylabel=f"influence, {scores.attrs.get('units', 'nats')}")
    axes.legend(frameon=False, fontsize=8)
    return axes


def plot_sites(scores: "xarray.DataArray", query: int = 0, ax: "Axes | None" = None) -> "Axes":
    """A query's positive influence by layer: the sum over the examples that help, one bar per site.
    Returns the axes. Raises DataError for scores that are not per site."""
    if "site" not in scores.dims:
        raise DataError("These scores are summed over sites.", "Score with per_site=True.")
    values = scores.values[query]
    sums = values[values.sum(-1) > 0].sum(0)
    axes = axes_or_new(ax, 5.0, 0.6 + 0.25 * len(sums))
    axes.barh([str(name) for name in scores["site"].values], sums)
    axes.invert_yaxis()
    axes.set(xlabel=f"influence of the examples that help, {scores.attrs.get('units', 'nats')}")
    return axes
