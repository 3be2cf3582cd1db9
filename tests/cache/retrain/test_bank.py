"""The bank trains what one model at a time would be, and never passes a tainted model off as an oracle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whence.cache import Classification, DataError, Examples, ModelError, NumericalError, Store, UsageError, errors
from whence.cache.retrain import bank as bank_module
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule, steps_of
from whence.cache.retrain.retrained import mask_hash, oracle_masks, subset_masks


def data(n: int = 48, d: int = 16, c: int = 3) -> Examples:
    generator = np.random.default_rng(0)
    y = np.arange(n) % c
    x = generator.normal(size=(n, d)).astype(np.float32) + 2 * np.eye(c, d, dtype=np.float32)[y]
    return Examples.of((x, y), ids=100 + np.arange(n))


def mlp(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


class Convolutional(nn.Module):
    def __init__(self, norm: type[nn.Module] | None = None):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding="same", bias=False)
        self.norm = norm(6) if norm else nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x.view(-1, 1, 4, 4))), 2)
        return self.head(F.avg_pool2d(self.norm(self.second(x)), 2).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(self.embed(x.view(-1, 4, 4))).mean(1))


def alone(bank: Bank, mask: np.ndarray, seed: int) -> nn.Module:
    """The slow twin: one model, torch's own optimiser, a loop."""
    model, recipe, o = bank.build(seed), bank.recipe, bank.recipe.optimiser
    if isinstance(o, SGD):
        torch_optimiser = torch.optim.SGD(
            model.parameters(), o.lr, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov
        )
    else:
        torch_optimiser = torch.optim.AdamW(model.parameters(), o.lr, o.betas, o.eps, o.weight_decay)
    x, y = (torch.as_tensor(bank.train.columns[name]) for name in "xy")
    steps, totals = steps_of(mask[None], np.array([seed]), recipe)
    for number, step in enumerate(steps):
        rows, weights = step.rows.reshape(-1), torch.as_tensor(step.weights[0])
        loss = (F.cross_entropy(model(x[rows]), y[rows], reduction="none") * weights).sum() / weights.sum()
        factor = recipe.schedule.factor(torch.tensor([[float(number)]]), torch.tensor([[float(totals[0])]]))
        torch_optimiser.param_groups[0]["lr"] = o.lr * float(factor)
        torch_optimiser.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        torch_optimiser.step()
    return model.eval()


RECIPES = {
    "sgd": Recipe(3, 10, SGD(0.05, 0.9, 1e-3), Schedule("cosine", 0.2)),
    "nesterov": Recipe(3, 10, SGD(0.05, 0.9, nesterov=True), Schedule("linear"), clip=0.5),
    "adamw": Recipe(3, 10, AdamW(1e-2, weight_decay=0.1)),
    "shared": Recipe(3, 10, SGD(0.05), batches="shared"),
}
MODELS = {
    "mlp": mlp,
    "conv": lambda seed: Convolutional(),
    "attention": lambda seed: Attention(),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_model_is_the_one_trained_alone(model, recipe):
    train = data()
    bank = Bank(MODELS[model], Classification(), train, train, RECIPES[recipe])
    masks = subset_masks(len(train), 5, 0.5)
    masks[1, :20] = True  # another number of steps than its neighbours'
    retrained = bank.run(masks, quiet=True)
    assert retrained.about["why_sequential"] is None
    for e in (1, 3):
        expected = alone(bank, masks[e], e)(torch.as_tensor(train.columns["x"])).detach().numpy()
        np.testing.assert_allclose(retrained["logits"][e], expected, atol=2e-4)


def test_a_model_does_not_depend_on_its_company():
    train = data()
    bank = Bank(mlp, Classification(), train, train, RECIPES["sgd"], keep=("logits", "weights"))
    masks, seeds = subset_masks(len(train), 6, 0.7), np.arange(6)
    whole = bank.run(masks, seeds, quiet=True)
    part = bank.run(masks[4:], seeds[4:], quiet=True)
    np.testing.assert_allclose(whole["weights"][4:], part["weights"], atol=1e-6)
    one_at_a_time = Bank(mlp, Classification(), train, train, RECIPES["sgd"], memory=1)
    np.testing.assert_allclose(whole["logits"], one_at_a_time.run(masks, seeds, quiet=True)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda seed: Convolutional(nn.BatchNorm2d), "running statistics"),
        (lambda seed: nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3)), "draws from one"),
        (lambda seed: Branching(), "cannot stack"),
    ],
)
def test_what_cannot_be_stacked_trains_one_at_a_time_and_says_why(build, reason, capsys, monkeypatch):
    train = data(24)
    bank = Bank(build, Classification(), train, train, Recipe(2, 8, SGD(0.01)))
    masks = subset_masks(24, 2, 0.5)
    retrained = bank.run(masks)
    assert reason in retrained.about["why_sequential"]
    again = bank.run(masks[1:], np.array([1]), quiet=True)
    np.testing.assert_allclose(retrained["logits"][1:], again["logits"], atol=1e-6)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(x) if bool((x.sum() * self.head.weight.sum()) > 0) else self.head(x) * 0.5


