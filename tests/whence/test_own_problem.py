"""A model, a recipe and data of one's own, and a recorded run, where models are trained again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from tests.whence import tiny
from whence.cache import UsageError
from whence.cli import main
from whence.files import labelled_table
from whence.problems.own import own_problem
from whence.problems.registry import problem_of

BUILD = """
from torch import nn
from whence.cache import SGD, Classification, Recipe

def build(seed):
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
"""
RECIPE = f"{BUILD}\nrecipe = Recipe(2, 8, SGD(0.1), batches='shared')\n"
FUNCTION = f"""{BUILD}
import torch
epochs = 2

def recipe(model, examples, seed):
    for _ in range(epochs):
        loss = Classification().loss(model, examples.batch(range(len(examples)))).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 0.1 * gradient
    return model
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    lines = ["key,one,two,kind"]
    lines += [
        f"k{n},{a:.3f},{b:.3f},{'left' if a < b else 'right'}" for n, (a, b) in enumerate(rng.normal(size=(48, 2)))
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    return tmp_path


def facts_of(capsys: Any, *arguments: str) -> Any:
    assert main(["--debug", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("text", [RECIPE, FUNCTION], ids=["a recipe", "a function"])
def test_a_file_with_build_and_training_is_a_problem_everywhere(text: str, place: Path, capsys: Any) -> None:
    (place / "mine.py").write_text(text)
    own = ["--on", "mine.py", "--data", "rows.csv", "--label-column", "kind"]
    rows = facts_of(capsys, "attrib", "evaluate", *own, "--methods", "identity", "--subsets", "12", "--json",
                    "--out", "rows.parquet")  # fmt: skip
    assert [row["method"] for row in rows] == ["identity"]
    assert pandas.read_parquet("rows.parquet")["value"].tolist() == [rows[0]["value"]]
    assert -1 <= rows[0]["value"] <= 1
    bank = facts_of(capsys, "bank", "run", *own, "--models", "2", "--json")
    assert bank["points"] == 48
    assert bank["outputs"]["logits"] == [2, 48, 2]
    assert main(["unlearn", "run", *own, "--method", "retrain", "--models", "2", "--forget", "random:3"]) == 0
    assert "48 example passes" not in (said := capsys.readouterr().out)
    assert "42 example passes each (100.0 % of retraining)" in said  # twice the 21 that stay


def test_a_table_gives_features_and_classes(place: Path) -> None:
    found = labelled_table(Path("rows.csv"), {"label": "kind"})
    assert found["x_train"].shape == (24, 2)
    x, y = (np.concatenate([found[f"{name}_{part}"] for part in ("train", "test")]) for name in "xy")
    np.testing.assert_array_equal(y, x[:, 0] >= x[:, 1])


def test_what_a_problem_lacks_is_named(place: Path) -> None:
    (place / "none.py").write_text("x = 1")
    (place / "bad.py").write_text("import nowhere_to_be_found")
    (place / "nodata.py").write_text(BUILD)
    for name, said in (("none", "no function `build`"), ("bad", "ModuleNotFoundError"), ("nodata", "no `data"),
                       ("missing", "There is no file")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            own_problem(place / f"{name}.py")
    with pytest.raises(UsageError, match="digits has its own data"):
        problem_of("digits", data="rows.csv")
    with pytest.raises(UsageError, match="no problem 'digts'"):
        problem_of("digts")


LANGUAGE = """
from transformers import LlamaConfig, LlamaForCausalLM
tokenizer, sites = "model", "*.mlp.*"

def build(seed):
    return LlamaForCausalLM(LlamaConfig.from_pretrained("model"))
"""


def test_a_run_of_the_trainer_is_a_problem_whose_steps_are_taken_again(place: Path, capsys: Any) -> None:
    from transformers import Trainer, TrainingArguments

    from whence.cache import runs

    tiny.saved(place / "model", layers=1)
    tiny.texts_file(place / "texts.jsonl", 20)
    (place / "language.py").write_text(LANGUAGE)
    rows = own_problem("language.py", data="texts.jsonl").train.columns["input_ids"]

    def collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(item["ids"]) for item in items)
        padded = torch.tensor([[*item["ids"], *[0] * (width - len(item["ids"]))] for item in items])
        mask = torch.tensor([[1] * len(item["ids"]) + [0] * (width - len(item["ids"])) for item in items])
        return {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)}

    arguments = TrainingArguments(
        str(place / "out"), num_train_epochs=1, per_device_train_batch_size=6, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, remove_unused_columns=False, logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = own_problem("language.py", data="texts.jsonl").build(0)
    data: Any = [{"ids": row.tolist()} for row in rows]
    Trainer(model, arguments, train_dataset=data, data_collator=collated,
            callbacks=[runs.trainer_callback(place / "run", every=1)]).train()  # fmt: skip
    problem = own_problem("language.py", data="texts.jsonl", training="run")
    again = problem.bank().train_replicas(np.ones((1, len(rows)), bool)).module(0)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    own = ["--on", "language.py", "--data", "texts.jsonl", "--training", "run"]
    capsys.readouterr()  # of the Trainer
    found = facts_of(capsys, "attrib", "evaluate", *own, "--methods", "tracin", "--subsets", "12", "--json")
    assert [row["method"] for row in found] == ["tracin"]


def test_columns_have_the_names_of_the_data(place: Path, capsys: Any) -> None:
    tiny.saved(place / "model", layers=1)
    rows = [{"key": f"k{n}", "body": tiny.text(n), "head": f"h{n}", "kind": n % 2} for n in range(8)]
    (place / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "asked.jsonl").write_text(json.dumps({"ask": "the quick", "answer": " brown fox"}))
    names = ["--text-column", "body", "--id-column", "key", "--title-column", "head", "--label-column", "kind"]
    data = ["--model", "model", "--data", "own.jsonl", *names, "--quiet", "--json"]
    asked = ["--queries", "asked.jsonl", "--prompt-column", "ask", "--completion-column", "answer"]
    found = facts_of(capsys, "attrib", "score", *data, *asked, "--top", "1")
    best = found["queries"][0]["helpful"][0]
    assert best["title"] == best["document"].replace("k", "h")
    assert found["queries"][0]["asked"] == "the quick [brown fox]"
    at = ["--at", "blocks.0.hook_out", "--size", "8", "--k", "2", "--unexplained", "0.1", "--out", "dictionary"]
    assert facts_of(capsys, "decomp", "build", *data, *at)["atoms"] > 0
    judged = ["decomp", "evaluate", "dictionary", "--no-loss", "--quiet", "--json", "--out", "figures.csv"]
    figure = facts_of(capsys, *judged)["fvu"]["value"]
    table = pandas.read_csv("figures.csv").set_index("metric")
    np.testing.assert_allclose(table.loc["fvu", "value"], figure)
    probed = facts_of(capsys, "decomp", "probe", "dictionary", "--classes", "0", "1", "--column", "label",
                      "--atoms", "1", "--quiet", "--json")  # fmt: skip
    assert probed
