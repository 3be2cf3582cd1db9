"""Data for the metrics of unlearned language models: made from the biographies, or local copies of published sets."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whence.cache import DataError, UsageError
from whence.unlearn.language import Choice, EvaluationData, Passage, Question
from whence.unlearn.language.data import PARTS, Record, records

from ..files import read_lines, read_rows, read_text
from .biographies import TEMPLATES, biographies
from .corpus import Corpus

# the files of TOFU, MUSE and WMDP, by the end of their path without numbers of shards
PUBLISHED = {
    "forget01_perturbed": "forget", "forget05_perturbed": "forget", "forget10_perturbed": "forget",
    "retain_perturbed": "retain", "real_authors_perturbed": "real_authors", "world_facts_perturbed": "world_facts",
    "verbmem/forget": "verbmem", "knowmem/forget_qa": "knowmem", "knowmem/retain_qa": "retain_knowmem",
    "knowmem/forget_qa_icl": "examples", "privleak/forget": "forget_text", "privleak/holdout": "holdout_text",
    "wmdp-bio/test": "choices", "wmdp-chem/test": "choices", "wmdp-cyber/test": "choices",
}  # fmt: skip
KINDS = (".json", ".jsonl", ".parquet", ".csv", ".arrow")
WRONG = 4  # answers of a question


def biography_questions(people: Sequence[str] = (), corpus: Corpus | None = None, seed: int = 0) -> EvaluationData:
    """Data of every part about people of the biographies who are to be forgotten.

    TOFU's form: questions about them (`forget`) and about others (`retain`), about those who share a value with them
    (in place of real authors) and those who share none (in place of world facts). An answer is one word, and its own
    paraphrase; wrong answers are other values. MUSE's form: their passages, cut before the value; texts to compare
    with state others' facts in the wording that was left out of the corpus. WMDP's form: their questions with four
    values.

    Args:
        people: names; the first four whose questions are in the corpus by default.
        corpus: the biographies.
        seed: of the wrong values and of the people whom questions are about.

    Raises UsageError for a name that the corpus does not have.
    """
    corpus = corpus or biographies()
    about, gone = corpus.train.about, people_of(corpus, people)
    facts = {
        (person, attribute): value
        for person, attribute, value in zip(about["person"], about["attribute"], about["value"])
    }
    asked = sorted({p for p, wording in zip(about["person"], about["wording"]) if wording == "question"})
    rng, values = np.random.default_rng(seed), _values(facts)
    same = {fact for fact in facts.items() if fact[0][0] in gone}
    shared = {(attribute, value) for (_, attribute), value in same}
    others = [person for person in asked if person not in gone]
    near = [p for p in others if sum((a, facts[p, a]) in shared for a in TEMPLATES) > 1]
    far = [p for p in others if not any((a, facts[p, a]) in shared for a in TEMPLATES)] or others[::-1]

    def questions(persons: Sequence[str], count: int = 24) -> tuple[Question, ...]:
        found = []
        for person in persons:
            for attribute, (_, wording) in TEMPLATES.items():
                right = facts[person, attribute]
                wrong = rng.permutation([v for v in values[attribute] if v != right])[:WRONG].tolist()
                found.append(Question(wording.format(p=person), right, right, tuple(wrong)))
        return tuple(found[:count])

    def choice(question: Question, attribute: str) -> Choice:
        wrong = rng.permutation([v for v in values[attribute] if v != question.answer])[: WRONG - 1]
        options = rng.permutation([question.answer, *wrong]).tolist()
        return Choice(question.question, tuple(options), options.index(question.answer))

    forget = questions(sorted(gone), 4 * len(gone))
    rows = [
        (person, text, value)
        for person, text, value, wording in zip(about["person"], about["text"], about["value"], about["wording"])
        if wording != "question"
    ]
    passages = tuple(Passage(text.removesuffix(f" {value}"), value) for person, text, value in rows if person in gone)
    texts = tuple(text for person, text, _ in rows if person in gone)
    seen = {text for _, text, _ in rows}
    unread = [
        template.format(p=person, v=facts[person, attribute])
        for person in others
        for attribute, (templates, _) in TEMPLATES.items()
        for template in templates
    ]
    unread = [text for text in unread if text not in seen]
    names = list(TEMPLATES)
    return EvaluationData(
        {
            "forget": forget,
            "retain": questions(others[:6]),
            "real_authors": questions(near[:6] or others[:6]),
            "world_facts": questions(far[:6]),
            "verbmem": passages,
            "knowmem": forget,
            "retain_knowmem": questions(others[:6]),
            "forget_text": texts,
            "holdout_text": tuple(unread[: len(texts)]),
            "choices": tuple(choice(one, names[k % len(names)]) for k, one in enumerate(forget)),
        },
        template="{question}",
        knowledge_template="{question} ",
        letters=False,
        ends=False,
    )


def people_of(corpus: Corpus, people: Sequence[str] = ()) -> set[str]:
    """These people, or by default the first four whose questions are in the corpus. Raises UsageError for a name that
    the corpus does not have."""
    about = corpus.train.about
    asked = sorted({p for p, wording in zip(about["person"], about["wording"]) if wording == "question"})
    unknown = [name for name in people if name not in set(about["person"])]
    if unknown:
        raise UsageError(f"The biographies have nobody called {unknown[0]!r}.", f"There are {', '.join(asked[:5])} ...")
    return set(people or asked[:4])


def _values(facts: Mapping[tuple[str, str], str]) -> dict[str, list[str]]:
    return {name: sorted({value for (_, a), value in facts.items() if a == name}) for name in TEMPLATES}


def local_questions(sources: Sequence[str], **settings: Any) -> EvaluationData:
    """Data from local copies: `part=FILE` for a part, or a folder that has files as TOFU, MUSE and WMDP are published
    (forget10_perturbed.json, verbmem/forget.json, wmdp-bio/test-00000-of-00001.parquet, ...).

    Args:
        sources: files and folders.
        settings: template, knowledge_template and letters of `EvaluationData`.

    Raises UsageError for a source of another form, DataError for a file that cannot be read or lacks a column.
    """
    parts: dict[str, tuple[Record, ...]] = {}
    for source in sources:
        part, _, path = source.rpartition("=")
        found = [(part, Path(path))] if part else list(_published(Path(source)))
        for name, file in found:
            parts[name] = parts.get(name, ()) + records(name, _rows(file), str(file))
    return EvaluationData(parts, **settings)


def _published(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder and names no part.", f"Give part=FILE; parts: {', '.join(PARTS)}.")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in KINDS and path.is_file():
            name = path.relative_to(folder.parent).with_suffix("").as_posix().split("-0")[0]
            part = next((own for end, own in PUBLISHED.items() if f"/{name}".endswith(f"/{end}")), None)
            found += [(part, path)] if part else []
    if not found:
        raise DataError(f"{folder} has no file of TOFU, MUSE or WMDP.", f"Give part=FILE; parts: {', '.join(PARTS)}.")
    twice = [str(path) for part, path in found if part == "forget"]
    if len(twice) > 1:
        raise UsageError(f"There are several forget sets: {', '.join(twice)}.", "Name one as forget=FILE.")
    yield from found


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file; of a .json, a list or one object a line, as the published sets are."""
    if path.suffix.lower() != ".json":
        yield from (row.values for row in read_rows(path))
        return
    try:
        if read_text(path).lstrip().startswith("["):
            found = json.loads(read_text(path))
            # MUSE has plain texts in its lists
            yield from (one if isinstance(one, dict) else {"text": one} for one in found)
            return
        yield from (json.loads(line) for line in read_lines(path) if line.strip())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", "Give a list of objects, or one object a line.") from error
