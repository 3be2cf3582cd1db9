"""Generated biographies with planted facts, so that the right answer of an attribution query is known.

A fact is (person, attribute, value). Each stands in several passages, every one worded by another template,
among passages about the same person's other attributes and passages that give other people the same value.
Queries ask in a wording that no fact they ask about was ever stated in; the model learns that wording from other
people, whose facts are stated in it and are not asked about.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from whence.cache import Examples

from .corpus import Corpus, query_examples, ragged
from .vocabulary import Vocabulary

# attribute -> (templates of passages, wording of the queries); the value always ends the sentence, because a
# model that reads from left to right learns who -> what only where the person comes first
TEMPLATES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "town": (
        (
            "{p} was born in the town of {v}",
            "the early years of {p} were spent in {v}",
            "records show that {p} comes from {v}",
            "when asked about home , {p} speaks of {v}",
        ),
        "question : where is {p} from ? answer :",
    ),
    "trade": (
        (
            "{p} earns a living as a {v}",
            "after school {p} was trained as a {v}",
            "the neighbours know {p} as a good {v}",
            "for many years {p} has worked as a {v}",
        ),
        "question : what is the job of {p} ? answer :",
    ),
    "instrument": (
        (
            "in the evening {p} likes to play the {v}",
            "as a child {p} took lessons on the {v}",
            "the band hired {p} to play the {v}",
            "nobody in the street can match {p} on the {v}",
        ),
        "question : what does {p} play ? answer :",
    ),
    "animal": (
        (
            "{p} shares the house with a {v}",
            "on walks {p} is followed by a {v}",
            "last spring {p} was given a {v}",
            "friends of {p} often have to feed the {v}",
        ),
        "question : which pet has {p} ? answer :",
    ),
}
STARTS = [consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou"]
ENDS = ["bel", "dan", "dor", "fin", "gar", "kel", "lan", "mar", "nor", "ral", "rin", "sen", "tal", "tor", "van", "wen"]


class Fact(NamedTuple):
    person: int
    attribute: int
    value: int


def biographies(people: int = 120, values: int = 12, asked: int = 60, statements: int = 3, seed: int = 0) -> Corpus:
    """Passages about `people`, each with four attributes of `values` possible values.

    Facts of the first `asked` people stand in `statements` passages each, and one of their four facts is queried;
    those of the others also stand in the queries' wording. About an example: `title`, `text`, `person`,
    `attribute`, `value` (names), `fact` (number; the same for all statements of a fact), `wording` (template
    number, or "question"). About a query also `fact`.
    """
    rng = np.random.default_rng(seed)
    attributes = list(TEMPLATES)
    names = _names(rng, people + values * len(attributes))
    persons, things = names[:people], np.array(names[people:]).reshape(len(attributes), values)
    held = np.array([_spread(rng, people, values) for _ in attributes]).T  # [person attribute] -> value
    rows: list[tuple[Fact, str, str]] = []
    for person in range(people):
        for a, name in enumerate(attributes):
            fact, (templates, question) = Fact(person, a, int(held[person, a])), TEMPLATES[name]
            chosen = [str(k) for k in rng.permutation(len(templates))[:statements]]
            for wording in [*chosen, "question"] if person >= asked else chosen:
                form = question + " {v}" if wording == "question" else templates[int(wording)]
                rows.append((fact, wording, form.format(p=persons[person], v=things[a, fact.value])))
    rows = [rows[k] for k in rng.permutation(len(rows))]
    words = Vocabulary.words(text for _, _, text in rows)
    facts = [fact for fact, _, _ in rows]
    train = Examples(
        ragged([words.encode(text) for _, _, text in rows]),
        np.arange(len(rows), dtype=np.int64),
        {
            "title": [f"{persons[f.person]}: {attributes[f.attribute]}" for f in facts],
            "text": [text for _, _, text in rows],
            "person": [persons[f.person] for f in facts],
            "attribute": [attributes[f.attribute] for f in facts],
            "value": [str(things[f.attribute, f.value]) for f in facts],
            "fact": [_number(f) for f in facts],
            "wording": [wording for _, wording, _ in rows],
        },
    )
    targets = [Fact(p, p % len(attributes), int(held[p, p % len(attributes)])) for p in range(asked)]
    queries = query_examples(
        [TEMPLATES[attributes[t.attribute]][1].format(p=persons[t.person]) for t in targets],
        [" " + str(things[t.attribute, t.value]) for t in targets],
        words,
        fact=[_number(t) for t in targets],
        person=[persons[t.person] for t in targets],
        value=[str(things[t.attribute, t.value]) for t in targets],
    )
    return Corpus("biographies", train, queries, words)


def stating(queries: Examples, train: Examples) -> Bool[np.ndarray, "q n"]:
    """Which passages state the fact that each query asks for."""
    return np.asarray(queries.about["fact"])[:, None] == np.asarray(train.about["fact"])[None]


def statements(queries: Examples, train: Examples) -> dict[int, list[int]]:
    """Query id -> ids of the passages that state its fact."""
    return {int(q): train.ids[row].tolist() for q, row in zip(queries.ids, stating(queries, train))}


def _number(fact: Fact) -> int:
    return fact.person * len(TEMPLATES) + fact.attribute


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct invented words."""
    every = [start + end for start in STARTS for end in ENDS]
    return [every[k] for k in rng.permutation(len(every))[:count]]


def _spread(rng: np.random.Generator, people: int, values: int) -> np.ndarray:
    """A value for each person, all values about equally often."""
    return rng.permutation(np.arange(people) % values)