def test_batch_statistics_of_left_out_examples_are_refused():
    train = data(24)
    bank = Bank(
        lambda seed: Convolutional(nn.BatchNorm2d), Classification(), train, train, Recipe(2, 8, batches="shared")
    )
    with pytest.raises(ModelError, match="left-out examples"):
        bank.run(subset_masks(24, 2, 0.5), quiet=True)


def test_oracles_are_refused_when_a_mask_holds_the_forget_set():
    train = data()
    bank = Bank(mlp, Classification(), train, train, Recipe(1, 16))
    forget = train.ids[[2, 5, 7]]
    good = bank.run(oracle_masks(train.ids, forget, 3), quiet=True)
    assert len(good.oracles(forget)) == 3
    assert good.hashes[0] == good.hashes[1] == mask_hash(train.ids[::-1], good.masks[0][::-1])
    tainted = good.masks.copy()
    tainted[1, 5] = True
    with pytest.raises(DataError, match="saw 1 of 3 examples"):
        bank.run(tainted, quiet=True).oracles(forget)
    with pytest.raises(DataError, match="lack more than the forget set"):
        good.oracles(forget[:2])
    random = bank.run(subset_masks(len(train), 12, 0.5), quiet=True)
    with pytest.raises(DataError, match="trained on what should be forgotten"):
        random.oracles(forget)
    left = random.excluding(forget)
    assert not left.masks[:, [2, 5, 7]].any()
    assert len(left) < 12


@pytest.mark.parametrize(
    ("forget", "words"), [([], "is empty"), (np.arange(100, 148), "whole training set"), ([7], "not among")]
)
def test_forget_sets_that_cannot_be(forget, words):
    with pytest.raises(DataError, match=words):
        oracle_masks(data().ids, forget, 2)


def test_one_set_of_retrainings_three_uses(store, monkeypatch):
    """Stored once; then scores, regression and oracles read it, and nothing is trained again."""
    from scipy.stats import spearmanr

    train = data()
    forget = train.ids[:6]
    bank = Bank(mlp, Classification("margin"), train, train, RECIPES["sgd"], keep=("logits", "measurements"))
    masks = np.concatenate([subset_masks(len(train), 40, 0.5), oracle_masks(train.ids, forget, 4)])
    first = bank.run(masks, store=store, quiet=True)
    monkeypatch.setattr("whence.cache.retrain.bank.train", lambda *a, **k: pytest.fail("trained again"))
    again = bank.run(masks, store=store, quiet=True)
    assert [event.what for event in store.events] == ["built", "hit"]
    np.testing.assert_array_equal(first["logits"], again["logits"])
    measured = again["measurements"][:40]  # a linear datamodeling score
    design = np.linalg.pinv(np.c_[masks[:20], np.ones(20)].astype(float)) @ measured[:20]
    assert np.isfinite(spearmanr((np.c_[masks[20:40], np.ones(20)] @ design)[:, 0], measured[20:, 0])[0])
    assert again["logits"][:40].reshape(40, -1).shape == (40, len(train) * 3)  # a regression's targets
    assert len(again.select(np.arange(40, 44)).oracles(forget)) == 4


