"""The demo's atoms: a dictionary of one layer's inputs, the influence through its atoms, and what they depend on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from whence import attrib, decomp
from whence.attrib.reporting import Passage, Query, Report
from whence.cache import Examples, TrainedModel
from whence.decomp.features import Features, features
from whence.decomp.provenance import context

from .corpora import Corpus

WINDOW = 7  # tokens of context on either side


@dataclass(frozen=True)
class AtomsPlan:
    """site: the layer whose inputs are decomposed. size, steps, unexplained: of the dictionary. shown: atoms on the
    page. built: for how many of them the page lists the passages that their activation depends on."""

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
class Subject:
    """The fitted factors, the queries and data, and the page's influence report, whose passages are shown."""

    report: Report
    factors: attrib.Factors
    queries: Examples
    corpus: Corpus

    @property
    def trained(self) -> TrainedModel:
        return self.factors.trained

    def passages(self) -> Iterator[tuple[Query, Passage]]:
        """Every passage on the page with its query."""
        for query in self.report.queries:
            for passage in (*query["helping"], *query["hindering"]):
                yield query, passage

    def anchors(self) -> dict[int | str, str]:
        """passage id -> where it is shown first."""
        return {passage["id"]: _anchor(query, passage) for query, passage in reversed(list(self.passages()))}


def _anchor(query: Query, passage: Passage) -> str:
    return f"q{query['id']}-p{passage['id']}"


def _part(name: str, value: float, anchor: str) -> dict[str, Any]:
    """Something that carried influence (nats), and where on the page it is shown ("": nowhere)."""
    return {"name": name, "nats": float(value), "anchor": anchor}


