"""Anybody's ensembles: the published forms of KLoM, files of every kind, and EasyDUB's folders."""

import json

import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from tests.unlearn import cases
from whence.cache import DataError, UsageError
from whence.cli import main
from whence.unlearn.ensembles import EasyDUB, compare, forget_indices, margins_of
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import run
from whence.unlearn.methods import Retrain
from whence.unlearn.metrics import FORMS, KLoM, noise_floor


def published(form: str, p: np.ndarray, q: np.ndarray) -> float:
    """One point of a published program, with its edges, its clipping and its `digitize`. p: unlearned, q: oracles."""
    if form == "data-unlearning-bench":
        p, q = q, p
    bins = 20
    p = np.clip(p, -100, 100)
    q = q if form == "dmm" else np.clip(q, -100, 100)
    low, high = min(p.min(), q.min()), max(p.max(), q.max())
    edges, first = (np.linspace(low, high, bins), 0) if form == "dmm" else (np.linspace(low, high, bins + 1), 1)

    def shares(samples):
        at = np.digitize(samples, edges)
        counts = np.array([np.sum(at == i) for i in range(first, first + bins)])
        return counts / counts.sum()

    mass, other = shares(p), shares(q)
    other = np.maximum(other, 1e-5) if form == "dmm" else np.where(mass > 0, np.maximum(other, 1e-5), other)
    if form != "easydub":  # scipy's entropy
        other = other / other.sum()
    return sum(a * np.log(a / b) for a, b in zip(mass, other) if a > 0)


def groups(models=24, seed=0, shift=3.0):
    rng = np.random.default_rng(seed)
    sizes = {"forget": 5, "retain": 25, "validation": 20}
    oracles = {part: rng.normal(2, 2, (2 * models, n)).astype(np.float32) for part, n in sizes.items()}
    unlearned = {
        part: (rng.normal(2, 2, (models, n)) + shift * (part == "forget")).astype(np.float32)
        for part, n in sizes.items()
    }
    return unlearned, oracles


@pytest.mark.parametrize("form", ["dmm", "data-unlearning-bench", "easydub"])
def test_each_published_form_is_its_program(form):
    rng = np.random.default_rng(1)
    p, q = (rng.normal(size=(60, 12)) * 30).astype(np.float64), (rng.normal(size=(60, 12)) * 40 + 20).astype(np.float64)
    slow = [published(form, p[:, i].astype(np.float32), q[:, i].astype(np.float32)) for i in range(12)]
    np.testing.assert_allclose(FORMS[form].metric(p, q), slow, rtol=2e-3)


def test_the_forms_differ_and_the_largest_sample_is_what_ours_keeps():
    p, q = np.zeros((20, 1)), np.zeros((20, 1))
    p[:10], q[:10] = 1.0, 1.0  # half of each at the joint maximum
    p[10:14] = 0.5
    values = {form: float(one.metric(p, q)[0]) for form, one in FORMS.items()}
    assert values["whence"] == pytest.approx(0.2 * np.log(0.2e5) + 0.3 * np.log(0.6), rel=1e-3)
    assert values["easydub"] == pytest.approx(0.4 * np.log(0.4e5) + 0.6 * np.log(0.6), rel=1e-3)  # half is lost
    assert values["data-unlearning-bench"] != pytest.approx(values["easydub"], rel=0.1)


def test_a_comparison_has_its_null_row_intervals_and_advice():
    unlearned, oracles = groups()
    found = compare(unlearned, oracles, before=unlearned, forms=["whence", "easydub"], resamples=5)
    assert found.models == 24
    assert {line.ensemble for line in found.lines} == {"oracles (null)", "unlearned", "no-op"}
    null, own = found["whence", "oracles (null)", "forget"], found["whence", "unlearned", "forget"]
    assert own.p95 > 1.5 * null.p95
    assert own.interval.low < own.p95 < own.interval.high
    assert found.advice["whence"][0.5].models > found.advice["whence"][1.0].models
    assert "150 show a shift of 1" in str(found)
    assert FORMS["easydub"].source in str(found)
    assert len(found.rows()) == 2 * 3 * 3
    assert "<svg" in found.page()
    assert found.plot().get_title() == "whence"


def test_with_too_few_oracles_for_a_null_row_noise_is_simulated_at_the_same_number():
    unlearned, oracles = groups()
    found = compare(unlearned, {part: values[:24] for part, values in oracles.items()}, models=24, resamples=0)
    noise = found["easydub", "noise (simulated)", "forget"]
    assert noise.p95 == noise_floor(24, metric=FORMS["easydub"].metric)
    assert "nan" not in str(found)


def test_what_cannot_be_compared_is_named():
    unlearned, oracles = groups()
    with pytest.raises(DataError, match="the oracles forget, retain"):
        compare({"forget": unlearned["forget"]}, oracles)
    with pytest.raises(DataError, match="7 unlearned models"):
        compare({part: values[:7] for part, values in unlearned.items()}, oracles)
    with pytest.raises(DataError, match="not 30 per side"):
        compare(unlearned, oracles, models=30)
    with pytest.raises(UsageError, match="no form of KLoM 'klom'"):
        compare(unlearned, oracles, forms=["klom"])


