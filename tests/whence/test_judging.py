"""`whence attrib evaluate` and `probe`: tables of small problems, and wrong usage that is refused before any work."""

import json
from dataclasses import replace

import numpy as np
import pytest

from whence import attrib
from whence.cache import Store, UsageError
from whence.cache.retrain.recipe import SGD, Recipe
from whence.commands import _attrib_evaluate as commands
from whence.commands._attrib_evaluate import Evaluate, Probe
from whence.corpora import biographies
from whence.problems import problem as problems
from whence.problems import registry
from whence.problems.judge import judge, retrained


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "cache"))

    def digits(train: int = 40, queries: int = 6, flipped: float = 0.0):
        problem = DIGITS(train=train, queries=queries, flipped=flipped)
        return replace(problem, recipe=Recipe(6, 20, SGD(0.2, 0.8), batches="shared"))

    monkeypatch.setitem(registry.PROBLEMS, "digits", digits)
    monkeypatch.setattr("whence.problems.judge.digits_problem", digits)
    return digits()


DIGITS = problems.digits_problem


def test_the_command_prints_a_table_and_retrains_once(tiny, store, capsys) -> None:
    Evaluate(tests=("lds", "mislabelled"), methods=("identity", "ekfac"), subsets=14, json=True).run()
    rows = json.loads(capsys.readouterr().out)
    assert [(row["test"], row["method"]) for row in rows] == [
        ("lds", "identity"), ("lds", "ekfac"), ("mislabelled", "identity"), ("mislabelled", "ekfac"),
    ]  # fmt: skip
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows[:2])
    Evaluate(methods=("ekfac",), subsets=14).run()
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("test")
    assert f"{rows[1]['value']:.3f}" in printed
    banks = [line.key for line in store.listing() if line.kind == "bank"]
    assert len(banks) == 1


def test_scores_and_a_bank_of_the_store(tiny, store, capsys) -> None:
    bank = retrained(tiny, 14, 0.5, store, True)
    scores = attrib.EKFAC().fit(tiny.trained(store)).score(tiny.queries)
    (key,) = [line.key for line in store.listing() if line.kind == "scores"]
    np.testing.assert_allclose(commands.stored_scores(store, key, bank.about["key"]).values, scores.values * 40)
    Evaluate(scores=key, bank=bank.about["key"]).run()
    assert "LDS" in capsys.readouterr().out
    with pytest.raises(UsageError, match="a bank with scores"):
        Evaluate(scores=key).run()


def test_what_does_not_apply_is_refused_before_work(tiny, store: Store) -> None:
    for tests, names, words in (
        (["recall"], ["ekfac"], "no test 'recall' for digits"),
        (["lds"], ["newton"], "'newton' is no method"),
        (["lds"], ["bm25"], "'bm25' is no method"),
        (["sleep"], None, "no test 'sleep'"),
    ):
        with pytest.raises(UsageError, match=words):
            judge(tiny, tests, names, quiet=True)
    with pytest.raises(UsageError, match="'source' is no method for language"):
        problems.methods_for(problems.language_problem(train=40, queries=4), ["source"])


def test_removals_and_responses(tiny, tmp_path) -> None:
    rows = judge(tiny, ["brittleness", "pbrf", "mislabelled"], ["ekfac", "el2n"], curve=tmp_path, quiet=True)
    found = {(row.test, row.method) for row in rows}
    assert {("brittleness", "ekfac"), ("pbrf", "ekfac"), ("mislabelled", "el2n")} <= found
    assert (tmp_path / "mislabelled-ekfac.svg").exists()
    by_name = {row.method: row.value for row in rows if row.test == "pbrf"}
    assert by_name["ekfac"] > by_name["el2n"]


def test_probes_of_a_small_model(store, capsys, monkeypatch) -> None:
    problem = problems.facts_problem(people=12, asked=4)
    corpus = biographies(people=12, asked=4, values=6)
    monkeypatch.setattr("whence.inputs.load_model", lambda *a, **k: (problem.untrained(0), corpus.vocabulary))
    monkeypatch.setattr("whence.inputs.load_data", lambda *a, **k: corpus)
    Probe(probes=("tail", "layers"), sites=("blocks.*.up",), limit=60, json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert sum(found["layers"].values()) == pytest.approx(1.0, abs=1e-3)
    assert "exponent" in next(iter(found["tail"].values()))
