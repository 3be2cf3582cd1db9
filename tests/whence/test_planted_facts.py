"""Planted facts, in small: a model that answers, and EK-FAC that finds what taught it better than identity does.

benchmarks/planted_facts.py is the whole protocol.
"""

import pytest

from whence.corpora import biographies, stating
from whence.language_model import Shape, Training, new_model, top_answers, train_language_model
from whence.problems.planted_facts import Result, planted_facts


@pytest.fixture(scope="module")
def result() -> Result:
    docs = biographies(people=48, values=8, asked=24)
    model = new_model(Shape(layers=2, width=48, heads=4, context=16, vocabulary=len(docs.vocabulary)))
    train_language_model(model, docs.train, Training(epochs=40, batch=32, rate=4e-3), quiet=True)
    assert top_answers(model, docs.queries).mean() >= 0.8
    return planted_facts(model, docs, quiet=True)


def test_the_model_answers(result: Result) -> None:
    assert result.answered >= 0.8
    assert len(result.rows) == 8


@pytest.mark.parametrize("measure", ["logprob", "margin"])
def test_ekfac_finds_the_facts_better_than_identity(result: Result, measure: str) -> None:
    difference = result.difference("reciprocal rank", measure, False)
    assert difference.value > 0
    assert difference.low > 0, str(result)


def test_ekfac_is_far_above_chance(result: Result) -> None:
    assert result.row("EK-FAC", "margin", False).per_query["recall@10"].mean() > 0.1  # chance: 10 of 720 passages


def test_table_says_everything(result: Result) -> None:
    said = str(result)
    assert "difference, margin, normalised" in said
    assert "recall@10" in said


def test_what_states_a_fact_is_known() -> None:
    docs = biographies(people=10, values=3, asked=4)
    assert stating(docs.queries, docs.train).sum(1).tolist() == [3] * 4
