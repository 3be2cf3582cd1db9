"""Images that are learned by heart, and the residual network that learns them."""

from functools import partial

import numpy as np
import pytest
import torch

from whence.cache import DataError, UsageError
from whence.classifiers import Residual, builder
from whence.problems.images import images_problem, made_images, read_images, unlearning_bank
from whence.problems.registry import PROBLEMS

SMALL = partial(images_problem, 10, 60, 40, side=8, width=12, epochs=30)


@pytest.fixture(scope="module")
def learned():
    bank = unlearning_bank(SMALL())
    return bank, bank.run(np.ones((4, 60), bool), quiet=True)


def test_the_training_images_are_learned_by_heart_and_others_are_not(learned) -> None:
    bank, found = learned
    right = found["logits"].argmax(-1) == np.asarray(bank.points.columns["y"])
    assert right[:, :60].all()
    assert right[:, 60:].mean() < 0.9
    margins = found["margins"]
    assert np.percentile(margins[:, :60], 5) > margins[:, 60:].mean() + margins[:, 60:].std(0).mean()


def test_every_block_starts_as_the_identity() -> None:
    model, x = Residual(6, 3, (3, 8, 8), 4), torch.randn(5, 3, 8, 8)
    assert torch.equal(model(x), model.head(model.features(model.stem(x))))


def test_without_batch_normalisation_copies_train_side_by_side_and_with_it_one_by_one(learned) -> None:
    _, found = learned
    assert found.about["why_sequential"] is None
    bank = unlearning_bank(SMALL(epochs=1, batch_norm=True))
    alone = bank.run(np.ones((2, 60), bool), quiet=True)
    assert "running statistics" in alone.about["why_sequential"]
    assert np.isfinite(alone["logits"]).all()


def test_a_file_is_read_with_channels_first_or_last_and_labels_are_renumbered(tmp_path) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 255, (30, 16, 16, 3), np.uint8), np.arange(30) % 6
    path = tmp_path / "images.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    first, labels = read_images(str(path), (8, 4), (3, 5), side=8)
    assert first.shape == (12, 3, 8, 8)
    assert set(labels) == {0, 1}
    np.savez(path, x_train=np.moveaxis(x, -1, 1), y_train=y, x_test=np.moveaxis(x[:12], -1, 1), y_test=y[:12])
    again, _ = read_images(str(path), (8, 4), (3, 5), side=8)
    np.testing.assert_allclose(first, again)
    with pytest.raises(DataError, match="10 images of these classes"):
        read_images(str(path), (11, 4), (3, 5))
    np.savez(path, x_train=x.astype(np.float32), y_train=y, x_test=x[:12], y_test=y[:12])
    with pytest.raises(DataError, match="type float32"):
        read_images(str(path), (8, 4), (3, 5))


def test_made_images_of_a_class_have_more_in_common_than_others() -> None:
    x, y = made_images(200, 4, 8)
    assert x.std() == pytest.approx(1, abs=1e-5)
    flat = x.reshape(len(x), -1)
    likeness = np.corrcoef(flat)
    same = (y[:, None] == y) & ~np.eye(len(y), dtype=bool)
    assert likeness[same].mean() > likeness[y[:, None] != y].mean() + 0.02


def test_the_network_is_known_by_name_and_the_problem_in_the_registry() -> None:
    points = SMALL().train
    assert isinstance(builder("residual-8-2", points)(0), Residual)
    with pytest.raises(UsageError, match="no network 'residual-8'"):
        builder("residual-8", points)
    assert PROBLEMS["images"]().recipe.batches == "shared"  # a mask is a weight, as in every problem
