"""A recorded run: what a script did, as the methods find it again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import TracIn
from whence.cache import (
    Classification,
    DataError,
    Examples,
    LanguageModelling,
    ModelError,
    TrainedModel,
    UsageError,
    runs,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data() -> Examples:
    found = cases.vectors(count=14)
    return Examples.of((found.columns["x"].astype(np.float32), found.columns["y"]), ids=found.ids + 40)


def loop(folder: Path, stop: int = 7, optimiser: str = "AdamW") -> tuple[nn.Module, list[np.ndarray], list[float]]:
    """A plain loop of 7 steps, recorded; the trained model, the ids and the rate of every step."""
    model, train, seen, rates = network(), data(), [], []
    settings: dict[str, Any] = {"AdamW": {"lr": 0.1}, "SGD": {"lr": 0.1, "momentum": 0.9}, "RMSprop": {}}[optimiser]
    chosen = getattr(torch.optim, optimiser)(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LinearLR(chosen, 1.0, 0.1, 7)
    with runs.record(folder, model, chosen, every=3) as run:
        for number in range(7):
            if number == stop:
                raise KeyboardInterrupt
            rows = np.random.default_rng(number).choice(14, 5, replace=False)
            seen.append(train.ids[rows])
            rates.append(schedule.get_last_lr()[0])
            chosen.zero_grad()
            Classification().loss(model, train.batch(rows)).mean().backward()
            chosen.step()
            run.step(train.ids[rows])
            schedule.step()
    return model, seen, rates


def opened(folder: Path, **changes: Any) -> TrainedModel:
    given = {"model": network(), "train": data(), "task": Classification()} | changes
    return TrainedModel.from_run(folder, **given, quiet=True)


def test_a_plain_loop_is_opened_with_its_rates_order_and_moments(tmp_path: Path) -> None:
    model, seen, rates = loop(tmp_path)
    trained = opened(tmp_path)
    run = trained.training
    assert run is not None
    for ours, theirs in zip(trained.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [c.step for c in run.checkpoints] == [0, 3, 6, 7]
    np.testing.assert_allclose(run.rates[:, 0], rates)
    assert run.ids is not None
    for ours, theirs in zip(run.ids, seen, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run.optimiser == "AdamW"
    assert run.groups[0].settings["betas"] == [0.9, 0.999]
    start, end = run.checkpoints[0], run.checkpoints[-1]
    torch.testing.assert_close(start.read()["0.weight"], network()[0].weight.detach())
    assert not start.read("exp_avg_sq")
    assert set(end.read("exp_avg_sq")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert repr(run) == "TrainingRun(7 steps of AdamW, 4 checkpoints, order of examples recorded)"


def test_another_run_has_another_fingerprint(tmp_path: Path) -> None:
    loop(tmp_path / "a")
    loop(tmp_path / "b")
    loop(tmp_path / "c", optimiser="SGD")
    a, b, c = (runs.open_run(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_run_of_an_unknown_optimiser_keeps_weights_and_rates(tmp_path: Path) -> None:
    loop(tmp_path, optimiser="RMSprop")
    run = runs.open_run(tmp_path)
    assert run.optimiser == "RMSprop"
    assert run.checkpoints[-1].read()
    assert not run.checkpoints[-1].read("exp_avg_sq")


def test_a_run_that_was_stopped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, stop=5)
    with pytest.raises(DataError, match="not finished"):
        opened(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def rewritten(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (lambda f: cut(f / "checkpoint-00000007.safetensors"), DataError, "00007.safetensors is damaged"),
        (lambda f: (f / "checkpoint-00000003.safetensors").unlink(), DataError, "is damaged"),
        (lambda f: cut(f / "steps.jsonl"), DataError, "is damaged"),
        (lambda f: (f / "steps.jsonl").write_text(""), DataError, "0 steps where 7"),
        (lambda f: (f / "steps.jsonl").unlink(), DataError, "is damaged"),
        (lambda f: cut(f / "run.json"), DataError, "is damaged"),
        (lambda f: rewritten(f / "run.json", checkpoints=[]), DataError, "no checkpoint"),
        (lambda f: rewritten(f / "run.json", format="whence-run/9"), DataError, "Update Whence"),
        (lambda f: (f / "run.json").write_text("{}"), UsageError, "another program"),
        (lambda f: (f / "run.json").write_text("[1]"), UsageError, "another program"),
        (lambda f: (f / "run.json").unlink(), UsageError, "no recorded run"),
    ],
)
def test_a_damaged_or_foreign_folder_is_a_typed_error(tmp_path: Path, harm: Any, error: Any, words: str) -> None:
    loop(tmp_path)
    harm(tmp_path)
    with pytest.raises(error, match=words):
        opened(tmp_path)


def test_another_architecture_and_other_data_are_named(tmp_path: Path) -> None:
    loop(tmp_path)
    with pytest.raises(ModelError, match=r"0\.weight"):
        opened(tmp_path, model=nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)))
    with pytest.raises(ModelError, match="which this model has not"):
        opened(tmp_path, model=nn.Linear(4, 3))
    with pytest.raises(DataError, match=r"other|not among these 3"):
        opened(tmp_path, train=data().select([0, 1, 2]))


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    loop(tmp_path)
    with pytest.raises(UsageError, match=r"a run in .* already"):
        loop(tmp_path)
    model = network()
    with (
        pytest.raises(UsageError, match="no parameter of this model"),
        runs.record(tmp_path / "b", model, torch.optim.SGD(network().parameters(), 0.1)),
    ):
        pass
    with (
        pytest.raises(UsageError, match="undefined"),
        runs.record(tmp_path / "c", model, torch.optim.SGD(model.parameters(), 0.1), every=0),
    ):
        pass


def test_of_a_model_with_frozen_weights_the_trained_ones_are_recorded(tmp_path: Path) -> None:
    """A run of adapters keeps them alone; the rest is the base's, which must be the one that they were trained on."""
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        torch.manual_seed(1)
        return peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0", "2"]))

    model, train = adapted(), data()
    chosen = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    with runs.record(tmp_path, model, chosen, every=2) as run:
        for number in range(4):
            rows = np.arange(14)[number::4]
            chosen.zero_grad()
            Classification().loss(model, train.batch(rows)).mean().backward()
            chosen.step()
            run.step(train.ids[rows])
    found = opened(tmp_path, model=adapted())
    assert found.training is not None
    saved = runs.open_run(tmp_path).checkpoints
    assert all("lora" in name for checkpoint in saved for name in checkpoint.read())
    for ours, theirs in zip(found.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert found.training.checkpoints[0].read().keys() == dict(model.named_parameters()).keys()
    scores = TracIn().fit(found).score(train.select([0, 1]))
    by_hand = TracIn(checkpoints=[found.at(c.read()).model for c in found.training.checkpoints[:-1]])
    assert scores.shape == by_hand.fit(found).score(train.select([0, 1])).shape == (2, 14)
    assert scores.values.any()
    other = adapted()
    with torch.no_grad():
        next(p for p in other.parameters() if not p.requires_grad).add_(1.0)
    with pytest.raises(ModelError, match="frozen ones of this model are not those"):
        opened(tmp_path, model=other)
    with (
        pytest.raises(UsageError, match="frozen when the run began"),
        runs.record(tmp_path / "b", other, torch.optim.SGD([p for p in other.parameters() if p.requires_grad], 0.1)),
        torch.no_grad(),
    ):
        next(p for p in other.parameters() if not p.requires_grad).add_(1.0)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_trainer_is_recorded_as_a_plain_loop_would_be(tmp_path: Path, accumulated: int) -> None:
    """The recorded rows, rates and clipping, taken again by hand from the recorded start, end at the recorded end."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def built() -> Any:
        torch.manual_seed(0)
        size = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 11}
        return GPT2LMHeadModel(GPT2Config(**size, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))

    tokens = torch.randint(0, 11, (10, 6), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, 0] = -100  # never predicted; this loss would count it in its mean
    rows = [{"input_ids": row, "labels": own} for row, own in zip(tokens, labels)]
    args = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        gradient_accumulation_steps=accumulated, save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=99,
        adam_epsilon=1e-4,
    )  # fmt: skip
    model = built()
    Trainer(model, args, train_dataset=rows, callbacks=[runs.trainer_callback(tmp_path / "run", every=2)]).train()
    train = Examples.of({"input_ids": tokens.numpy()}, ids=np.arange(10) + 100)
    trained = TrainedModel.from_run(tmp_path / "run", built(), train, LanguageModelling(), quiet=True)
    run = trained.training
    assert run is not None
    assert run.ids is not None
    assert run.clip == 1.0
    assert sorted(np.concatenate(run.ids)) == sorted([*train.ids, *train.ids])
    assert [len(each) for each in run.ids] == {1: [4, 4, 2] * 2, 2: [8, 2] * 2}[accumulated]
    by_hand = built().train()
    optimiser = torch.optim.AdamW(by_hand.parameters(), weight_decay=0.0, eps=1e-4)
    for ids, rates in zip(run.ids, run.rates):
        optimiser.param_groups[0]["lr"] = rates[0]
        optimiser.zero_grad()
        batch = torch.as_tensor(train.columns["input_ids"])[ids - 100]
        by_hand(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimiser.step()
    for name, ours in trained.model.named_parameters():
        torch.testing.assert_close(ours, by_hand.get_parameter(name), rtol=1e-3, atol=1e-4)
    assert trained.task.loss(trained.model, train.batch([0, 1])).shape == (2,)
