"""The influence report: what taught the model to say that, as one HTML file.

    attrib.report(scores, docs, tokens=tokens).save("out/influence.html")

A `Report` is plain values that can be stored and drawn again without the model. The file needs no network and no
script, follows the reader's light or dark theme, and escapes every text of the data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from whence.cache import DataError, Examples, Sites, TrainedModel
from whence.cache.display import bars, render, shaded, table, tails, write_page
from whence.cache.model.sites import HEAD

if TYPE_CHECKING:
    import xarray

ONE_TOKEN = 2 / 3  # |s|_2 / |s|_1 over tokens above which the influence is one token's (Grosse et al. 2023, 5.3)
GROUPS = 24  # more sites than this are drawn by block


@runtime_checkable
class Docs(Protocol):
    """What was scored: examples with `title` and `text` about them, queries, and how tokens read (None: no text)."""

    @property
    def train(self) -> Examples: ...
    @property
    def queries(self) -> Examples: ...
    @property
    def vocabulary(self) -> Any: ...


class Passage(TypedDict):
    """One training example as a query sees it.

    tokens, token_nats: its pieces of text, and the influence that predicting each carried (None: not known, or the
    first). image: its thumbnail as an address, "" if it is no image. one_token: nearly all its influence is in a single
    token, which is often a coincidence. impossible: the influence is more than what is left of the query's
    log-probability. document: the data's own name of the text that the example is, or is a piece of; "" if that is the
    id.
    """

    rank: int
    id: int | str
    document: str
    title: str
    nats: float
    tokens: list[str]
    token_nats: list[float | None]
    image: str
    one_token: bool
    impossible: bool


class Query(TypedDict):
    """One query: prompt, completion, and who helps and who hinders it.

    tail: influences in nats, largest first, of the whole training set. top_share: share of the positive influence
    that the ten best have. sites: [name, nats] over the passages that are shown as helping. note: a line under it.
    logprob: of the query, in nats, if known. image: its thumbnail, as of a passage.
    """

    id: int | str
    prompt: str
    completion: str
    helping: list[Passage]
    hindering: list[Passage]
    tail: list[float]
    top_share: float
    sites: list[tuple[str, float]]
    note: str
    logprob: float | None
    image: str


class Table(TypedDict):
    """A titled table; head: names of its columns, or nothing; note: a line below."""

    title: str
    rows: Sequence[Sequence[Any]]
    head: Sequence[str]
    note: str


@dataclass(frozen=True)
class Report:
    """The whole report: queries, and tables about what it was computed from and how."""

    title: str
    lead: str
    queries: list[Query]
    tables: list[Table] = field(default_factory=list)
    method: str = ""
    warning: str = ""

    def html(self) -> str:
        """The report as one self-contained HTML page."""
        return self.render("influence.html", title=self.title, scripts=False)

    def render(self, template: str, *packages: str, parts: Mapping[str, Any] | None = None, **values: Any) -> str:
        """A template that extends this package's `influence.html`, with the report and `values`.

        Args:
            template: file name of the template.
            packages: import names of the packages whose templates are searched first.
            parts: anchor of a passage ("q3-p7": query 3, passage 7) -> what carried its influence, each with `name`,
                `nats` and `anchor` (where it is shown on the page, or "").
            values: what else the template names.
        """
        functions = {"table": table, "tails": tails, "bars": bars, "text": _text}
        return render(
            template, [*packages, "whence.attrib"], report=self, parts=parts or {}, **functions, **values
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the page and return its path. Raises ResourceError when the file cannot be written."""
        return write_page(self.html(), path)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote."""
        return Report(**json.loads(text))

    def _repr_html_(self) -> str:
        from html import escape

        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="900" style="border:0"></iframe>'


def report(
    scores: "xarray.DataArray",
    docs: Docs,
    *,
    by_site: "xarray.DataArray | None" = None,
    tokens: "xarray.DataArray | None" = None,
    top: int = 8,
    bottom: int = 3,
    title: str = "Where it comes from",
    lead: str = "",
    tables: Sequence[Table] = (),
    notes: Mapping[int, str] | None = None,
) -> Report:
    """A report on influence scores.

    Args:
        scores: [query train] or [query train site], nats.
        docs: the examples and queries that were scored.
        by_site: [query train site] of at least the passages shown, if `scores` are not by site.
        tokens: [query train position] from `Factors.token_scores`, of at least the passages shown
            (`attrib.show.shown_passages`).
        top: passages shown that help a query.
        bottom: passages shown that hinder it.
        title: of the page.
        lead: a paragraph below it.
        tables: shown at the end.
        notes: query id -> a line under the query.

    Raises:
        DataError: the scores' ids are not those of `docs`, or a score is not finite.
    """
    rows = docs.train.rows_of(scores["train"].values)
    shown = _Scores(docs, scores, rows, summed(scores), scores if "site" in scores.dims else by_site, tokens)
    places = enumerate(docs.queries.rows_of(scores["query"].values))
    queries = [shown.query(place, int(row), top, bottom, notes or {}) for place, row in places]
    method = f"{scores.attrs.get('method', '')}, damping {scores.attrs.get('damping', '')}"
    return Report(title, lead, queries, list(tables), method, str(scores.attrs.get("warning", "")))


@dataclass(frozen=True)
class _Scores:
    """Scores, and what a report shows beside them: the examples' rows, sums over sites, parts by site and by token."""

    docs: Docs
    scores: "xarray.DataArray"
    rows: np.ndarray
    total: "xarray.DataArray"
    by_site: "xarray.DataArray | None"
    tokens: "xarray.DataArray | None"

    def query(self, place: int, row: int, top: int, bottom: int, notes: Mapping[int, str]) -> Query:
        """The query at this place of the scores and this row of the queries."""
        scores, number = self.scores, self.docs.queries.ids[row].item()
        values = np.asarray(self.total.values[place], np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"Scores of query {number} are not finite.", "Score it again.")
        order = np.argsort(-values, kind="stable")
        helping, hindering = order[:top], order[::-1][:bottom]
        helping, hindering = helping[values[helping] > 0], hindering[values[hindering] < 0]
        prompt, completion = _halves(self.docs, row)
        best, positive = values[order[:10]], values[values > 0].sum()
        return Query(
            id=number,
            prompt=prompt,
            completion=completion,
            helping=self.passages(place, number, values, helping),
            hindering=self.passages(place, number, values, hindering),
            tail=[float(f"{v:.4g}") for v in values[order]],
            top_share=float(best[best > 0].sum() / positive) if positive else 0.0,
            sites=[] if self.by_site is None else _sites(self.by_site, number, scores["train"].values[helping]),
            note=notes.get(number, ""),
            logprob=float(scores["logprob"].values[place]) if "logprob" in scores.coords else None,
            image=_thumbnail(self.docs.queries, row),
        )

    def passages(self, place: int, query: int, values: np.ndarray, chosen: np.ndarray) -> list[Passage]:
        """The training examples at these places of the scores, as a query sees them."""
        ids, found = self.scores["train"].values, []
        marks = (
            self.scores["impossible"].values[place] if "impossible" in self.scores.coords else np.zeros(len(ids), bool)
        )
        by_token = {} if self.tokens is None else _of_query(self.tokens, query)
        for rank, n in enumerate(chosen, 1):
            each = by_token.get(ids[n].item())
            found.append(_passage(self.docs, int(self.rows[n]), rank, float(values[n]), each, bool(marks[n])))
        return found


