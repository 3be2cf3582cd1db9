"""People whose facts a language model is taught: what it answers about one of them, the neighbours, and others.

TOFU's truth ratio R (Maini et al. 2024, arXiv 2401.06121) is the mean probability of wrong answers over that of the
right one, each the geometric mean over tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from whence.cache import Examples, LanguageModelling, TrainedModel
from whence.cache.retrain.replicas import Replicas
from whence.corpora import Vocabulary, biographies, query_examples
from whence.corpora.biographies import TEMPLATES
from whence.corpora.corpus import ragged
from whence.problems.finetuned import LENGTH
from whence.unlearn import audit

TASK = LanguageModelling()
TIES = ("town", "trade")  # what makes neighbours
GROUPS = ("forgotten", "neighbours", "others")


class Fact(NamedTuple):
    person: str
    attribute: str


@dataclass(frozen=True, eq=False)
class People:
    """What a model is taught.

    train: passages, and other text among them, of nobody. values: fact -> value. words: the vocabulary. text: held-out
    other text.
    """

    train: Examples
    values: Mapping[Fact, str]
    words: Vocabulary
    text: Examples
    attributes: Sequence[str] = tuple(TEMPLATES)

    @staticmethod
    def of(
        people: int,
        words: Vocabulary,
        text: Sequence[str],
        replayed: int,
        attributes: Sequence[str] = tuple(TEMPLATES),
    ) -> "People":
        """Training has questions about everybody but the first person, who is not queried here. replayed: number of
        texts that are trained on; the others are held out."""
        about = biographies(people, people // 2, asked=1, statements=1).train.about
        rows = [row for row in zip(about["text"], about["person"], about["attribute"], about["value"], about["wording"])
                if row[2] in attributes]  # fmt: skip
        values = {Fact(person, attribute): value for _, person, attribute, value, _ in rows}
        rows += [(passage, "", "", "", "") for passage in text[:replayed]]
        known = dict(zip(("text", "person", "attribute", "value", "wording"), map(list, zip(*rows))))
        tokens = [words.encode(passage)[:LENGTH] for passage in [*known["text"], *text[replayed:]]]
        ids = np.arange(len(tokens))
        train = Examples(ragged(tokens[: len(rows)]), ids[: len(rows)], known)
        return People(train, values, words, Examples(ragged(tokens[len(rows) :]), ids[len(rows) :]), attributes)

    @cached_property
    def names(self) -> list[str]:
        asked = {
            p for p, wording in zip(self.train.about["person"], self.train.about["wording"]) if wording == "question"
        }
        return sorted(asked)

    def facts(self, person: str, others: int = 8) -> dict[str, list[Fact]]:
        """The person's facts, those of the neighbours, and those of some others."""
        near = [p for p in self.names if p != person and
                any(self.values[Fact(p, tie)] == self.values[Fact(person, tie)] for tie in TIES)]  # fmt: skip
        rest = [p for p in self.names if p != person and p not in near][:others]
        return {group: [Fact(p, a) for p in some for a in self.attributes] for group, some in
                zip(GROUPS, ([person], near, rest))}  # fmt: skip

    def answers(self, fact: Fact, wrong: int) -> list[str]:
        """The right value and some wrong ones."""
        others = sorted({v for (_, a), v in self.values.items() if a == fact.attribute} - {self.values[fact]})
        drawn = np.random.default_rng(len(fact.person)).permutation(others)[:wrong]
        return [self.values[fact], *map(str, drawn)]

    def logprobs(self, models: Replicas, facts: Sequence[Fact], wrong: int = 0) -> "Answers":
        """Of the right answers and of some wrong ones."""
        pairs = [(fact, answer) for fact in facts for answer in self.answers(fact, wrong)]
        prompts = [TEMPLATES[fact.attribute][1].format(p=fact.person) for fact, _ in pairs]
        asked = query_examples(prompts, [f" {answer}" for _, answer in pairs], self.words)
        tokens = np.array([(np.asarray(labels) != -100).sum() for labels in asked.columns["labels"]])
        found = models.outputs(TASK, asked, ("measurements",))["measurements"]
        return Answers(found.reshape(len(models), len(facts), -1), tokens.reshape(len(facts), -1))


class Answers(NamedTuple):
    """logprobs: [e, facts, answers] in nats, the right answer first. tokens: [facts, answers]."""

    logprobs: np.ndarray
    tokens: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.logprobs[..., 0]

    def truth(self, forgotten: bool) -> np.ndarray:
        """The truth ratio [e f]: near 1 where a forgotten answer is as likely as wrong ones, a kept one likelier."""
        p = np.exp(self.logprobs / self.tokens)
        ratio = p[..., 1:].mean(-1) / np.maximum(p[..., 0], 1e-30)
        return np.minimum(ratio, 1 / np.maximum(ratio, 1e-30)) if forgotten else np.maximum(0, 1 - ratio)


class Measured(NamedTuple):
    """Of models after a request: answers by group, and nats per token of other text [e]."""

    answers: dict[str, Answers]
    text: np.ndarray

    def nats(self, group: str) -> float:
        """Mean log-probability of right answers."""
        return float(self.answers[group].right.mean())


def measured(people: People, models: Replicas, person: str, wrong: int = 0) -> Measured:
    groups = people.facts(person)
    found = people.logprobs(models, [fact for group in groups.values() for fact in group], wrong)
    stops = np.cumsum([len(group) for group in groups.values()])
    parts = {name: slice(stop - len(group), stop) for (name, group), stop in zip(groups.items(), stops)}
    answers = {name: Answers(found.logprobs[:, at], found.tokens[at]) for name, at in parts.items()}
    trained = [TrainedModel(models.module(e), people.train, TASK, quiet=True) for e in range(len(models))]
    return Measured(answers, audit.loss_per_token(trained, people.text))
