"""`whence attrib ...` from the command line, on a tiny model and a few biographies."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
import xarray

import whence.inputs
from whence.cache import LanguageModelling, TrainedModel
from whence.cli import main
from whence.commands._queries import entries_of, lists, lists_text, logprob_of, top_of
from whence.commands._shared import Titled, plain, read_bytes, read_seconds


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path, request):
    model, corpus = request.getfixturevalue("loaded")
    monkeypatch.setattr(whence.inputs, "load_model", lambda name, store, **_: (model, corpus.vocabulary))
    monkeypatch.setattr(whence.inputs, "load_data", lambda name, vocabulary=None, **_: corpus)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def loaded():
    from whence.corpora import biographies
    from whence.corpora.corpus import Corpus
    from whence.language_model import Shape, new_model

    whole = biographies()
    corpus = Corpus("tiny", whole.train.select(range(24)), whole.queries.select(range(2)), whole.vocabulary)
    shape = Shape(layers=1, width=16, heads=2, context=int(whole.train.lengths.max()), vocabulary=len(whole.vocabulary))
    return new_model(shape), corpus


def facts_of(capsys, *arguments: str) -> dict:
    assert main(["--debug", "attrib", *arguments, "--quiet", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_fit_score_and_self(capsys, tmp_path, loaded) -> None:
    _, corpus = loaded
    first = facts_of(capsys, "fit")
    assert first["examples"] == 24
    assert not first["from_store"]
    assert facts_of(capsys, "fit")["from_store"]
    out = tmp_path / "scores.npz"
    found = facts_of(capsys, "score", "--top", "3", "--recall", "--out", str(out))
    assert [len(q["helpful"]) for q in found["queries"]] == [3, 3]
    assert found["recall"]["bm25"]["1.0"] == 1.0
    assert np.load(out)["values"].shape == (2, 24)
    extremes = facts_of(capsys, "score", "--top", "3", "--only-top", "--out", str(tmp_path / "best.parquet"))
    best = pandas.read_parquet(tmp_path / "best.parquet").query("list == 'helpful'")
    assert best["id"].tolist() == [e["id"] for q in extremes["queries"] for e in q["helpful"]]
    assert [e["id"] for e in extremes["queries"][0]["helpful"]] == [e["id"] for e in found["queries"][0]["helpful"]]
    few = facts_of(capsys, "score", "--prefilter", "tfidf-query", "--keep", "5", "--relative", "loss")
    assert 5 / 24 <= few["scanned"] < 1
    name = "title" if "title" in corpus.train.about else next(iter(corpus.train.about))
    assert facts_of(capsys, "score", "--group-by", name, "--one-query")["queries"][0]["groups"]
    heads = facts_of(capsys, "score", "--heads", "2", "--sites", "*.attn.*", "--top", "20")["queries"][0]["heads"]
    assert len(heads) == 8  # two heads of q, k, v and o
    assert len(facts_of(capsys, "self", "--top", "4")["top"]) == 4
    assert main(["attrib", "score", "--quiet", "--first", "1", "--out", str(tmp_path / "scores.csv")]) == 0
    said = capsys.readouterr().out
    assert "helpful" in said
    assert said.splitlines()[-1] == f"written: {tmp_path / 'scores.csv'}"
    assert main(["attrib", "self", "--quiet"]) == 0
    assert f"in {tmp_path}" in capsys.readouterr().out.splitlines()[-1]


def test_score_by_atom_and_scores_of_an_atom(capsys, tmp_path, loaded) -> None:
    from whence import decomp

    model, corpus = loaded
    at = "blocks.0.mlp.fc_in.hook_in"
    trained = TrainedModel(model, corpus.train, LanguageModelling(), quiet=True)
    rows = decomp.observe(trained, at)
    folder = str(decomp.save(decomp.ITDA(size=24, k=4, unexplained=0.05).build(rows), tmp_path / "dictionary"))
    found = facts_of(capsys, "score", "--dictionary", folder, "--top", "3")["queries"][0]
    parts = found["carried at blocks.0.mlp.fc_in by"]
    assert len(parts) == 3
    assert abs(parts[0]["nats"]) >= abs(parts[2]["nats"])
    assert [len(line["atoms"]) for line in found["helpful"]] == [3, 3, 3]
    at_prompt = decomp.observe(trained, at, corpus.queries.select([0])).whole().x
    atom = str(decomp.load(folder).encode(at_prompt).indices[0, 0])
    assert (
        main(["attrib", "score", "--dictionary", folder, "--atom", atom, "--top", "2", "--sites", "*", "--quiet"]) == 0
    )
    assert f"mean activation of atom {atom}" in capsys.readouterr().out
    assert main(["attrib", "score", "--atom", "3", "--quiet"]) == 2
    assert "--atom needs a dictionary" in capsys.readouterr().err


def test_index_and_query(capsys, tmp_path) -> None:
    built = facts_of(capsys, "index", "--width", "300", "--check", "3", "--out", str(tmp_path / "index.csv"))
    assert pandas.read_csv(tmp_path / "index.csv")["bytes"].tolist() == [built["bytes"]]
    assert 200 < built["width"] <= 300
    assert 0 <= built["recall_at_10_index"] <= built["recall_at_10_reranked"] == 1.0
    found = facts_of(capsys, "query", "--width", "300", "--candidates", "12", "--top", "3", "--check")
    assert found["index"] == built["key"]
    assert 0 < found["recall_at_10_index"] <= found["recall_at_10_reranked"] <= 1
    assert main(["attrib", "query", "--width", "300", "--quiet", "--first", "1", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "after its 24 best are reranked" in printed
    assert "(log-probability -" in printed
    scored = facts_of(capsys, "score", "--top", "1")["queries"]
    assert [q["logprob"] for q in found["queries"]] == pytest.approx([q["logprob"] for q in scored])


@pytest.mark.parametrize("view", ["output", "input", "position"])
def test_tokens(capsys, tmp_path, view) -> None:
    page = tmp_path / "tokens.html"
    found = facts_of(capsys, "tokens", "--view", view, "--top", "2", "--strongest", "99", "--out", str(page))
    assert [len(q["passages"]) for q in found["queries"]] == [2, 2]
    helped = facts_of(capsys, "score", "--top", "2")["queries"]
    for query, by_score in zip(found["queries"], helped):
        assert [p["id"] for p in query["passages"]] == [p["id"] for p in by_score["helpful"]]
        for passage, one in zip(query["passages"], by_score["helpful"]):
            if view == "output":
                assert passage["nats"] == pytest.approx(one["nats"], rel=1e-3)
            assert sum(t["nats"] for t in passage["tokens"]) == pytest.approx(passage["nats"], rel=1e-4)
    assert "<html" in page.read_text("utf-8")
    assert main(["attrib", "tokens", "--view", view, "--quiet", "--first", "1"]) == 0
    assert capsys.readouterr().out.startswith("Influence of the examples that help most, in nats")


def test_an_example_that_overflows_is_named_and_left_out_by_choice(capsys, loaded) -> None:
    model, corpus = loaded
    odd = torch.as_tensor(corpus.train.columns["input_ids"][5])

    def overflow(module, args, out):
        rows = torch.tensor([len(odd) <= len(t) and bool((t[: len(odd)] == odd).all()) for t in args[0]])
        if out.requires_grad:
            out.register_hook(lambda g: g.masked_fill(rows[:, None, None], float("inf")))

    handle = model.register_forward_hook(overflow)
    try:
        assert main(["attrib", "fit", "--quiet"]) == 1
        assert f"ids [{corpus.train.ids[5]}]" in capsys.readouterr().err
        assert facts_of(capsys, "fit", "--skip-nan")["examples"] == 23
    finally:
        handle.remove()


def test_select(capsys, tmp_path, loaded) -> None:
    _, corpus = loaded
    out = tmp_path / "ids.txt"
    best = facts_of(capsys, "select", "--k", "5", "--out", str(out))["selected"]
    assert [int(line) for line in out.read_text().split()] == [row["id"] for row in best]
    scores = tmp_path / "scores.npz"
    facts_of(capsys, "score", "--out", str(scores))
    with np.load(scores) as saved:
        order = np.argsort(-saved["values"].mean(0), kind="stable")[:5]
        assert saved["train"][order].tolist() == [row["id"] for row in best]
    for how in ("bids", "dsir", "color"):
        chosen = {row["id"] for row in facts_of(capsys, "select", "--how", how, "--k", "6")["selected"]}
        assert len(chosen) == 6
        assert chosen <= set(corpus.train.ids.tolist())
    by_task = facts_of(capsys, "select", "--how", "bids", "--k", "3", "--task", "prompt")
    assert len(by_task["selected"]) == 3
    for name, start in (("ids.csv", "id\n"), ("ids.json", "[")):
        assert main(["attrib", "select", "--k", "2", "--quiet", "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert main(["attrib", "select", "--k", "2", "--quiet", "--out", str(tmp_path / "ids.parquet")]) == 0
    assert len(pandas.read_parquet(tmp_path / "ids.parquet")["id"]) == 2
    assert "2 of 24 examples by top" in capsys.readouterr().out
    for wrong in (["--k", "25"], ["--task", "colour"], ["--out", "ids.xls"]):
        assert main(["attrib", "select", "--quiet", *wrong]) == 2


def test_methods_are_those_of_the_registry(capsys, tmp_path) -> None:
    from whence.attrib.methods import METHODS

    assert main(["attrib", "methods", "--json", "--out", str(tmp_path / "methods.parquet")]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)
    assert pandas.read_parquet(tmp_path / "methods.parquet")["name"].tolist() == list(METHODS)


def test_plan_and_report(capsys, tmp_path) -> None:
    plan = facts_of(capsys, "plan", "--score", "4", "--index", "64", "--out", str(tmp_path / "plan.parquet"))
    assert plan["fits"]
    assert pandas.read_parquet(tmp_path / "plan.parquet")["name"].tolist() == [s["name"] for s in plan["stages"]]
    assert {stage["name"] for stage in plan["stages"]} == {"moments", "eigenvectors", "eigenvalues", "score", "index"}
    assert main(["attrib", "plan", "--memory", "20kB", "--no-measure", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "It does not fit" in printed.out
    assert "raise --memory" in printed.err
    page = tmp_path / "page.html"
    assert main(["attrib", "report", "--first", "1", "--quiet", "--out", str(page)]) == 0
    assert "<html" in page.read_text()
    table = tmp_path / "probe.csv"
    for out, end in ([], f"{tmp_path}; --out FILE writes a file"), (["--out", str(table)], f"written: {table}"):
        assert main(["attrib", "probe", "--probes", "layers", "--first", "1", "--limit", "8", "--quiet", *out]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(end)
    assert pandas.read_csv(table)["probe"].tolist() == ["layers"]


def test_wrong_usage(capsys, tmp_path) -> None:
    for arguments, cause in [
        (["score", "--prompt", "x"], "a prompt and a completion"),
        (["score", "--only-top", "--heads", "2"], "exclude each other"),
        (["query", "--candidates", "2"], "2 candidates for a list of 10"),
        (["fit", "--memory", "lots"], "--memory cannot be 'lots'"),
    ]:
        assert main(["attrib", *arguments, "--quiet"]) == 2
        assert cause in capsys.readouterr().err
    lines = tmp_path / "queries.jsonl"
    lines.write_text('{"prompt": "a", "completion": " b"}\n\n{"prompt": "c"}\n')
    assert main(["attrib", "score", "--queries", str(lines), "--quiet"]) == 1
    assert "line 3" in capsys.readouterr().err
    assert main(["attrib", "score", "--queries", str(tmp_path / "none.jsonl"), "--quiet"]) == 2
    assert "There is no file" in capsys.readouterr().err
    lines.write_text('{"prompt": "a", "completion": " b"}\n')
    assert facts_of(capsys, "score", "--queries", str(lines), "--top", "1")["queries"][0]["asked"] == "a [b]"
    assert [read_bytes(t) for t in ("4GB", "1.5 MiB", "10", "1e9", None)] == [4 * 10**9, 1_500_000, 10, 10**9, None]
    assert [read_seconds(t, "--older-than") for t in ("30d", "1.5 h", None)] == [30 * 86400, 5400, None]


def test_results_carry_ids_titles_texts_and_documents(capsys, tmp_path, loaded, monkeypatch) -> None:
    _, corpus = loaded
    about = {**corpus.train.about, "document": [f"file-{n % 12}" for n in range(24)]}
    named = replace(corpus, train=replace(corpus.train, about=about))
    monkeypatch.setattr(whence.inputs, "load_data", lambda name, vocabulary=None, **_: named)
    out = tmp_path / "scores.csv"
    found = facts_of(capsys, "score", "--top", "2", "--out", str(out))["queries"][0]
    text, document = dict(zip(corpus.train.ids, about["text"])), dict(zip(corpus.train.ids, about["document"]))
    for line in found["helpful"] + found["harmful"]:
        assert (line["text"], line["document"]) == (text[line["id"]][:80], document[line["id"]])
        assert line["title"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["document"] for row in rows} == set(about["document"])
    assert all(row["text"] == text[int(row["train"])][:80] and row["title"] for row in rows)
    groups = facts_of(capsys, "score", "--group-by", "document", "--top", "99")["queries"]
    assert {line["id"] for line in groups[0]["groups"]} == set(about["document"])
    assert all(groups[n]["asked"].startswith(corpus.queries.about["prompt"][n]) for n in range(2))
    assert main(["attrib", "score", "--quiet", "--top", "1"]) == 0
    best = found["helpful"][0]
    assert f"{best['id']}  ({best['document']})" in capsys.readouterr().out


def test_probabilities_and_impossible_predictions_are_shown(loaded) -> None:
    _, corpus = loaded
    values = np.array([[0.5, -3.0, 0.1], [0.0, 0.2, 0.3]])
    coords = {"query": corpus.queries.ids, "train": corpus.train.ids[:3], "logprob": ("query", [-0.25, -2.0])}
    marks = xarray.DataArray(values, dims=("query", "train"), coords=coords)
    marks = marks.assign_coords(impossible=(("query", "train"), values > 0.4))
    known = Titled(corpus.train.ids, corpus.train.about)
    entries = lists(known, entries_of(corpus.queries, logprob_of(marks)), top_of(marks, 2))
    assert [entry["logprob"] for entry in entries] == [-0.25, -2.0]
    assert [line.get("impossible") for line in entries[0]["helpful"]] == [True, None]
    text = lists_text(entries)
    assert text.count("IMPOSSIBLE") == 1
    found = [[line["id"] for line in entry[name]] for entry in entries for name in ("helpful", "harmful")]
    ids = corpus.train.ids[:3].tolist()
    assert found == [[ids[0], ids[2]], [ids[1]], [ids[2], ids[1]], []]  # by sign: no example is in both lists
    assert "(log-probability -0.25 nats)" in text


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    assert plain({"a": [float("nan"), 1.0], "b": (float("inf"),)}) == {"a": [None, 1.0], "b": [None]}


def test_a_recorded_run_sets_the_damping_unless_one_is_given(capsys, tmp_path, loaded) -> None:
    from whence.cache import runs

    model, corpus = loaded
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    with runs.record(tmp_path / "run", model, optimiser) as run:
        for rows in np.split(np.arange(24), 3):
            model(torch.zeros(1, 4, dtype=torch.long)).mean().backward()
            optimiser.param_groups[0]["lr"] = 1e-3
            optimiser.step()
            run.step(corpus.train.ids[rows])
            optimiser.zero_grad()
    recorded = ["--recorded", str(tmp_path / "run")]
    plan = facts_of(capsys, "plan", "--no-measure", *recorded)
    assert "of the recorded run, 3 steps of SGD" in plan["damping"]
    assert "no run of the training is recorded" in facts_of(capsys, "plan", "--no-measure")["damping"]
    assert plan["damping"].partition(" (")[0] == facts_of(capsys, "fit", *recorded)["damping"]
    assert facts_of(capsys, "fit", "--damping", "0.3", "--run", str(tmp_path / "run"))["damping"] == "0.3 relative"
    assert facts_of(capsys, "fit", "--set", "damping.rule=absolute")["damping"] == "0.1 absolute"
    assert main(["attrib", "fit", "--recorded", str(tmp_path / "none"), "--quiet"]) == 2