def test_an_interrupted_bank_resumes_by_shard(store, monkeypatch):
    monkeypatch.setattr(bank_module, "MODELS_IN_A_SHARD", 2)
    train = data(24)
    bank = Bank(mlp, Classification(), train, train, Recipe(1, 8))
    masks = subset_masks(24, 6, 0.5)
    real, calls = bank_module.train, []

    def failing(replicas, *rest, **named):
        if "most" not in named:  # not the check of determinism
            calls.append(len(replicas))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return real(replicas, *rest, **named)

    monkeypatch.setattr(bank_module, "train", failing)
    with pytest.raises(errors.Interrupted, match="1 of 3 partitions"):
        bank.run(masks, store=store, quiet=True)
    resumed = bank.run(masks, store=store, quiet=True)
    assert len(calls) == 2 + 2  # one shard was there, two were left
    monkeypatch.setattr(bank_module, "train", real)
    np.testing.assert_allclose(resumed["logits"], bank.run(masks, quiet=True)["logits"], atol=1e-6)


def test_a_training_function_of_ones_own():
    train = data(24)

    def fit(model: nn.Module, examples: Examples, seed: int) -> nn.Module:
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            batch = examples.batch(np.arange(len(examples)))
            optimiser.zero_grad()
            F.cross_entropy(model(batch["x"]), batch["y"]).backward()
            optimiser.step()
        return model

    def careless(model: nn.Module, examples: Examples, seed: int) -> nn.Module:
        with torch.no_grad():
            model[0].weight.add_(torch.from_numpy(np.random.default_rng().normal(size=(8, 16)).astype("f4")))
        return model

    masks = subset_masks(24, 3, 0.5)
    assert Bank(mlp, Classification(), train, train, fit).run(masks, quiet=True)["logits"].shape == (3, 24, 3)
    with pytest.raises(ModelError, match="not deterministic under its seed"):
        Bank(mlp, Classification(), train, train, careless).run(masks, quiet=True)


