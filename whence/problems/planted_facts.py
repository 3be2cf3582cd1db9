"""The planted-facts protocol: whether scores rank the passages that state a fact first.

A model reads generated biographies until it answers questions about them; each question it answers has known right
passages, among passages about the same person and passages with the same value. Every method's ranking of the whole
training set is judged by recall@1, recall@10 and mean reciprocal rank, with intervals from resampling questions.
Normalised means divided by the root of the passage's self-influence in the same metric, which corrects for
passages that are influential for every question.

Where an answer is one token, the gradient of its margin is that of its log-probability over 1 - p: both measurements
then rank the passages of a question alike, and only their sizes differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from whence import attrib
from whence.attrib.evaluate import recall
from whence.cache import DataError, LanguageModelling, Store, TrainedModel
from whence.cache.display import Interval

from ..corpora import Corpus
from ..corpora.biographies import statements
from ..language_model import top_answers

METHODS: Mapping[str, Any] = {"EK-FAC": attrib.EKFAC(), "identity": attrib.Identity()}
MEASURES: tuple[Literal["logprob", "margin"], ...] = ("logprob", "margin")
RESAMPLES = 2000
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Row:
    """One line of the table: per_query is what the means are over, metric name -> [q]."""

    method: str
    measure: str
    normalised: bool
    per_query: Mapping[str, Float[np.ndarray, " q"]]

    @property
    def name(self) -> str:
        return f"{self.method}, {self.measure}{', normalised' if self.normalised else ''}"


@dataclass(frozen=True)
class Result:
    """answered: share of the questions that the model answers; rows: one per method, measurement and normalisation."""

    answered: float
    questions: int
    rows: tuple[Row, ...]

    def row(self, method: str, measure: str, normalised: bool) -> Row:
        return next(r for r in self.rows if (r.method, r.measure, r.normalised) == (method, measure, normalised))

    def difference(self, metric: str, measure: str, normalised: bool) -> Interval:
        """Mean of EK-FAC minus identity, and its interval: the same questions resampled for both."""
        a, b = (self.row(method, measure, normalised).per_query[metric] for method in ("EK-FAC", "identity"))
        return Interval.bootstrap(a - b, resamples=RESAMPLES)

    def __str__(self) -> str:
        metrics = list(self.rows[0].per_query)
        lines = [f"{self.answered:.0%} of the questions answered; judged on {self.questions}"]
        lines.append(f"{'':34}" + "".join(f"{name:>26}" for name in metrics))
        for row in self.rows:
            cells = [Interval.bootstrap(row.per_query[name], resamples=RESAMPLES) for name in metrics]
            lines.append(f"{row.name:34}" + "".join(f"{cell!s:>26}" for cell in cells))
        for measure in MEASURES:
            for normalised in (False, True):
                differences = [f"{self.difference(m, measure, normalised):+.3f}" for m in metrics]
                name = f"difference, {measure}{', normalised' if normalised else ''}"
                lines.append(f"{name:34}" + "".join(f"{cell:>26}" for cell in differences))
        return "\n".join(lines)


def planted_facts(
    model: nn.Module,
    corpus: Corpus,
    *,
    pattern: str = "*.mlp.*",
    store: Store | None = None,
    quiet: bool = False,
) -> Result:
    """Score the questions that the model answers, by every method and measurement. Raises DataError when it answers
    none."""
    right = top_answers(model, corpus.queries)
    if not right.any():
        raise DataError("The model answers none of the questions.", "Train it longer.")
    queries, rows = corpus.queries.select(right), []
    plain = LanguageModelling()
    trained = TrainedModel(model, corpus.train, plain, sites=pattern, store=store, quiet=quiet)
    truth = statements(queries, corpus.train)
    for name, method in METHODS.items():
        factors = method.fit(trained)
        own = factors.self_influence()
        for measure in MEASURES:
            scores = factors.measuring(LanguageModelling(measure=measure)).score(queries)
            for normalised in (False, True):
                found = recall(scores / np.sqrt(np.maximum(own, TINY)) if normalised else scores, truth, (1, 10))
                per_query = {f"recall@{k}": v for k, v in found.per_query.items()}
                rows.append(Row(name, measure, normalised, per_query | {"reciprocal rank": found.reciprocal}))
    return Result(float(right.mean()), len(queries), tuple(rows))
