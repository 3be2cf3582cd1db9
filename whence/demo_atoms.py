"""The demo's atoms: a dictionary of one layer's inputs, the influence that went through them, and who built them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from whence import attrib, decomp
from whence.attrib.report import Part, Passage, Report
from whence.cache import Examples, Store, Task, TrainedModel
from whence.decomp.features import Features, features
from whence.decomp.provenance import context

from .corpora import Corpus
from .story import Atom, Atoms, Place

WINDOW = 7  # tokens of context on either side


@dataclass(frozen=True)
class AtomsPlan:
    """site: whose inputs are decomposed. size, steps, unexplained: of the dictionary. shown: atoms on the page; built:
    of how many of them it is asked who built them."""

    site: str = "blocks.3.mlp.fc_in"
    size: int = 512
    steps: int = 16
    unexplained: float = 0.33
    shown: int = 18
    built: int = 6

    @property
    def at(self) -> str:
        return f"{self.site}.hook_in"

    @property
    def builder(self) -> decomp.ITDA:
        return decomp.ITDA(size=self.size, k=self.steps, unexplained=self.unexplained, seeding="none")


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page's influence part stands on: passages are those it shows."""

    report: Report
    factors: attrib.Factors
    model: nn.Module
    task: Task
    queries: Examples
    corpus: Corpus
    store: Store
    quiet: bool = False

    @property
    def options(self) -> attrib.FitOptions:
        return attrib.FitOptions(quiet=self.quiet)

    def passages(self) -> Iterator[tuple[int, Passage]]:
        """(query id, passage) of every passage on the page."""
        for asked in self.report.asked:
            for passage in (*asked.helping, *asked.hindering):
                yield asked.id, passage

    def anchors(self) -> dict[int, str]:
        """passage id -> where it is shown first."""
        found: dict[int, str] = {}
        for query, passage in self.passages():
            found.setdefault(passage.id, f"q{query}-p{passage.id}")
        return found