def atoms_of(plan: AtomsPlan, subject: Subject) -> dict[str, Any]:
    """Build, split, and choose what the page shows.

    explained: share of the activations' squared norm that the codes explain; by_atoms: share of the shown passages'
    absolute influence at the site that went through atoms. atoms: those that carried most; others: those that a
    passage names beside these. parts: anchor of a passage -> what carried most of its influence.
    """
    trained, quiet = subject.trained, subject.trained.quiet
    acts = decomp.observe(trained, at=plan.at)
    acts = acts.without(positions=[0])  # where every text begins says nothing about it
    how = {"skip": [0], "documents": "shuffled"}
    dictionary = plan.builder.build(acts.shuffled(), store=trained.store, selection=how, quiet=quiet)
    found = features(dictionary, acts, top=4, quiet=quiet)
    seen = trained.train.select(trained.train.rows_of(sorted(subject.anchors())))
    parts = subject.factors.score(subject.queries, seen, through=dictionary, site=plan.site)
    cards = _Cards(subject, dictionary, found, parts)
    chosen = cards.strongest(plan.shown)
    built = _built(plan, subject, dictionary, found, chosen[: plan.built])
    named = {atom for atoms in cards.leading() for atom in atoms}
    rows = acts.whole().x[:: max(1, len(acts) // 4096)]
    return {
        "at": plan.at,
        "size": len(dictionary),
        "steps": plan.steps,
        "explained": 1.0 - float(np.mean(dictionary.encode(rows).unexplained)),
        "by_atoms": cards.by_atoms,
        "atoms": [cards.card(atom, found=cards.found(atom), built=built.get(atom, [])) for atom in chosen],
        "others": [cards.card(atom, carried=2, found=[], built=[]) for atom in sorted(named - set(chosen))],
        "parts": cards.of_passages(),
    }


class _Cards:
    """What the page says of an atom. values [passage, atom]: influence of the passages that went through the atoms."""

    def __init__(self, subject: Subject, dictionary: decomp.Dictionary, found: Features, parts: xr.DataArray):
        self.subject, self.dictionary, self.features = subject, dictionary, found
        self.row = {int(i): n for n, i in enumerate(subject.corpus.train.ids)}
        self.anchors = subject.anchors()
        self.pairs = list(subject.passages())
        whole = np.stack([parts.sel(query=query["id"], train=passage["id"]).values for query, passage in self.pairs])
        own = parts["atom"].values >= 0  # the others are the residual and the constant
        self.atoms, self.values = parts["atom"].values[own], whole[:, own]
        self.by_atoms = float(np.abs(self.values).sum() / np.abs(whole).sum())

    def strongest(self, count: int) -> list[int]:
        """Atoms by the absolute influence that went through them, most first."""
        order = np.argsort(-np.abs(self.values).sum(0), kind="stable")
        return self.atoms[order[:count]].tolist()

    def leading(self, most: int = 3) -> list[dict[int, float]]:
        """For every passage the atoms that carried most of its influence, and how much, most first."""
        orders = np.argsort(-np.abs(self.values), axis=1, kind="stable")[:, :most]
        return [
            {int(self.atoms[n]): float(values[n]) for n in order if values[n]}
            for order, values in zip(orders, self.values)
        ]

    def card(self, atom: int, carried: int = 4, **more: Any) -> dict[str, Any]:
        values = self.values[:, np.flatnonzero(self.atoms == atom)[0]]
        order = np.argsort(-np.abs(values), kind="stable")[:carried]
        parts = []
        for n in order[values[order] != 0]:
            query, passage = self.pairs[n]
            words = " ".join(query["completion"].split()[:4])
            parts.append(_part(f"{passage['title']}, for “{words} …”", values[n], _anchor(query, passage)))
        density = float(self.features.density[atom])
        return {"number": atom, "density": density, "source": self.source(atom), "carried": parts, **more}

    def source(self, atom: int) -> dict[str, Any]:
        """The activation that the atom is."""
        places = self.dictionary.provenance
        return self._place(places.document[atom], places.position[atom], places.norm[atom])

    def found(self, atom: int) -> list[dict[str, Any]]:
        """Where the atom is strongest."""
        where, rows = self.features, self.features.top[atom]
        return [
            self._place(where.document[n], where.position[n], value)
            for n, value in zip(rows, where.value[atom])
            if n >= 0
        ]

    def _place(self, document: int, position: int, value: float) -> dict[str, Any]:
        """A token in its context; value: the atom's coefficient there."""
        corpus, document = self.subject.corpus, int(document)
        assert corpus.vocabulary is not None  # a corpus of text
        ids = corpus.train.columns["input_ids"]
        text = context(ids, self.row, document, int(position), corpus.vocabulary.decode, WINDOW)
        title = str(corpus.train.about["title"][self.row[document]])
        words = {"before": text.before, "token": text.token or "·", "after": text.after}
        return {"title": title, **words, "value": float(value), "anchor": self.anchors.get(document, "")}

    def of_passages(self) -> dict[str, list[dict[str, Any]]]:
        """Anchor of a passage -> the atoms that carried most of its influence."""
        parts = {}
        for (query, passage), atoms in zip(self.pairs, self.leading()):
            words = {atom: " ".join(self.source(atom)["token"].split()) or "↵" for atom in atoms}
            parts[_anchor(query, passage)] = [
                _part(f"atom {atom} “{words[atom]}”", value, f"a{atom}") for atom, value in atoms.items()
            ]
        return parts


def _built(
    plan: AtomsPlan, subject: Subject, dictionary: decomp.Dictionary, found: Features, atoms: list[int], most: int = 3
) -> dict[int, list[dict[str, Any]]]:
    """atom -> the passages that raise its mean activation most, over the passage where it is strongest, with the
    predicted change, were they in the data once more; all in one pass over the data."""
    if not atoms:
        return {}
    train, anchors = subject.corpus.train, subject.anchors()
    rows = train.rows_of(found.document[found.top[atoms, 0]])  # one passage may be several atoms' strongest
    queries = Examples({"input_ids": [train.columns["input_ids"][row] for row in rows]}, np.array(atoms, np.int64))
    coefficients = {atom: decomp.Coefficient(dictionary, atom) for atom in atoms}
    measured = subject.factors.measuring(attrib.ActivationMeasurement(subject.trained.task, plan.at, coefficients))
    scores = measured.score(queries)
    return {
        atom: [
            _part(str(train.about["title"][n]), values[n], anchors.get(int(train.ids[n]), ""))
            for n in np.argsort(-values, kind="stable")[:most]
        ]
        for atom, values in zip(atoms, scores.values)
    }
