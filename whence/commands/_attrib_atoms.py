"""What `whence attrib score` does with a dictionary: influence by atom, and what an atom's activation depends on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache.errors import UsageError

from ._attrib_job import Attribution
from ._queries import entries_of, lists, logprob_of, top_of

if TYPE_CHECKING:
    from whence.cache import Examples
    from whence.decomp import Dictionary


def opened(folder: Path, loaded: Attribution) -> "Dictionary":
    """The dictionary; its atoms carry their source text if the data have it."""
    from ._decomp_source import open_dictionary

    found = open_dictionary(folder)
    places = found.provenance.document
    if not np.isin(places[places >= 0], loaded.train.ids).all():
        return found
    return found.with_text(loaded.train, **loaded.tokens)


def by_atoms(
    loaded: Attribution, queries: "Examples", dictionary: "Dictionary", site: str | None, top: int
) -> tuple[list[dict[str, Any]], Any]:
    """One entry per query: the examples that help most, each with the atoms that carried its influence at the site, and
    the atoms that carried most over all of them. Also the parts [query, train, atom]."""
    scores = loaded.factors.score(queries, loaded.train)
    order = np.argsort(-scores.values, axis=1, kind="stable")[:, :top]
    chosen = np.unique(order)
    parts = loaded.factors.score(queries, loaded.train.select(chosen), through=dictionary, site=site)
    best = top_of(scores, top, ("helpful",))
    entries = lists(loaded.titled, entries_of(queries, logprob_of(scores)), best)
    for row, entry in enumerate(entries):
        mine = parts.values[row][np.searchsorted(chosen, order[row])]
        for line, values in zip(entry["helpful"], mine):
            line["atoms"] = strongest(dictionary, parts["atom"].values, values, 3)
        entry[f"carried at {parts.attrs['site']} by"] = strongest(dictionary, parts["atom"].values, mine.sum(0), top)
    return entries, parts


def strongest(dictionary: "Dictionary", atoms: np.ndarray, values: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The parts of largest magnitude, each described."""
    order = np.argsort(-np.abs(values), kind="stable")[:top]
    return [
        {"id": int(atoms[n]), "title": atom_text(dictionary, int(atoms[n])), "nats": float(values[n])} for n in order
    ]


def atom_text(dictionary: "Dictionary", atom: int) -> str:
    """An atom as text: its token in its context; or the name of a part that is no atom."""
    from whence.attrib.scoring.atoms import CONSTANT, RESIDUAL

    if atom in (RESIDUAL, CONSTANT):
        return "what no atom explains" if atom == RESIDUAL else "the bias and the centre"
    if dictionary.text is None:
        return f"document {dictionary.provenance.document[atom]}, position {dictionary.provenance.position[atom]}"
    text = dictionary.text[atom]
    return " ".join(f"{text.before[-24:]}[{text.token}]{text.after[:24]}".split())


def atom_scores(
    loaded: Attribution, queries: "Examples", dictionary: "Dictionary", atom: int
) -> tuple["Examples", Any]:
    """The queries in which the atom is active, and scores [query, train] of its mean activation over each. Raises
    UsageError if it is active in none."""
    from whence.attrib import ActivationMeasurement
    from whence.decomp import Coefficient

    if not dictionary.origin.site:
        raise UsageError("This dictionary does not name the hook point that it was built at.", "Build it with whence.")
    trained = loaded.trained
    task = ActivationMeasurement(trained.task, dictionary.origin.site, Coefficient(dictionary, atom))
    values = task.measurement(trained.model, trained.batch(queries, np.arange(len(queries))))
    active = np.flatnonzero(values.detach().cpu().numpy())
    if not len(active):
        raise UsageError(f"Atom {atom} is not active in any of these prompts.", "Give a prompt that it is active in.")
    found = queries.select(active)
    return found, loaded.fitted.measuring(task).score(found, loaded.train)
