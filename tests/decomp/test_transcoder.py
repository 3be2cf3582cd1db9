"""Transcoders: the code of one hook point, decoded as the activations of another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.decomp.reference import problem
from whence import decomp
from whence.cache import Examples, Regression, Store, TrainedModel
from whence.cache.errors import DataError, ModelError, UsageError
from whence.decomp import BUILDERS, ITDA, SAE, Activations, Random, evaluate, loss_recovered, observe
from whence.decomp.activations import Origin
from whence.decomp.evaluate import losses
from whence.decomp.splice import replaced
from whence.decomp.transcoder import Transcoder, transcoder_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.act, self.down = nn.Linear(6, 8), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.act(self.up(self.first(x)))))


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = Examples.of(
        {"x": rng.normal(size=(200, 6)).astype(np.float32), "y": rng.normal(size=(200, 2)).astype(np.float32)}
    )
    return TrainedModel(Net(), data, Regression(), quiet=True)


@pytest.fixture(scope="module")
def pairs(trained) -> Activations:
    seen = observe(trained, ["first", "down"])
    return seen["first"].paired(seen["down"])


def test_output_directions_are_least_squares() -> None:
    x, _ = problem(0, b=300, d=6)
    y = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32) + 2
    codec = ITDA(size=20, k=2).build(x)
    found = transcoder_of(codec, Activations.of(x).paired(Activations.of(y)))
    dense, code = np.zeros((300, 20)), codec.encode(x)
    np.add.at(dense, (np.arange(300)[:, None], np.asarray(code.indices)), np.asarray(code.values))
    centred = dense - dense.mean(axis=0)
    gram = centred.T @ centred + 1e-4 * np.mean(np.sum(dense**2, axis=0)) * np.eye(20)
    expected = np.linalg.solve(gram, centred.T @ (y - y.mean(axis=0)))
    np.testing.assert_allclose(found.outputs, expected, atol=1e-3)
    np.testing.assert_allclose(found.reconstruct(x).mean(axis=0), y.mean(axis=0), atol=1e-3)


def test_a_linear_map_is_learned_as_far_as_the_code_explains_its_input() -> None:
    x, _ = problem(2, b=400, a=24)
    y = x @ np.random.default_rng(3).normal(size=(24, 7)).astype(np.float32)
    pairs = Activations.of(x).paired(Activations.of(y))
    whole = Random(200, k=20).build(pairs)
    assert float(evaluate(whole, pairs).value.sel(metric="fvu")) < 0.01
    assert float(evaluate(whole, pairs, k=1).value.sel(metric="fvu")) > 0.1


@pytest.mark.parametrize("name", ["itda", "sae", "mpsae", "kmeans"])
def test_every_builder_gives_a_transcoder_that_is_stored_and_saved(name, pairs, tmp_path) -> None:
    builder = {
        "itda": ITDA(size=40, k=4), "sae": SAE(40, k=4, batch=64, tokens=5000),
        "mpsae": BUILDERS["mpsae"](ITDA(size=40, k=4), batch=64), "kmeans": BUILDERS["kmeans"](40, k=4, rounds=2),
    }[name]  # fmt: skip
    store = Store(tmp_path / "store")
    built = builder.build(pairs, store=store)
    assert isinstance(built, Transcoder)
    assert (built.width, built.outputs.shape, built.to) == (8, (len(built), 5), "down")
    assert builder.build(pairs, store=store).fingerprint == built.fingerprint
    assert store.events[-1].what == "hit"
    assert decomp.load(decomp.save(built, tmp_path / "saved")).fingerprint == built.fingerprint
    assert not isinstance(builder.build(replace(pairs, target=None, to=""), store=store), Transcoder)


def test_the_loss_is_taken_with_what_it_decodes_at_the_output(trained, pairs) -> None:
    built = ITDA(size=60, k=6).build(pairs)
    found = loss_recovered(trained, built, mean=replace(pairs, x=pairs.target).mean()).value
    with replaced(trained, built, "first"), torch.no_grad():
        out = trained.model(torch.from_numpy(trained.train.columns["x"]))
    decoded = torch.tensor(built.reconstruct(pairs.whole().x))
    with torch.no_grad():
        np.testing.assert_allclose(out, trained.model.head(decoded), atol=1e-4)
    assert 0.5 < float(found.sel(metric="recovered_zero")) < 1.01
    with pytest.raises(ModelError, match="before"):
        losses(
            trained,
            at="down",
            change=replace(built, to="first", outputs=np.zeros((60, 8), np.float32), centre=np.zeros(8, np.float32)),
        )


def test_pairs_are_of_the_same_rows(pairs) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    one = Activations.of(x, origin=Origin("a", "m"))
    with pytest.raises(DataError, match="positions"):
        one.paired(Activations.of(x, position=np.arange(30)))
    with pytest.raises(DataError, match="left out"):
        one.paired(one.select(np.arange(4)))
    with pytest.raises(ModelError):
        one.paired(Activations.of(x, origin=Origin("b", "other")))
    with pytest.raises(UsageError, match="pairs"):
        evaluate(ITDA(size=20, k=2).build(pairs), replace(pairs, target=None))
    kept = one.paired(Activations.of(2 * x)).shuffled(1)
    np.testing.assert_array_equal(kept.targets(slice(0, 9)), 2 * kept.take(slice(0, 9)).x)