def write(kind, path, arrays):
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "safetensors":
        save_file(arrays, path)
    else:
        group = zarr.open_group(path, mode="w")
        for name, values in arrays.items():
            group.create_array(name, data=values)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "zarr"])
def test_arrays_of_every_kind_are_read(kind, tmp_path):
    _, oracles = groups()
    path = tmp_path / f"oracles.{kind}"
    write(kind, path, {"forget": oracles["forget"], "retain": oracles["retain"], "val": oracles["validation"]})
    read = margins_of(path)
    assert set(read) == {"forget", "retain", "validation"}
    for part, values in read.items():
        np.testing.assert_array_equal(values, oracles[part])


def test_train_is_divided_by_the_forget_set(tmp_path):
    train = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    np.save(tmp_path / "one.npy", train)
    np.save(tmp_path / "ids.npy", [3, 7])
    (tmp_path / "ids.json").write_text("[3, 7]")
    (tmp_path / "ids.txt").write_text("3, 7\n")
    (tmp_path / "steps.json").write_text('{"batch_indices": [1, 3], "count": 2}')
    for name in ("ids.npy", "ids.json", "ids.txt"):
        assert forget_indices(tmp_path / name).tolist() == [3, 7]
    assert forget_indices(tmp_path / "steps.json", block=2).tolist() == [2, 3, 6, 7]
    read = margins_of(tmp_path / "one.npy", forget=np.array([3, 7]))
    np.testing.assert_array_equal(read["forget"], train[:, [3, 7]])
    np.testing.assert_array_equal(read["retain"], np.delete(train, [3, 7], 1))
    assert set(margins_of(tmp_path / "one.npy")) == {"all"}
    for wrong in ([10], [-1], [3, 3], []):
        with pytest.raises(DataError, match="not distinct places"):
            margins_of(tmp_path / "one.npy", forget=np.array(wrong, np.int64))


def test_a_folder_of_one_file_a_model_is_in_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        np.save(tmp_path / f"state_{number}_margins.npy", np.full(6, number, np.float32))
    assert margins_of(tmp_path)["all"][:, 0].tolist() == [1, 2, 10]
    np.save(tmp_path / "state_3_margins.npy", np.zeros(5))
    with pytest.raises(DataError, match="another shape"):
        margins_of(tmp_path)