def checks(trained: TrainedModel) -> Table:
    """What was checked before the model was used (`TrainedModel.check`), as a table of the report."""
    if trained.checks and not trained.verdicts:
        trained.check()
    said = [(text,) for text, _ in trained.verdicts.values()] or [("The model was not checked (check=False).",)]
    return Table(title="Checks of the model", rows=list(dict.fromkeys(said)), head=(), note="")


def coverage(sites: Sites) -> Table:
    """What the sites cover of the model, as a table."""
    return Table(title="What was looked at", rows=sites.lines, head=HEAD, note=sites.summary)


def summed(scores: "xarray.DataArray") -> "xarray.DataArray":
    """Scores summed over sites, if they are per site."""
    return scores.sum("site", skipna=False) if "site" in scores.dims else scores


def title_of(docs: Docs, row: int) -> str:
    """What a training example is called."""
    return str(docs.train.about["title"][row]) if "title" in docs.train.about else f"example {docs.train.ids[row]}"


def _text(passage: Passage, group: Sequence[Passage]) -> str:
    """A passage's tokens, shaded on the scale of its group."""
    most = max(abs(value or 0.0) for other in group for value in other["token_nats"])
    return shaded(passage["tokens"], passage["token_nats"], most=most)


def _of_query(tokens: "xarray.DataArray", query: int) -> dict[int, np.ndarray]:
    """Training id -> token scores [s] of one query; empty when it was not scored."""
    found = np.flatnonzero(tokens["query"].values == query)
    return dict(zip(tokens["train"].values.tolist(), tokens.values[found[0]])) if len(found) else {}


