"""Evaluating a language model from the command line, on made data and on files as TOFU, MUSE and WMDP publish them."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from whence.cache import DataError, UsageError
from whence.cli import main
from whence.corpora import biographies
from whence.corpora.questions import biography_questions, local_questions
from whence.unlearn.language import METRICS, Passage, Question

from .tiny import saved, text


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tofu(folder, extra=()):
    """TOFU's files: one object a line in .json."""
    row = {
        "question": text(1),
        "answer": text(2),
        "paraphrased_answer": text(3),
        "perturbed_answer": [text(4), text(5)],
    }
    lines(folder / "forget10_perturbed.json", [row, {**row, "answer": text(6)}])
    lines(folder / "retain_perturbed.json", [row])
    options = {"question": text(1), "answer": text(2), "option1": text(2), "option2": text(7)}
    lines(folder / "real_authors_perturbed.json", [options])
    lines(folder / "world_facts_perturbed.json", [options])
    lines(folder / "full.json", [{"question": "unused", "answer": "unused"}])
    for name in extra:
        lines(folder / name, [row])


def muse(folder):
    """MUSE's files: lists, of texts for membership."""
    for name, rows in {
        "verbmem/forget": [{"prompt": text(1), "gt": text(2)}],
        "knowmem/forget_qa": [{"question": text(1), "answer": text(2)}],
        "knowmem/retain_qa": [{"question": text(3), "answer": text(4)}],
        "knowmem/forget_qa_icl": [{"question": "which fox", "answer": "brown"}],
        "privleak/forget": [text(1), text(2)],
        "privleak/holdout": [text(30), text(31)],
        "privleak/retain": [text(5)],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows))


def wmdp(folder):
    path = folder / "wmdp-bio" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pandas.DataFrame({"question": [text(1)], "choices": [["fox", "dog"]], "answer": [1]}).to_parquet(path)


def test_published_files_are_read_by_their_names(tmp_path):
    tofu(tmp_path / "TOFU")
    muse(tmp_path / "news")
    wmdp(tmp_path / "wmdp")
    data = local_questions([str(tmp_path / name) for name in ("TOFU", "news", "wmdp")])
    assert {part: len(data.of(part)) for part in data.parts} == {
        "forget": 2, "retain": 1, "real_authors": 1, "world_facts": 1, "verbmem": 1, "knowmem": 1, "retain_knowmem": 1,
        "examples": 1, "forget_text": 2, "holdout_text": 2, "choices": 1,
    }  # fmt: skip
    assert data.of("forget")[1] == Question(text(1), text(6), text(3), (text(4), text(5)))
    assert data.of("verbmem") == (Passage(text(1), text(2)),)
    assert data.of("choices")[0].choices == ("fox", "dog")
    assert not [metric.name for metric in METRICS.values() if metric().missing(data)]
    own = local_questions([f"knowmem={tmp_path / 'news/knowmem/forget_qa.json'}"], template="{question} ->")
    assert own.prompt("x") == "x ->"


