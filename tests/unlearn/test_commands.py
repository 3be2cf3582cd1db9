"""The commands of bank and unlearn, in order, on the embedded digits."""

import json

import numpy as np
import pandas
import pytest

from whence.cache import DataError, Store, UsageError
from whence.classifiers import builder, labelled
from whence.commands import bank, unlearn
from whence.commands._classifier import forget_ids
from whence.unlearn import METHODS
from whence.unlearn.results import from_json, to_rows

SMALL = {"models": 8, "bank": 40, "epochs": 1, "steps": 4, "network": "mlp-8"}


def test_a_bank_a_datamodel_and_an_evaluation(tmp_path, capsys):
    root = str(tmp_path / "store")
    bank.Run(models=40, epochs=1, name="subsets", store=root, json=True).run()
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == told["different training sets"] == 40
    bank.Info("subsets", store=root, out=tmp_path / "bank.parquet").run()
    assert "kept by each" in capsys.readouterr().out
    assert pandas.read_parquet(tmp_path / "bank.parquet")["mask"].nunique() == 40
    unlearn.Datamodel("subsets", name="weights", store=root, json=True, out=tmp_path / "penalties.csv").run()
    assert -1 <= json.loads(capsys.readouterr().out)["lds"]["value"] <= 1
    assert pandas.read_csv(tmp_path / "penalties.csv")["chosen"].sum() == 1
    assert Store(root).get("weights").kind == "datamodel"
    out = tmp_path / "out" / "forgot.npz"
    unlearn.Run(method="dmm", forget="random:5", out=out, store=root, **SMALL).run()
    with np.load(out) as kept:
        assert kept["1.weight"].shape == (8, 8, 64)
        assert len(json.loads(str(kept["deletion_log"]))[0]["forgotten"]) == 5
    unlearn.Run(method="dm-direct", datamodel="weights", forget="random:5", out=out, store=root, **SMALL).run()
    assert "DM-Direct" in capsys.readouterr().out
    unlearn.Plan(forget="random:5", pilots=1, slack=1e9, store=root, json=True, out=tmp_path / "p.csv", **SMALL).run()
    plan = json.loads(capsys.readouterr().out)
    assert plan["chosen"] == "no-op"
    assert next(iter(plan["options"])) == "no-op"
    assert set(plan["options"]) == {"no-op", "Newton", "DMM", "retrain"}
    assert pandas.read_csv(tmp_path / "p.csv").query("chosen")["way"].tolist() == ["no-op"]
    x, y = np.zeros((20, 2), np.float32), np.arange(20) % 2
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match="fitted on other data"):
        unlearn.Run(datamodel="weights", data=str(tmp_path / "other.npz"), forget="1", store=root, **SMALL).run()
    where = tmp_path / "out" / "e.json"
    written = {"out": where, "easydub": tmp_path / "dub"}
    with pytest.warns(UserWarning, match="within noise"):
        unlearn.Evaluate(methods="scrub, dm-direct", forget="random:5", store=root, **written, **SMALL).run()
    assert "oracles (null)" in capsys.readouterr().out
    rows = to_rows(from_json(where.read_text()))
    assert [row["method"] for row in rows][:2] == ["oracles (null)", "no-op"]
    assert all(np.isfinite(row["forget_p95"]) for row in rows)
    unlearn.EvaluateArrays(
        "dm-direct", easydub=tmp_path / "dub", dataset="digits", network="mlp-8", forms="whence", resamples=0
    ).run()
    assert "| whence | no-op | forget | 5 |" in capsys.readouterr().out
    page = tmp_path / "page.html"
    unlearn.Report((where,), out=page).run()
    assert "SCRUB" in page.read_text()


def test_commands_name_what_is_wrong(tmp_path):
    train, points = labelled("digits")
    for text in ("random", "neighbours:3", "class:8:x"):
        with pytest.raises(UsageError, match="names no forget set"):
            forget_ids(text, train)
    assert forget_ids("3,4", train).tolist() == [3, 4]
    with pytest.raises(UsageError, match="no network"):
        builder("tree-3", points)
    with pytest.raises(DataError, match="no labelled data set"):
        labelled("nowhere")
    with pytest.raises(UsageError, match="nothing to report"):
        unlearn.Report(()).run()
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="no evaluation"):
        unlearn.Report((tmp_path / "x.json",)).run()
    assert builder("conv-4-4", points)(0)(points.batch([0, 1])["x"]).shape == (2, 10)


def test_every_method_is_reached_by_its_name(tmp_path, capsys):
    out, root = tmp_path / "forgot.npz", str(tmp_path / "store")
    unlearn.Methods(json=True).run()
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)
    settings = {"rmu": ("layer=1", "steps=2"), "scrub": ("epochs=1", "optimiser.lr=0.01"), "dmm": ("matching.steps=2",)}
    with pytest.raises(UsageError, match="lowers the logits of tokens"):
        unlearn.Run(method="undial", forget="random:5", out=out, store=root, **SMALL).run()
    for name, method in METHODS.items():
        if name == "undial":
            continue
        unlearn.Run(method=name, set=settings.get(name, ()), forget="random:5", out=out, store=root, **SMALL).run()
        assert capsys.readouterr().out.startswith(f"{method.title}: 5 examples")
    for wrong, words in (({"method": "dm"}, "no unlearning method"), ({"set": ("stepps=2",)}, "no setting 'stepps'"),
                         ({"method": "rmu"}, "--set layer=VALUE")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            unlearn.Run(**{"forget": "random:5", "out": out, "store": root, **SMALL, **wrong}).run()


@pytest.mark.parametrize("name", ["dmm", "oracle-matching", "retrain"])
def test_settings_are_checked_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.setattr("whence.cache.retrain.bank.train", lambda *args, **options: pytest.fail("trained"))
    options = {"store": str(tmp_path / "store"), "out": tmp_path / "out.npz", "forget": "random:5", **SMALL}
    with pytest.raises(UsageError, match="has no setting 'stepz'"):
        unlearn.Run(method=name, set=("stepz=3",), **options).run()
    with pytest.raises(UsageError, match=r"computes 'oracles' itself|has no setting 'oracles'"):
        unlearn.Run(method=name, set=("oracles=3",), **options).run()
    with pytest.raises(UsageError, match="no unlearning method 'scrubb'"):
        unlearn.Evaluate(methods="dmm,scrubb", store=options["store"], **SMALL).run()