def _passage(docs: Docs, row: int, rank: int, value: float, each: np.ndarray | None, impossible: bool) -> Passage:
    about, one = docs.train.about, False
    if docs.vocabulary is None:
        pieces = [str(about["text"][row]) if "text" in about else ""]
    else:
        pieces = list(docs.vocabulary.pieces(docs.train.columns["input_ids"][row]))
    spread: list[float | None] = [None] * len(pieces)
    if docs.vocabulary is not None and each is not None:
        known = np.nan_to_num(np.asarray(each, np.float64)[: len(pieces)])
        spread[1:] = [float(f"{v:.3g}") for v in known[:-1]]  # position t has the prediction of token t + 1
        one = bool(np.linalg.norm(known) > ONE_TOKEN * np.abs(known).sum() > 0)
    identity = docs.train.ids[row].item()
    own = about["document"][row] if "document" in about else identity
    return Passage(
        rank=rank, id=identity, document="" if own == identity else str(own), title=title_of(docs, row), nats=value,
        tokens=pieces, token_nats=spread, image=_thumbnail(docs.train, row), one_token=one, impossible=impossible,
    )  # fmt: skip


def _thumbnail(examples: Examples, row: int) -> str:
    """Of an example that is an image, as the address of an HTML image."""
    picture: Any = examples.about["image"][row] if "image" in examples.about else None
    return str(picture.thumbnail()) if hasattr(picture, "thumbnail") else ""


def _halves(docs: Docs, row: int) -> tuple[str, str]:
    """A query's prompt and completion: the unlabelled head of its tokens, and the rest."""
    queries = docs.queries
    if docs.vocabulary is None:
        label = f" {queries.about['text'][row]}" if "image" in queries.about and "text" in queries.about else ""
        return str(queries.about["title"][row] if "title" in queries.about else queries.ids[row]), label
    ids = np.asarray(queries.columns["input_ids"][row])
    labels = queries.columns.get("labels")
    head = 0 if labels is None else int((np.cumsum(np.asarray(labels[row]) != -100) == 0).sum())
    prompt = docs.vocabulary.decode(ids[:head]) if head else ""
    return prompt, docs.vocabulary.decode(ids)[len(prompt) :]


def _sites(scores: "xarray.DataArray", query: int, best: np.ndarray) -> list[tuple[str, float]]:
    """Influence of the passages with these ids by site; by block when the sites are many."""
    names = [str(name) for name in scores["site"].values]
    total: dict[str, float] = {}
    for name, value in zip(names, scores.sel(query=query, train=best).values.sum(0)):
        parts = name.split(".")
        depth = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        key = ".".join(parts[: depth + 1]) if len(names) > GROUPS else name
        total[key] = total.get(key, 0.0) + float(value)
    return list(total.items())