def test_bad_input_is_named():
    train = data(24)
    bank = Bank(mlp, Classification(), train, train, Recipe(1, 8))
    with pytest.raises(DataError, match="do not match 24"):
        bank.run(np.ones((2, 23), bool))
    with pytest.raises(DataError, match="keeps no example"):
        bank.run(np.zeros((2, 24), bool))
    with pytest.raises(DataError, match="3 seeds for 2 masks"):
        bank.run(np.ones((2, 24), bool), np.arange(3))
    with pytest.raises(UsageError, match="cannot keep"):
        Bank(mlp, Classification(), train, train, keep=("gradients",))
    with pytest.raises(UsageError, match="schedule"):
        Schedule("triangle")
    with pytest.raises(DataError, match="keeps 24"):
        subset_masks(24, 2, 1.0)
    with pytest.raises(NumericalError, match="diverged"):
        Bank(mlp, Classification(), train, train, Recipe(60, 8, SGD(1e20, weight_decay=1e20))).run(
            np.ones((2, 24), bool), quiet=True
        )
    with pytest.raises(DataError, match="kept no 'weights'"):
        bank.run(np.ones((2, 24), bool), quiet=True)["weights"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_the_check_of_determinism_trains_a_few_steps_only(monkeypatch):
    train, seen = data(), []
    bank = Bank(mlp, Classification(), train, train, Recipe(4, 8, SGD(0.01)))
    update = SGD.update
    monkeypatch.setattr(SGD, "update", lambda self, g, *rest: seen.append(len(g)) or update(self, g, *rest))
    bank.run(subset_masks(len(train), 3, 0.5), quiet=True)
    assert (seen.count(3), seen.count(2)) == (12, 8)


def normalised(seed: int) -> nn.Module:
    return Convolutional(nn.BatchNorm2d)


@pytest.mark.parametrize("stored", [False, True])
def test_running_statistics_travel_with_a_trained_copy(place, stored):
    bank = Bank(normalised, Classification(), data(), data(), Recipe(2, 8, AdamW(1e-2)), keep=("weights", "logits"))
    store = place if stored else None
    kept = bank.run(np.ones((2, 48), bool), store=store, quiet=True)
    copies = bank.replicas(kept)
    assert float((copies.buffers["norm.running_mean"]).abs().max()) > 0
    assert copies.buffers["norm.num_batches_tracked"].tolist() == [12, 12]
    np.testing.assert_allclose(copies.outputs(bank.task, bank.points, ["logits"])["logits"], kept["logits"], atol=1e-5)
    again = bank.models(2, store=store, quiet=True)
    for name, values in copies.buffers.items():
        torch.testing.assert_close(again.buffers[name], values)


class Scaled(nn.Module):
    """Has a plain number that training changes and that is no buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(16, 3), 1.0

    def forward(self, x):
        return self.layer(x) * self.scale


def test_a_copy_that_gives_other_outputs_than_its_model_is_refused():
    def scaling(model, examples, seed):
        model.scale = 3.0
        return model

    def build(seed):
        return Scaled()

    bank = Bank(build, Classification(), data(), data(), scaling, keep=("weights", "losses"))
    with pytest.raises(ModelError, match="copies do not give the losses that were stored"):
        bank.replicas(bank.run(np.ones((2, 48), bool), quiet=True))


class FrozenFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(16, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.features(x).tanh())


def test_frozen_parameters_are_each_models_own():
    bank = Bank(lambda seed: FrozenFeatures(), Classification(), data(), data(), RECIPES["sgd"], keep=("logits",))
    masks = np.ones((2, 48), bool)
    together = bank.run(masks, quiet=True)["logits"]
    for e in range(2):
        np.testing.assert_allclose(bank.run(masks[:1], np.array([e]), quiet=True)["logits"][0], together[e], atol=1e-5)


def test_batch_normalisation_over_one_example_is_refused_before_training():
    def build(seed):
        return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    bank = Bank(build, Classification(), data(49), data(), Recipe(1, 8, SGD(0.1)), keep=("losses",))
    with pytest.raises(ModelError, match=r"batch of one example(.|\n)*batch size"):
        bank.run(np.ones((1, 49), bool), quiet=True)
    mask = np.ones((1, 49), bool)
    mask[0, 0] = False
    assert np.isfinite(bank.run(mask, quiet=True)["losses"]).all()


def test_builds_that_differ_at_a_later_seed_have_banks_of_their_own(place):
    def small(seed):
        return mlp(seed)

    def other(seed):
        model = mlp(seed)
        if seed == 2:
            nn.init.zeros_(model[0].weight)
        return model

    masks = np.ones((3, 48), bool)
    banks = [Bank(b, Classification(), data(), data(), RECIPES["sgd"], keep=("logits",)) for b in (small, other)]
    first, second = (bank.run(masks, store=place, quiet=True) for bank in banks)
    np.testing.assert_array_equal(first["logits"][0], second["logits"][0])
    assert np.abs(first["logits"][2] - second["logits"][2]).max() > 1e-3
    for bank, kept in zip(banks, (first, second)):
        assert bank.run(masks, store=place, quiet=True).about["key"] == kept.about["key"]


def test_forget_sets_are_ids_or_a_mask():
    ids = 100 + np.arange(10)
    mask = np.zeros(10, bool)
    mask[[7, 9]] = True
    np.testing.assert_array_equal(oracle_masks(ids, mask, 2), oracle_masks(ids, [107, 109], 2))
    for given, cause in (
        (mask[:4], "A mask of shape"),
        ([100.0, 102.7], "cannot be an id"),
        ([100, 101, 100], r"named twice, for instance \[100\]"),
        (np.array([2**63 + 5], np.uint64), "beyond 63 bits"),
        (["a"], "not among"),
    ):
        with pytest.raises(DataError, match=cause):
            oracle_masks(ids, given, 2)


def test_oracles_take_the_same_forget_sets():
    bank = Bank(mlp, Classification(), data(), data(), RECIPES["sgd"], keep=("losses",))
    mask = np.zeros(48, bool)
    mask[[7, 9]] = True
    found = bank.run(np.stack([~mask, ~mask]), quiet=True)
    assert len(found.oracles(mask)) == len(found.excluding(mask)) == 2
    with pytest.raises(DataError, match="were trained on what should be forgotten"):
        found.oracles([100, 101])
    for refused in ([100.0], [107, 107], mask[:3]):
        with pytest.raises(DataError, match=r"A mask of shape|twice|cannot be an id"):
            found.oracles(refused)
        with pytest.raises(DataError, match=r"A mask of shape|twice|cannot be an id"):
            found.excluding(refused)
    assert found.at_points(mask).tolist() == [7, 9]


def linear(seed: int = 0) -> nn.Module:
    return nn.Linear(4, 3)


def table(dtype: str = "f4", width: int = 4, first: int = 0) -> Examples:
    x = np.random.default_rng(0).normal(size=(6, width)).astype(dtype)
    return Examples.of((x, np.arange(6) % 3 + first))


@pytest.mark.parametrize(
    ("train", "points", "cause"),
    [
        (table(width=5), table(), "cannot be run on the example"),
        (table(), table(width=5), "cannot be run on the example"),
        (table(first=1), table(), "y has 3 for a model with 3 outputs"),
        (table(), table(first=1), "y has 3 for a model with 3 outputs"),
        (table(), table().select([]), "set of points is empty"),
    ],
)
def test_data_that_cannot_be_trained_on_or_measured_are_refused_with_ids(train, points, cause) -> None:
    with pytest.raises(DataError, match=cause):
        Bank(linear, Classification(), train, points, Recipe(1, 4)).run(np.ones((2, 6), bool), quiet=True)


def test_points_without_labels_have_logits() -> None:
    points = Examples.of({"x": table().columns["x"]})
    bank = Bank(linear, Classification(), table(), points, Recipe(1, 4), keep=("logits",))
    assert bank.run(np.ones((2, 6), bool), quiet=True)["logits"].shape == (2, 6, 3)


def test_data_of_another_float_type_train_the_same_models() -> None:
    masks = np.ones((2, 6), bool)
    one, other = (
        Bank(linear, Classification(), data, data, Recipe(1, 4)).run(masks, quiet=True)["logits"]
        for data in (table("f4"), Examples.of((table("f4").columns["x"].astype("f8"), np.arange(6) % 3)))
    )
    np.testing.assert_array_equal(one, other)


def test_a_batch_beyond_the_data_costs_no_memory() -> None:
    masks = np.ones((2, 6), bool)
    one, other = (
        Bank(linear, Classification(), table(), table(), Recipe(2, size)).run(masks, quiet=True)["logits"]
        for size in (6, 10**12)
    )
    np.testing.assert_array_equal(one, other)


def test_seeds_are_whole() -> None:
    bank = Bank(linear, Classification(), table(), table(), Recipe(1, 4))
    with pytest.raises(DataError, match="Seeds of type float64"):
        bank.run(np.ones((2, 6), bool), np.array([0.5, 1.0]), quiet=True)
