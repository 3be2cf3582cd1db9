"""Training a small model: it learns, masks leave examples out exactly, and the store keeps what was trained."""

import numpy as np
import pytest
import torch

from whence.cache import Examples, LanguageModelling, NumericalError, Store, UsageError
from whence.cache.model.fingerprint import model_fingerprint
from whence.corpora import Vocabulary
from whence.language_model import (
    Direct,
    Shape,
    Training,
    continuation,
    new_model,
    schedule,
    top_answers,
    train_language_model,
    trained_model,
)

SHAPE = Shape(layers=1, width=16, heads=2, context=8, vocabulary=7)
TRAINING = Training(epochs=20, batch=4, rate=1e-2)


@pytest.fixture(scope="module")
def chain() -> Examples:
    """Sequences that count upwards, from any start."""
    rows = [(start + np.arange(length)) % 6 + 1 for start in range(6) for length in (3, 5, 7)]
    return Examples.of({"input_ids": rows})


def test_it_learns_to_count(chain: Examples) -> None:
    model = new_model(SHAPE)
    curve = train_language_model(model, chain, TRAINING, quiet=True)
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert top_answers(model, chain.select([2]).select([0])).shape == (1,)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_model_and_another_does_not(chain: Examples) -> None:
    few = Training(epochs=1, batch=4)
    prints = []
    for seed in (0, 0, 1):
        model = new_model(SHAPE, seed)
        train_language_model(model, chain, Training(epochs=1, batch=4, seed=seed), quiet=True)
        prints.append(model_fingerprint(model).hex)
    assert prints[0] == prints[1] != prints[2]
    assert few.seed == 0


def test_weight_zero_is_the_same_as_not_being_there(chain: Examples) -> None:
    few, keep = Training(epochs=2, batch=4), np.arange(len(chain)) % 3 > 0
    masked, without = new_model(SHAPE), new_model(SHAPE)
    train_language_model(masked, chain, few, weights=keep.astype(float), quiet=True)
    train_language_model(without, chain.select(keep), few, quiet=True)
    assert model_fingerprint(masked).hex == model_fingerprint(without).hex


def test_weights_from_losses_of_the_moment(chain: Examples) -> None:
    once, seen = Training(epochs=1, batch=4), []

    def ones(each: torch.Tensor) -> torch.Tensor:
        seen.append(each)
        return torch.ones_like(each)

    plain, same, hard = (new_model(SHAPE) for _ in range(3))
    train_language_model(plain, chain, once, quiet=True)
    train_language_model(same, chain, once, reweight=ones, quiet=True)
    train_language_model(hard, chain, once, reweight=lambda each: 2.0 * (each >= each.median()), quiet=True)
    assert model_fingerprint(plain).hex == model_fingerprint(same).hex != model_fingerprint(hard).hex
    assert abs(float(seen[0].mean()) - np.log(SHAPE.vocabulary)) < 1.0  # nats a token


def test_the_store_keeps_it(chain: Examples, store: Store) -> None:
    few = Training(epochs=1, batch=4)
    first = trained_model(SHAPE, few, chain, store, quiet=True)
    again = trained_model(SHAPE, few, chain, store, quiet=True)
    assert model_fingerprint(first).hex == model_fingerprint(again).hex
    assert [event.what for event in store.events] == ["built", "hit"]
    weights = np.ones(len(chain))
    weights[0] = 0
    trained_model(SHAPE, few, chain, store, weights=weights, quiet=True)
    assert [event.what for event in store.events] == ["built", "hit", "built"]


def test_the_direct_forward_pass_is_the_models(chain: Examples) -> None:
    """Losses of a padded batch, and their gradients in every parameter."""
    shape = Shape(layers=2, width=16, heads=2, context=8, vocabulary=7)
    model, task, batch = new_model(shape).double(), LanguageModelling(), chain.batch(np.arange(6))
    parameters = list(model.parameters())
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p), alpha=0.3)
    found = [task.loss(forward, batch) for forward in (model, Direct(model, shape))]
    torch.testing.assert_close(*found)
    slopes = [torch.autograd.grad(loss.sum(), parameters, materialize_grads=True) for loss in found]
    torch.testing.assert_close(*slopes)


def test_an_unlucky_rate_is_told(chain: Examples) -> None:
    model = new_model(SHAPE)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalError, match="loss is nan"):
        train_language_model(model, chain, Training(epochs=1), quiet=True)
    with pytest.raises(UsageError, match="0 epochs"):
        Training(epochs=0)
    with pytest.raises(UsageError, match="does not divide"):
        new_model(Shape(width=10, heads=3))


def test_rate_rises_and_falls() -> None:
    rates = [schedule(x) for x in np.linspace(0, 1, 101)]
    assert int(np.argmax(rates)) == 10
    assert max(rates) == pytest.approx(1)
    assert rates[-1] == pytest.approx(0.05)


def test_a_continuation_stops_at_the_end_of_a_sentence() -> None:
    words = Vocabulary.words(["a b ."])
    model = new_model(Shape(layers=1, width=16, heads=2, context=8, vocabulary=len(words)))
    said = continuation(model, words, "a b", 4)
    assert 1 <= len(said.split()) <= 4
