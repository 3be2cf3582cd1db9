"""The joint report: influence, atoms, forgetting, condensing and the cache on one page, linked to one another.

What a part shows is plain values, made once, kept in the store, and drawn again without a model. A passage links to the
atoms that carried its influence, an atom to the passages that it carried, was found in, and was built by.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from whence.attrib.report import Part, Report, Table
from whence.cache.display.html import write_page

from . import charts

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A token in its context. value: the atom's coefficient there; anchor: where the passage is shown, or ""."""

    title: str
    before: str
    token: str
    after: str
    value: float
    anchor: str = ""


@dataclass(frozen=True)
class Atom:
    """number: in the dictionary; density: share of activations it is used on. source: the activation it is. found:
    where it is strongest. carried: passages whose influence went through it, nats. built: passages that raise its
    activation, with the predicted change of its mean over one of them, were they in the data once more."""

    number: int
    density: float
    source: Place
    found: tuple[Place, ...]
    carried: tuple[Part, ...]
    built: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Atoms:
    """A dictionary's atoms that matter here. at: hook point. explained: share of the activations' squared norm that the
    codes explain; by_atoms: share of the shown passages' absolute influence at the site that went through atoms.
    others: atoms that a passage names beside these. parts: [query, passage, what carried most of its influence]."""

    at: str
    size: int
    steps: int
    explained: float
    by_atoms: float
    atoms: tuple[Atom, ...]
    others: tuple[Atom, ...]
    parts: tuple[tuple[int, int, tuple[Part, ...]], ...]

    @property
    def of_passages(self) -> dict[tuple[int, int], tuple[Part, ...]]:
        return {(query, passage): parts for query, passage, parts in self.parts}


@dataclass(frozen=True)
class Deleted:
    """A way to delete. KLoM in nats: p95 and mean on the forget set, p95 on the retained and the held-out data.
    compute: example passes over those of retraining; None where there is none."""

    method: str
    p95: float
    mean: float
    retain: float
    validation: float
    compute: float | None


@dataclass(frozen=True)
class Forgetting:
    """Digits unlearned: how many, of how many, by how many models. rows: the null row first, doing nothing second."""

    forgotten: int
    examples: int
    models: int
    rows: tuple[Deleted, ...]


@dataclass(frozen=True)
class Set:
    """A small set of examples: accuracy of networks trained on it, percent, with its 95 % interval; image: a PNG in
    base64."""

    name: str
    mean: float
    low: float
    high: float
    image: str


@dataclass(frozen=True)
class Condensing:
    """Digits condensed. per_class: examples a class; examples: they stand for; networks: trained on every set."""

    per_class: int
    examples: int
    network: str
    networks: int
    sets: tuple[Set, ...]


@dataclass(frozen=True)
class Story:
    """The page. seconds: part -> how long it took when it was computed."""

    influence: Report
    atoms: Atoms
    forgetting: Forgetting
    condensing: Condensing
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def html(self) -> str:
        """One self-contained page."""
        taken = Table(
            "How long each part took",
            tuple((name, f"{value:.1f} s") for name, value in self.seconds.items()),
            ("part", "when it was computed"),
        )
        report = self.influence.with_parts(self.atoms.of_passages).with_tables(taken)
        return report.render("story.html", "whence", story=self, chart=charts.against_compute(self.forgetting.rows))

    def save(self, path: str | Path) -> Path:
        """Write the page. Raises ResourceError where that cannot be done."""
        return write_page(self.html(), path)


def plain(value: Any) -> Any:
    """A dataclass as JSON-able values."""
    return dataclasses.asdict(value)


def rebuilt(kind: type[T], data: Any) -> T:
    """The value of this type whose `plain` the data are: dataclasses, tuples and unions with None of them."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        kinds = inner[:1] * len(data) if inner[-1] is Ellipsis else inner
        return tuple(rebuilt(k, value) for k, value in zip(kinds, data))  # type: ignore[return-value]
    if origin in (typing.Union, types.UnionType):
        return None if data is None else rebuilt(inner[0], data)  # type: ignore[return-value]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: rebuilt(hints[name], value) for name, value in data.items()})
    return data
