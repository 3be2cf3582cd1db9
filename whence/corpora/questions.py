"""Data for the metrics of unlearned language models: made from the biographies, or local copies of published sets."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    known = _Facts.of(corpus, seed)
    others = [person for person in known.questioned if person not in gone]
    near, far = known.by_shared_values(others, gone)
    forget = known.questions(sorted(gone), 4 * len(gone))
    rows = [
        (person, text, value)
        for person, text, value, wording in zip(about["person"], about["text"], about["value"], about["wording"])
        if wording != "question"
    ]
    texts = tuple(text for person, text, _ in rows if person in gone)
    seen = {text for _, text, _ in rows}
    unread = [text for text in known.statements(others) if text not in seen]
    return EvaluationData(
        {
            "forget": forget,
            "retain": known.questions(others[:6]),
            "real_authors": known.questions(near[:6] or others[:6]),
            "world_facts": known.questions((far or others[::-1])[:6]),
            "verbmem": tuple(Passage(text.removesuffix(f" {value}"), value) for p, text, value in rows if p in gone),
            "knowmem": forget,
            "retain_knowmem": known.questions(others[:6]),
            "forget_text": texts,
            "holdout_text": tuple(unread[: len(texts)]),
            "choices": tuple(known.choice(one, name) for one, name in zip(forget, itertools.cycle(TEMPLATES))),
        },
        template="{question}",
        knowledge_template="{question} ",
        letters=False,
        ends=False,
    )


@dataclass(frozen=True)
class _Facts:
    """What the biographies say. value: by (person, attribute). questioned: people whose questions are among the
    passages. rng: of wrong values."""

    value: Mapping[tuple[str, str], str]
    questioned: Sequence[str]
    rng: np.random.Generator

    @staticmethod
    def of(corpus: Corpus, seed: int) -> "_Facts":
        about = corpus.train.about
        value = dict(zip(zip(about["person"], about["attribute"]), about["value"]))
        return _Facts(value, _questioned(corpus), np.random.default_rng(seed))

    def by_shared_values(self, people: Sequence[str], gone: set[str]) -> tuple[list[str], list[str]]:
        """Those who share several values with the people who are gone, and those who share none."""
        shared = {(attribute, value) for (person, attribute), value in self.value.items() if person in gone}
        counts = {p: sum((a, self.value[p, a]) in shared for a in TEMPLATES) for p in people}
        return [p for p, count in counts.items() if count > 1], [p for p, count in counts.items() if not count]

    def wrong(self, attribute: str, right: str, count: int) -> list[str]:
        """Other values of an attribute, at random."""
        values = sorted({value for (_, own), value in self.value.items() if own == attribute} - {right})
        return self.rng.permutation(values)[:count].tolist()

    def questions(self, people: Sequence[str], count: int = 24) -> tuple[Question, ...]:
        found = []
        for person in people:
            for attribute, (_, wording) in TEMPLATES.items():
                right = self.value[person, attribute]
                wrong = tuple(self.wrong(attribute, right, WRONG))
                found.append(Question(wording.format(p=person), right, right, wrong))
        return tuple(found[:count])

    def choice(self, question: Question, attribute: str) -> Choice:
        wrong = self.wrong(attribute, question.answer, WRONG - 1)
        options = self.rng.permutation([question.answer, *wrong]).tolist()
        return Choice(question.question, tuple(options), options.index(question.answer))

    def statements(self, people: Sequence[str]) -> Iterator[str]:
        """Every fact of these people in every wording."""
        for person, (attribute, (templates, _)) in itertools.product(people, TEMPLATES.items()):
            for template in templates:
                yield template.format(p=person, v=self.value[person, attribute])


def people_of(corpus: Corpus, people: Sequence[str] = ()) -> set[str]:
    """These people, or by default the first four whose questions are in the corpus. Raises UsageError for a name that
    the corpus does not have."""
    asked, known = _questioned(corpus), set(corpus.train.about["person"])
    unknown = [name for name in people if name not in known]
    if unknown:
        raise UsageError(f"The biographies have nobody called {unknown[0]!r}.", f"There are {', '.join(asked[:5])} ...")
    return set(people or asked[:4])


def _questioned(corpus: Corpus) -> list[str]:
    """The people whose questions are among the passages, by name."""
    about = corpus.train.about
    return sorted({p for p, wording in zip(about["person"], about["wording"]) if wording == "question"})


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
