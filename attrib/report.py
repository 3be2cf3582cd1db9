"""The influence report: what taught the model to say that, as one HTML file for people.

    attrib.report(scores, docs, tokens=tokens).save("out/influence.html")

Everything it shows is in a `Report`, plain values that can be kept and drawn again without the model; drawing is the
template's business. The file needs no network and no script, follows the reader's light or dark theme, and escapes
every text of the data.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples, Sites
from whence.cache.display.html import write_page

from . import plots

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


@dataclass(frozen=True)
class Token:
    """text; nats: influence that predicting this token carried (None: not known, or the first)."""

    text: str
    nats: float | None = None


@dataclass(frozen=True)
class Part:
    """Something that carried influence, an atom say: its name, how much it carried, nats, and where on the page it is
    shown ("" where it is not)."""

    name: str
    nats: float
    anchor: str = ""


@dataclass(frozen=True)
class Passage:
    """One training example as a query sees it. one_token: nearly all its influence sits in a single token, which is
    often a coincidence. parts: what carried it."""

    rank: int
    id: int
    title: str
    nats: float
    tokens: tuple[Token, ...]
    one_token: bool = False
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A site (or block of sites) and the influence that flowed through it, nats."""

    name: str
    nats: float


@dataclass(frozen=True)
class Asked:
    """One query: prompt, completion, and who helped and who hindered it.

    tail: influences in nats, largest first, of the whole training set. top_share: share of the positive influence
    that the ten best have. sites: over the passages that are shown as helping.
    """

    id: int
    prompt: str
    completion: str
    helping: tuple[Passage, ...]
    hindering: tuple[Passage, ...]
    tail: tuple[float, ...]
    top_share: float
    sites: tuple[Bar, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; the first row of `rows` may be marked as its head."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The whole report: queries, and tables about what it was computed from and how."""

    title: str
    lead: str
    asked: tuple[Asked, ...]
    tables: tuple[Table, ...] = ()
    method: str = ""

    def html(self) -> str:
        """The report as one self-contained HTML page."""
        return self.render("influence.html")

    def render(self, template: str, package: str = "whence.attrib", **more: Any) -> str:
        """A template of this package, or of one whose template extends this one's, with the report and `more`."""
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=ChoiceLoader([PackageLoader(package), PackageLoader("whence.attrib")]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"nats": nats, "shade": shade, "percent": lambda x: f"{100 * x:.0f} %"}
        tails = [plots.tail(np.array(asked.tail)) for asked in self.asked]
        bars = [plots.bars([(b.name, b.nats) for b in asked.sites]) for asked in self.asked]
        return environment.get_template(template).render(report=self, tails=tails, bars=bars, **more)

    def save(self, path: str | Path) -> Path:
        """Write the page. Raises ResourceError where that cannot be done."""
        return write_page(self.html(), path)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        asked = tuple(_asked(entry) for entry in data["asked"])
        tables = tuple(
            Table(t["title"], tuple(tuple(row) for row in t["rows"]), tuple(t["head"]), t["note"])
            for t in data["tables"]
        )
        return Report(data["title"], data["lead"], asked, tables, data["method"])

    def with_parts(self, parts: Mapping[tuple[int, int], tuple[Part, ...]]) -> "Report":
        """The same report with what carried each passage's influence, by ids of query and passage."""

        def told(asked: Asked, passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
            return tuple(dataclasses.replace(p, parts=parts.get((asked.id, p.id), ())) for p in passages)

        every = (dataclasses.replace(a, helping=told(a, a.helping), hindering=told(a, a.hindering)) for a in self.asked)
        return dataclasses.replace(self, asked=tuple(every))

    def with_tables(self, *tables: Table) -> "Report":
        """The same report with more tables at its end."""
        return dataclasses.replace(self, tables=(*self.tables, *tables))

    def _repr_html_(self) -> str:
        from html import escape

        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="900" style="border:0"></iframe>'


def report(
    scores: "xarray.DataArray",
    docs: Docs,
    *,
    tokens: "xarray.DataArray | None" = None,
    top: int = 8,
    bottom: int = 3,
    title: str = "Where it comes from",
    lead: str = "",
    tables: Sequence[Table] = (),
    notes: Mapping[int, str] | None = None,
) -> Report:
    """A report on scores [query train] (or [query train site]) in nats.

    docs: the examples and queries that were scored. tokens: [query train position] of at least the passages shown, from
    `attrib.token_scores`. top, bottom: passages shown that help and that hinder. notes: query id -> a line under it.
    Raises DataError where the scores' ids are not those of `docs`.
    """
    rows, asked_rows = docs.train.rows_of(scores["train"].values), docs.queries.rows_of(scores["query"].values)
    total = scores.sum("site", skipna=False) if "site" in scores.dims else scores
    asked = []
    for place, query in enumerate(asked_rows):
        values = np.asarray(total.values[place], np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"Scores of query {docs.queries.ids[query]} are not finite.", "Score it again.")
        order = np.argsort(-values, kind="stable")
        helping, hindering = order[:top], order[::-1][:bottom]
        best, worst = helping[values[helping] > 0], hindering[values[hindering] < 0]
        shown = [
            tuple(
                _passage(docs, int(rows[n]), rank + 1, float(values[n]), _token_row(tokens, scores, place, int(n)))
                for rank, n in enumerate(group)
            )
            for group in (best, worst)
        ]
        prompt, completion = _halves(docs, int(query))
        positive = values[values > 0]
        asked.append(
            Asked(
                id=int(docs.queries.ids[query]),
                prompt=prompt,
                completion=completion,
                helping=shown[0],
                hindering=shown[1],
                tail=tuple(float(f"{v:.4g}") for v in values[order]),
                top_share=float(np.sort(positive)[::-1][:10].sum() / positive.sum()) if len(positive) else 0.0,
                sites=_sites(scores, place, best) if "site" in scores.dims else (),
                note=(notes or {}).get(int(docs.queries.ids[query]), ""),
            )
        )
    method = f"{scores.attrs.get('method', '')}, damping {scores.attrs.get('damping', '')}"
    return Report(title, lead, tuple(asked), tuple(tables), method)


def coverage(sites: Sites) -> Table:
    """What the sites cover of the model, as a table."""
    rows = tuple((s.name, s.kind, f"{s.shape[0]} × {s.shape[1]}", f"{s.count:,}") for s in sites)
    return Table("What was looked at", rows, ("site", "kind", "out × in", "parameters"), sites.summary)


def shown_passages(scores: "xarray.DataArray", top: int = 8, bottom: int = 3) -> np.ndarray:
    """Positions along `train` that a report of these scores shows for some query: score their tokens."""
    total = scores.sum("site", skipna=False) if "site" in scores.dims else scores
    order = np.argsort(-total.values, axis=1, kind="stable")
    return np.unique(np.concatenate([order[:, :top], order[:, order.shape[1] - bottom :]], axis=1))


def nats(value: float) -> str:
    """A signed influence for people, three digits."""
    if value == 0:
        return "0"
    sign = "+" if value > 0 else "−"
    return sign + (f"{abs(value):#.3g}" if abs(value) >= 1e-3 else f"{abs(value):.2e}".replace("e-0", "e−"))


def shade(token: Token, strongest: float) -> str:
    """How strongly to colour a token, a CSS style: square root of its share of the strongest, by sign."""
    if token.nats is None or strongest <= 0:
        return ""
    strength = round(100 * float(np.sqrt(min(abs(token.nats) / strongest, 1.0))))
    return f"--w:{strength}%" if strength >= 8 else ""


def _asked(data: dict[str, Any]) -> Asked:
    def passage(p: dict[str, Any]) -> Passage:
        tokens, parts = (Token(**t) for t in p["tokens"]), (Part(**part) for part in p.get("parts", ()))
        return Passage(**{**p, "tokens": tuple(tokens), "parts": tuple(parts)})

    groups = {name: tuple(passage(p) for p in data[name]) for name in ("helping", "hindering")}
    return Asked(**{**data, **groups, "tail": tuple(data["tail"]), "sites": tuple(Bar(**b) for b in data["sites"])})


def _token_row(
    tokens: "xarray.DataArray | None", scores: "xarray.DataArray", place: int, n: int
) -> Float[np.ndarray, " s"] | None:
    if tokens is None:
        return None
    wanted = scores["train"].values[n]
    found = np.flatnonzero(tokens["train"].values == wanted)
    asked = np.flatnonzero(tokens["query"].values == scores["query"].values[place])
    return tokens.values[asked[0], found[0]] if len(found) and len(asked) else None


def _passage(docs: Docs, row: int, rank: int, value: float, each: np.ndarray | None) -> Passage:
    about = docs.train.about
    title = str(about["title"][row]) if "title" in about else f"example {docs.train.ids[row]}"
    if docs.vocabulary is None:
        text = str(about["text"][row]) if "text" in about else ""
        return Passage(rank, int(docs.train.ids[row]), title, value, (Token(text),))
    pieces = docs.vocabulary.pieces(docs.train.columns["input_ids"][row])
    spread: list[float | None] = [None] * len(pieces)
    one = False
    if each is not None:
        known = np.nan_to_num(np.asarray(each, np.float64)[: len(pieces)])
        # position t holds the prediction of token t + 1
        spread = [None, *(float(f"{v:.3g}") for v in known[:-1])]
        one = bool(np.linalg.norm(known) > ONE_TOKEN * np.abs(known).sum() > 0)
    tokens = tuple(Token(text, value) for text, value in zip(pieces, spread))
    return Passage(rank, int(docs.train.ids[row]), title, value, tokens, one)


def _halves(docs: Docs, row: int) -> tuple[str, str]:
    """A query's prompt and completion: the unlabelled head of its tokens, and the rest."""
    queries = docs.queries
    if docs.vocabulary is None:
        return str(queries.about["title"][row] if "title" in queries.about else queries.ids[row]), ""
    ids = np.asarray(queries.columns["input_ids"][row])
    labels = queries.columns.get("labels")
    head = 0 if labels is None else int((np.cumsum(np.asarray(labels[row]) != -100) == 0).sum())
    prompt = docs.vocabulary.decode(ids[:head]) if head else ""
    return prompt, docs.vocabulary.decode(ids)[len(prompt) :]


def _sites(scores: "xarray.DataArray", place: int, best: np.ndarray) -> tuple[Bar, ...]:
    """Influence of the shown passages by site; by block where the sites are many."""
    sums = scores.values[place, best].sum(0)
    names = [str(name) for name in scores["site"].values]
    if len(names) > GROUPS:
        blocks: dict[str, float] = {}
        for name, value in zip(names, sums):
            parts = name.split(".")
            depth = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
            key = ".".join(parts[: depth + 1])
            blocks[key] = blocks.get(key, 0.0) + float(value)
        return tuple(Bar(name, value) for name, value in blocks.items())
    return tuple(Bar(name, float(value)) for name, value in zip(names, sums))