def atoms_of(plan: AtomsPlan, shown: Shown) -> Atoms:
    """Build, split, and choose what the page shows."""
    train = shown.corpus.train
    acts = decomp.observe(TrainedModel(shown.model, train, shown.task, store=shown.store, quiet=shown.quiet), plan.at)
    acts = acts.without(positions=[0])  # where every text begins says nothing about it
    read, how = acts.shuffled(), {"skip": [0], "documents": "shuffled"}
    dictionary = plan.builder.build(read, store=shown.store, selection=how, quiet=shown.quiet)
    found = features(dictionary, acts, top=4, quiet=shown.quiet)
    ids = sorted({passage.id for _, passage in shown.passages()})
    seen = train.select(train.rows_of(ids))
    parts = attrib.through_atoms(
        shown.factors, shown.model, shown.task, shown.queries, seen, dictionary,
        site=plan.site, train_size=len(train), options=shown.options,
    )  # fmt: skip
    table = _Table(parts, [(query, passage) for query, passage in shown.passages()])
    chosen = table.strongest(plan.shown)
    words = _Words(shown, dictionary, found)
    built = _built(plan, shown, dictionary, found, chosen[: plan.built])
    made = tuple(
        Atom(n, float(found.density[n]), words.source(n), words.strongest(n), words.carried(table, n), built.get(n, ()))
        for n in chosen
    )
    named = sorted({n for numbers in table.leading() for n in numbers} - set(chosen))
    others = tuple(Atom(n, float(found.density[n]), words.source(n), (), words.carried(table, n, 2)) for n in named)
    rows = acts.whole().x[:: max(1, len(acts) // 4096)]
    explained = 1.0 - float(np.mean(dictionary.encode(rows).unexplained))
    return Atoms(
        plan.at, len(dictionary), plan.steps, explained, table.by_atoms, made, others, words.of_passages(table)
    )


class _Table:
    """Parts of the passages on the page, [pair, atom]."""

    def __init__(self, parts: Any, pairs: list[tuple[int, Passage]]):
        self.pairs, self.atoms = pairs, parts["atom"].values
        place = {int(i): n for n, i in enumerate(parts["train"].values)}
        query = {int(i): n for n, i in enumerate(parts["query"].values)}
        self.values = np.stack([parts.values[query[q], place[p.id]] for q, p in pairs])

    @property
    def by_atoms(self) -> float:
        size = np.abs(self.values)
        return float(size[:, self.atoms >= 0].sum() / size.sum())

    def strongest(self, count: int) -> list[int]:
        """Atoms by the absolute influence that went through them, most first."""
        order = np.argsort(-np.abs(self.values).sum(0), kind="stable")
        return [int(n) for n in self.atoms[order] if n >= 0][:count]

    def leading(self, most: int = 3) -> list[list[int]]:
        """For every pair the atoms that carried most of its influence, most first."""
        own = np.flatnonzero(self.atoms >= 0)
        orders = (own[np.argsort(-np.abs(values[own]), kind="stable")[:most]] for values in self.values)
        return [[int(self.atoms[n]) for n in order if values[n]] for order, values in zip(orders, self.values)]

    def column(self, atom: int) -> np.ndarray:
        return self.values[:, np.flatnonzero(self.atoms == atom)[0]]


class _Words:
    """Atoms and passages as people read them."""

    def __init__(self, shown: Shown, dictionary: decomp.Dictionary, found: Features):
        self.shown, self.dictionary, self.found = shown, dictionary, found
        self.row = {int(i): n for n, i in enumerate(shown.corpus.train.ids)}
        self.said = {asked.id: " ".join(asked.completion.split()[:4]) for asked in shown.report.asked}
        self.anchors = shown.anchors()

    def _place(self, document: int, position: int, value: float) -> Place:
        train, words = self.shown.corpus.train, self.shown.corpus.vocabulary
        assert words is not None  # a corpus of text
        text = context(train.columns["input_ids"], self.row, document, position, words.decode, WINDOW)
        title = str(train.about["title"][self.row[document]])
        return Place(title, text.before, text.token or "·", text.after, value, self.anchors.get(document, ""))

    def source(self, atom: int) -> Place:
        places = self.dictionary.provenance
        return self._place(int(places.document[atom]), int(places.position[atom]), float(places.norm[atom]))

    def strongest(self, atom: int) -> tuple[Place, ...]:
        rows, values = self.found.top[atom], self.found.value[atom]
        where = self.found
        return tuple(
            self._place(int(where.document[n]), int(where.position[n]), float(v))
            for n, v in zip(rows, values)
            if n >= 0
        )

    def carried(self, table: _Table, atom: int, most: int = 4) -> tuple[Part, ...]:
        values = table.column(atom)
        order = np.argsort(-np.abs(values), kind="stable")[:most]
        out = []
        for n in order[values[order] != 0]:
            query, passage = table.pairs[n]
            name = f"{passage.title}, for “{self.said[query]} …”"
            out.append(Part(name, float(values[n]), f"q{query}-p{passage.id}"))
        return tuple(out)

    def of_passages(self, table: _Table) -> tuple[tuple[int, int, tuple[Part, ...]], ...]:
        out = []
        for number, ((query, passage), atoms) in enumerate(zip(table.pairs, table.leading())):
            parts = tuple(self._part(atom, float(table.column(atom)[number])) for atom in atoms)
            out.append((query, passage.id, parts))
        return tuple(out)

    def _part(self, atom: int, value: float) -> Part:
        token = " ".join(self.source(atom).token.split()) or "↵"
        return Part(f"atom {atom} “{token}”", value, f"a{atom}")


def _built(
    plan: AtomsPlan, shown: Shown, dictionary: decomp.Dictionary, found: Features, atoms: list[int], most: int = 3
) -> dict[int, tuple[Part, ...]]:
    """atom -> the passages that raise its mean activation most, over the passage where it is strongest; all in one pass
    over the data."""
    if not atoms:
        return {}
    train, anchors, built = shown.corpus.train, shown.anchors(), {}
    rows = train.rows_of(found.document[found.top[atoms, 0]])  # one passage may be several atoms' strongest
    queries = Examples({"input_ids": [train.columns["input_ids"][row] for row in rows]}, np.array(atoms, np.int64))
    who = attrib.Reading(shown.task, plan.at, {atom: decomp.Coefficient(dictionary, atom) for atom in atoms})
    scores = attrib.score(shown.factors, shown.model, who, queries, train, store=shown.store, options=shown.options)
    for atom, values in zip(atoms, scores.values):
        best = np.argsort(-values, kind="stable")[:most]
        built[atom] = tuple(
            Part(str(train.about["title"][n]), float(values[n]), anchors.get(int(train.ids[n]), "")) for n in best
        )
    return built