def test_logits_need_labels_and_give_the_same_margins(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    y = np.array([0, 1, 2, 3, 1, 0])
    np.savez(tmp_path / "logits.npz", train=logits)
    with pytest.raises(DataError, match="no labels"):
        margins_of(tmp_path / "logits.npz")
    read = margins_of(tmp_path / "logits.npz", labels={"train": y})["all"]
    slow = [
        [row[c] - np.log(sum(np.exp(z) for k, z in enumerate(row) if k != c)) for row, c in zip(one, y)]
        for one in logits
    ]
    np.testing.assert_allclose(read, slow, rtol=1e-4, atol=1e-5)


def test_files_that_are_no_arrays_are_named(tmp_path):
    for name, content in (("a.npz", b"text"), ("b.npy", b""), ("c.safetensors", b"{}"), ("d.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            margins_of(tmp_path / name)
    with pytest.raises(DataError, match="There is no"):
        margins_of(tmp_path / "none.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither \.npy files nor Zarr"):
        margins_of(tmp_path / "empty")
    np.savez(tmp_path / "other.npz", one=np.zeros((2, 2)), two=np.zeros((2, 2)))
    with pytest.raises(DataError, match="none is a part"):
        margins_of(tmp_path / "other.npz")
    assert set(margins_of(tmp_path / "other.npz", names={"forget": "one"})) == {"forget"}


def easydub(root, models=16):
    """A made folder: train 30 of which 5 are forgotten, validation 20."""
    rng = np.random.default_rng(0)
    ids = np.array([4, 8, 15, 16, 23])
    train, val = rng.normal(2, 1, (models, 30)).astype(np.float32), rng.normal(2, 1, (models, 20)).astype(np.float32)
    train[:, ids] += 5
    layout = EasyDUB(root)
    layout.write("pretrain", 2, {"retain": train, "validation": val, "forget": train[:, ids]}, ids)
    oracle = {"forget": rng.normal(2, 1, (2 * models, 5)), "retain": rng.normal(2, 1, (2 * models, 25))}
    layout.write("oracle", 2, {**oracle, "validation": rng.normal(2, 1, (2 * models, 20))})
    good = {"forget": rng.normal(2, 1, (models, 5)), "retain": train[:, np.delete(np.arange(30), ids)]}
    layout.write("dmm", 2, {**good, "validation": val})
    return layout, train, ids


def test_easydub_folders_are_those_of_its_dataset_card(tmp_path):
    layout, train, ids = easydub(tmp_path)
    for path in (
        "margins/cifar10/pretrain/retain/resnet9/id_0_epoch_23.npy",
        "margins/cifar10/pretrain/val/resnet9/id_15_epoch_23.npy",
        "margins/cifar10/pretrain/forget_2/resnet9/id_0_epoch_23.npy",
        "margins/cifar10/oracle/forget_2/forget/resnet9/id_31_epoch_23.npy",
        "margins/cifar10/oracle/forget_2/val/resnet9/id_0_epoch_23.npy",
        "forget_sets/cifar10/forget_set_2.npy",
    ):
        assert (tmp_path / path).is_file(), path
    assert layout.names() == ["dmm", "oracle", "pretrain"]
    read = layout.read("pretrain", 2)
    np.testing.assert_array_equal(read["retain"], np.delete(train, ids, 1))
    np.testing.assert_array_equal(read["forget"], train[:, ids])
    assert [len(values) for values in layout.read("oracle", 2, models=10).values()] == [10, 10, 10]
    with pytest.raises(DataError, match="The forget sets there: 2"):
        layout.forget_set(3)
    with pytest.raises(DataError, match="--network"):
        EasyDUB(tmp_path, network="resnet18").read("oracle", 2)


def test_one_command_evaluates_easydub_and_files(tmp_path, capsys):
    layout, train, ids = easydub(tmp_path / "dub")
    out, page = tmp_path / "table.csv", tmp_path / "page.html"
    command = ["unlearn", "evaluate-arrays", "--easydub", str(tmp_path / "dub"), "--forget-set", "2", "--resamples=2"]
    assert main([*command, "--unlearned", "dmm", "--json", "--out", str(out), "--page", str(page)]) == 0
    facts = json.loads(capsys.readouterr().out)
    p95 = {(row["form"], row["ensemble"], row["part"]): row["p95"] for row in facts["rows"]}
    for form in FORMS:
        assert p95[form, "no-op", "forget"] > 1.5 * p95[form, "unlearned", "forget"]
    assert facts["models"] == 16
    assert len(out.read_text().splitlines()) == 1 + len(facts["rows"])
    assert "EasyDUB" in page.read_text()
    np.savez(tmp_path / "u.npz", train=train, val=layout.read("pretrain", 2)["validation"])
    oracle = layout.read("oracle", 2)
    save_file(
        {"forget": oracle["forget"], "retain": oracle["retain"], "val": oracle["validation"]},
        tmp_path / "o.safetensors",
    )
    np.save(tmp_path / "ids.npy", ids)
    command = ["unlearn", "evaluate-arrays", "--unlearned", str(tmp_path / "u.npz"), "--oracles"]
    command += [str(tmp_path / "o.safetensors"), "--forget", str(tmp_path / "ids.npy"), "--json", "--resamples", "0"]
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    same = {(row["form"], row["part"]): row["p95"] for row in again["rows"] if row["ensemble"] == "unlearned"}
    assert same == {(form, part): value for (form, name, part), value in p95.items() if name == "no-op"}
    assert main(["unlearn", "evaluate-arrays", "--unlearned", str(tmp_path / "u.npz")]) == 2


def test_easydub_logits_are_read_with_labels(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y, ids, layout = rng.integers(0, 3, 20), np.array([1, 2]), EasyDUB(tmp_path, kind="logits")
    kept = np.delete(np.arange(20), ids)
    for name, models in (("pretrain", 8), ("oracle", 16)):
        train, val = rng.normal(size=(models, 20, 3)), rng.normal(size=(models, 6, 3))
        retain = train if name == "pretrain" else train[:, kept]
        layout.write(name, 1, {"forget": train[:, ids], "retain": retain, "validation": val}, ids)
    np.savez(tmp_path / "y.npz", train=y, val=np.zeros(6, np.int64))
    command = ["unlearn", "evaluate-arrays", "--easydub", str(tmp_path), "--kind", "logits", "--resamples", "0"]
    assert main([*command, "--labels", str(tmp_path / "y.npz")]) == 0
    assert "oracles (null)" in capsys.readouterr().out
    assert main(command) == 1


def test_a_split_is_written_in_that_layout_and_scores_the_same(tmp_path):
    request, layout = cases.request(), EasyDUB(tmp_path, "clouds", "net", 29)
    split = OracleSplit.of(request, cases.oracles(), cases.points(), KLoM(bins=4))
    done = run(Retrain(seed=50), request)
    layout.write_split(split, 3, [done])
    assert layout.names() == ["oracle", "pretrain", "retrain"]
    np.testing.assert_array_equal(cases.train().ids[layout.forget_set(3)], np.sort(cases.FORGET))
    found = compare(
        layout.read("retrain", 3), layout.read("oracle", 3), before=layout.read("pretrain", 3),
        forms={"own": KLoM(bins=4)}, resamples=0,
    )  # fmt: skip
    for name, row in (("oracles (null)", split.null()), ("no-op", split.no_op())):
        for part in ("forget", "retain", "validation"):
            assert found["own", name, part].p95 == pytest.approx(row.klom[part].p95)
    row = split.score("retrain", split.margins(done))
    assert found["own", "unlearned", "forget"].p95 == pytest.approx(row.klom["forget"].p95)
    few = OracleSplit.of(request, cases.oracles(), cases.points().select(np.r_[1:20, 41:60]))
    with pytest.raises(DataError, match="every training point"):
        layout.write_split(few, 3)
