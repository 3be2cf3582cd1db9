"""Sanity tests of attribution methods, as quanda has them (Bareeva et al. 2024, arXiv 2410.07158): planted structure in
the training data must be found, and scores must depend on the model's weights.

Four kinds are planted in one training set of a language problem, so that one fit serves all. "shortcut": some passages
contain a rare token that is always followed by another; queries predict it. "foreign": some passages run backwards;
queries are other passages, backwards. "duplicates": some passages stand there twice; they are the queries. "subclass":
passages have topics, which the model is not told; queries are held-out passages. A score is judged by the AUC of the
right passages among all: the probability that one of them has a higher score than one of the others, 0.5 by chance.

"randomised" is Spearman's correlation of the scores with those of a model whose weights were put in a random order
before training. A method that looks at the model has a correlation near 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from torch import nn

from whence.cache import Examples, Store, UsageError
from whence.cache.statistics import spearman

from .judge import Scored, scores_of
from .problem import Problem, methods_for

KINDS = ("shortcut", "foreign", "duplicates", "subclass")
RANDOMISED = "randomised"
PAIRS = 3  # occurrences of the shortcut in one passage


@dataclass(frozen=True, eq=False)
class Planted:
    """problem: with the planted training data and the queries of all kinds. kinds: [q], of each query. right: [q n],
    the training examples that should be found."""

    problem: Problem
    kinds: np.ndarray
    right: Bool[np.ndarray, "q n"]


def planted(problem: Problem, *, count: int = 12, asked: int = 4, seed: int = 0) -> Planted:
    """A language problem whose training data have all kinds planted.

    Args:
        problem: with topics, and passages of one length.
        count: passages with the shortcut, and passages that run backwards.
        asked: queries of each kind, and duplicated passages.
        seed: of the passages that are changed.

    Raises UsageError for a problem of other data, or too few passages.
    """
    train, queries, rng = problem.train, problem.queries, np.random.default_rng(seed)
    n, lengths = len(train), train.lengths
    if "input_ids" not in train.columns or "topic" not in train.about or np.ptp(lengths):
        raise UsageError(f"Nothing can be planted in {problem.name}.", "Take passages of one length with topics.")
    topics, held = np.asarray(train.about["topic"], object), np.asarray(queries.about["topic"], object)
    passages = np.stack([np.asarray(t, np.int64) for t in train.columns["input_ids"]])
    fresh = np.stack([np.asarray(t, np.int64) for t in queries.columns["input_ids"]])
    order = rng.permutation(n)
    shortcut, foreign, first, again, plain = np.split(order, np.cumsum([count, count, asked, asked]))
    known = [row for row in range(len(fresh)) if (topics[plain] == held[row]).any()][:asked]
    if len(plain) < count or len(fresh) < asked or len(known) < asked:
        raise UsageError(f"{n} passages are too few to plant all kinds in.", "Plant fewer, or give more passages.")
    tokens, uses = np.unique(passages, return_counts=True)
    trigger, answer = tokens[np.argsort(uses, kind="stable")[:2]]
    places = np.linspace(2, int(lengths[0]) - 2, PAIRS, dtype=int)
    passages[shortcut[:, None], places], passages[shortcut[:, None], places + 1] = trigger, answer
    passages[foreign] = passages[foreign, ::-1]
    passages[again], topics[again] = passages[first], topics[first]
    topics[shortcut], topics[foreign] = "shortcut", "foreign"
    with_trigger = fresh[:asked].copy()
    with_trigger[:, places[-1]], with_trigger[:, places[-1] + 1] = trigger, answer
    tokens = np.concatenate([with_trigger, fresh[:asked, ::-1], passages[first], fresh[known]])
    labels = tokens.copy()
    labels[:asked] = np.where(np.arange(tokens.shape[1]) == places[-1] + 1, answer, -100)
    right = np.zeros((len(tokens), n), bool)
    right[:asked, shortcut], right[asked : 2 * asked, foreign] = True, True
    for place, (one, other) in enumerate(zip(first, again)):
        right[2 * asked + place, [one, other]] = True
    right[3 * asked :, plain] = topics[plain] == held[known][:, None]
    changed = replace(
        problem,
        name=f"{problem.name}, planted",
        train=Examples.of({"input_ids": list(passages)}, ids=train.ids, about={"topic": topics.tolist()}),
        queries=Examples.of({"input_ids": list(tokens), "labels": list(labels)}),
    )
    return Planted(changed, np.repeat(KINDS, asked), right)


def randomised(problem: Problem, seed: int = 0) -> Problem:
    """The same training from a start whose weights are those of the start in a random order, tensor by tensor."""

    def build(of: int) -> nn.Module:
        model, generator = problem.build(of), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value))
        return model

    return replace(problem, name=f"{problem.name}, randomised", build=build)


def auc(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float:
    """The probability that a right example has a higher score than another, ties counting half.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    return float(roc_auc_score(right, scores))


def check(
    problem: Problem,
    names: list[str] | None = None,
    *,
    others: Callable[[Problem], Scored] | None = None,
    store: Store | None = None,
    quiet: bool = False,
    **options: Any,
) -> Mapping[str, dict[str, float]]:
    """Every method under every sanity test: method -> test -> value, the AUC for KINDS and the correlation for
    RANDOMISED.

    Args:
        problem: as for `planted`.
        names: of methods; by default all that apply.
        others: computes further scores of a problem, beside the methods.
        store: where scores are kept.
        quiet: no progress is printed.
        options: as for `planted`.
    """
    case = planted(problem, **options)
    scored, random = (
        scores_of(one, methods_for(one, names), store, quiet=quiet) | (others(one) if others else {})
        for one in (case.problem, randomised(case.problem))
    )
    found = {}
    for name, (scores, _) in scored.items():
        values = np.array([auc(row, right) for row, right in zip(scores.values, case.right)])
        found[name] = {kind: float(values[case.kinds == kind].mean()) for kind in KINDS}
        found[name][RANDOMISED] = float(spearman(scores.values.T, random[name][0].values.T).mean())
    return found