def test_files_that_say_nothing_are_named(tmp_path):
    tofu(tmp_path / "TOFU", ["forget05_perturbed.json"])
    with pytest.raises(UsageError, match="several forget sets"):
        local_questions([str(tmp_path / "TOFU")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of TOFU"):
        local_questions([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="names no part"):
        local_questions([str(tmp_path / "none.json")])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        local_questions([f"forget={tmp_path / 'broken.json'}"])


def test_biographies_give_every_part_about_the_forgotten():
    corpus = biographies()
    data = biography_questions(corpus=corpus)
    assert not [metric.name for metric in METRICS.values() if metric().missing(data)]
    about = corpus.train.about
    people = {p for p in about["person"] if any(f" {p} " in f" {q.question} " for q in data.of("forget"))}
    assert len(people) == 4
    facts = {(p, v) for p, v in zip(about["person"], about["value"])}
    for part in ("forget", "retain", "real_authors", "world_facts"):
        for question in data.of(part):
            (person,) = {p for p in about["person"] if f" {p} " in f" {question.question} "}
            assert (person, question.answer) in facts
            assert (person in people) == (part == "forget")
            assert question.paraphrased == question.answer
            assert len({question.answer, *question.perturbed}) == 5
    texts = set(about["text"])
    assert all(f"{p.prompt} {p.continuation}" in texts for p in data.of("verbmem"))
    assert set(data.of("forget_text")) <= texts
    assert not set(data.of("holdout_text")) & texts
    assert len(data.of("holdout_text")) == len(data.of("forget_text"))
    assert all(c.choices[c.right] == q.answer for c, q in zip(data.of("choices"), data.of("forget")))
    words = {word for t in about["text"] for word in t.split()}
    assert {wrong for q in data.of("forget") for wrong in q.perturbed} <= words
    one = biography_questions([about["person"][0]], corpus)
    assert len(one.of("forget")) == 4
    with pytest.raises(UsageError, match="nobody called 'Ada'"):
        biography_questions(["Ada"], corpus)


def test_the_command_prints_every_metric(tmp_path, capsys):
    model, other = saved(tmp_path / "model"), saved(tmp_path / "other", layers=1)
    tofu(tmp_path / "TOFU")
    muse(tmp_path / "news")
    wmdp(tmp_path / "wmdp")
    command = ["unlearn", "evaluate-language", "--model", str(model), "--quiet", "--data"]
    command += [str(tmp_path / name) for name in ("TOFU", "news", "wmdp")] + ["--template", "{question}"]
    out = tmp_path / "table.csv"
    assert main([*command, "--retain-model", str(other), "--json", "--out", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = {row["metric"]: row["value"] for row in facts["metrics"]}
    assert set(METRICS) <= set(found)
    assert facts["not measured"] == {}
    assert len(out.read_text().splitlines()) == 1 + len(found)
    assert main([*command, "--metrics", "mia_min_k", "--set", "mia_min_k.k=0.2"]) == 0
    shown = capsys.readouterr().out
    assert "mia_min_k" in shown
    assert "mia_loss" not in shown
    assert main([*command, "--metrics", "mia_mink"]) == 2
    assert "mia_min_k" in capsys.readouterr().err


def test_margins_of_language_models_go_to_the_evaluation_of_arrays(tmp_path, capsys):
    folders = []
    for seed in range(8):
        folder = saved(tmp_path / f"m{seed}", "gpt2", layers=1)
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(folder)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        folders.append(str(folder))
    for part, first in (("forget", 0), ("retain", 10)):
        lines(tmp_path / f"{part}.jsonl", [{"text": text(first + k)} for k in range(3)])
    data = [f"{part}={tmp_path / part}.jsonl" for part in ("forget", "retain")]
    for window in ("0", "8"):
        out = tmp_path / f"{window}.npz"
        command = ["unlearn", "margins", *folders, "--window", window, "--out", str(out), "--quiet", "--data", *data]
        assert main(command) == 0
        with np.load(out) as file:
            assert set(file) == {"forget", "retain"}
            assert len(file["forget"]) == 8
            np.savez(tmp_path / "oracles.npz", **{name: np.tile(file[name], (2, 1)) for name in file})
            assert window == "0" or file["forget"].shape[1] % 8 == 0
    capsys.readouterr()
    command = ["unlearn", "evaluate-arrays", "--unlearned", str(out), "--oracles", str(tmp_path / "oracles.npz")]
    assert main([*command, "--resamples", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["p95"] == pytest.approx(0, abs=1e-3) for row in rows)
    assert main(["unlearn", "margins", folders[0]]) == 2


def test_the_biographies_model_is_judged_beside_one_that_never_read_the_people(tmp_path, capsys, monkeypatch):
    """Retrained in the command, and read from the file that `whence unlearn document` writes."""
    from safetensors.torch import save_file

    from whence.cache.model.stateless import named_parameters
    from whence.corpora import models
    from whence.language_model import Training, new_model

    corpus = biographies()
    monkeypatch.setattr(models, "BIOGRAPHIES_SHAPE", replace(models.BIOGRAPHIES_SHAPE, layers=1, width=16, heads=2))
    monkeypatch.setattr(models, "BIOGRAPHIES_TRAINING", Training(epochs=1, batch=256))
    seen = []
    trained = models.trained_model
    monkeypatch.setattr(models, "trained_model", lambda *a, **k: (seen.append(k["weights"]), trained(*a, **k))[1])
    model = new_model(replace(models.BIOGRAPHIES_SHAPE, vocabulary=len(corpus.vocabulary)))
    file = tmp_path / "forgot.safetensors"
    save_file({name: p.detach().contiguous().clone() for name, p in named_parameters(model).items()}, file)
    command = ["unlearn", "evaluate-language", "--model", str(file), "--retain-model", "retrained", "--quiet", "--json"]
    command += ["--store", str(tmp_path / "store"), "--metrics", "forget_quality,forget_Q_A_Prob"]
    person = corpus.train.about["person"][0]
    assert main([*command, "--people", person]) == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert 0 <= rows["forget_quality"]["value"] <= 1
    assert rows["forget_Q_A_Prob"]["value"] != rows["forget_Q_A_Prob"]["retain"]
    assert (seen[0] == 0).tolist() == [name == person for name in corpus.train.about["person"]]
    save_file({"other": torch.zeros(2)}, file)
    assert main(command) == 1
    assert "no weights of the biographies' model" in capsys.readouterr().err
