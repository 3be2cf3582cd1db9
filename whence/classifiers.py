"""Small classifiers to retrain many times: data with labels, a network by name, and their bank."""

import itertools
import re
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from whence.cache import Classification, DataError, Examples, UsageError
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe

from .files import labelled_data


def labelled(data: str, columns: Mapping[str, str] | None = None) -> tuple[Examples, Examples]:
    """(training examples, all points): `digits` (400 to train on, 400 held out), an .npz with x_train, y_train, x_test
    and y_test, or a table with a column of classes (`whence.files.labelled_table`). Images of bytes are scaled to
    0..1. Raises DataError when it cannot be read."""
    if data == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.target))[:800]
        points = Examples.of((found.data[order].astype(np.float32) / 16, found.target[order].astype(np.int64)))
        return points.select(np.arange(400)), points
    arrays = labelled_data(data, columns)
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])
    y, count = np.concatenate([arrays["y_train"], arrays["y_test"]]).ravel(), len(arrays["x_train"])
    points = Examples.of((x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1), y.astype(np.int64)))
    return points.select(np.arange(count)), points


class Convolutions(nn.Module):
    """3x3 convolutions, each with group normalisation, ReLU and halving; then a linear layer."""

    def __init__(self, channels: list[int], shape: tuple[int, ...], classes: int):
        super().__init__()
        self.shape = shape
        sizes, layers = [shape[0], *channels], []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(1, o), nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        side = [s // 2 ** len(channels) for s in shape[1:]]
        self.head = nn.Linear(channels[-1] * side[0] * side[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.reshape(-1, *self.shape)).flatten(1))


class Residual(nn.Module):
    """A stem that embeds square patches, then residual blocks h + conv(relu(conv(relu(h)))), then a linear layer.

    The second convolution of a block starts at zero, so every block starts as the identity and nothing has to be
    normalised (Zhang, Dauphin and Ma 2019, arXiv 1901.09321). No output depends on another example of its batch, and
    copies train side by side.

    Args:
        width: channels of every block.
        blocks: how many.
        shape: (channels, side, side) of an image.
        classes: outputs.
        grid: patches along one side.
        batch_norm: put batch normalisation before the first convolution of every block, as a ResNet has it.

    >>> import torch
    >>> Residual(8, 2, (3, 16, 16), 10)(torch.zeros(5, 3, 16, 16)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, width: int, blocks: int, shape: tuple[int, ...], classes: int, *, grid: int = 4, batch_norm: bool = False
    ):
        super().__init__()
        self.shape = shape
        patch = shape[1] // grid
        self.stem = nn.Conv2d(shape[0], width, patch, stride=patch)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width) if batch_norm else nn.Identity(),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        for block in self.blocks:
            for parameter in list(block.parameters())[-2:]:  # the last convolution's
                nn.init.zeros_(parameter)
        self.features = nn.Sequential(nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(width * (shape[1] // patch) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.reshape(-1, *self.shape))
        for block in self.blocks:
            h = h + block(h)
        return self.head(self.features(h))


def builder(network: str, points: Examples) -> Callable[[int], nn.Module]:
    """seed -> untrained network: mlp-32 or mlp-64-32 (hidden widths), conv-8-16 (channels), residual-16-2 (width and
    blocks); the last two for square images."""
    kind, _, rest = network.partition("-")
    wanted = {"mlp": r"\d+(-\d+)*", "conv": r"\d+(-\d+)*", "residual": r"\d+-\d+"}
    if kind not in wanted or not re.fullmatch(wanted[kind], rest):
        raise UsageError(
            f"There is no network {network!r}.", "Use mlp-32, mlp-64-32, conv-8-16 or residual-16-2, for instance."
        )
    widths = [int(w) for w in rest.split("-")]
    x, classes = np.asarray(points.columns["x"]), int(np.asarray(points.columns["y"]).max()) + 1
    if kind != "mlp":
        shape = _image_shape(x.shape[1:])
        if kind == "conv":
            return lambda seed: Convolutions(widths, shape, classes)
        width, blocks = widths
        return lambda seed: Residual(width, blocks, shape, classes)
    sizes = [int(np.prod(x.shape[1:])), *widths]

    def mlp(seed: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Linear(i, o), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    return mlp


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 1 and int(shape[0] ** 0.5) ** 2 == shape[0]:
        return (1, int(shape[0] ** 0.5), int(shape[0] ** 0.5))
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    raise DataError(
        f"Examples of shape {list(shape)} are not images with channels first.", "Use an mlp, or transpose them."
    )


def make_bank(data: str, network: str, recipe: Recipe, keep: str, columns: Mapping[str, str] | None = None) -> Bank:
    """The bank of a network by name on data by name.

    Args:
        data, network, columns: as for `labelled` and `builder`.
        recipe: the training.
        keep: names of outputs, separated by commas.
    """
    train, points = labelled(data, columns)
    names = tuple(name.strip() for name in keep.split(","))
    return Bank(builder(network, points), Classification(), train, points, recipe, names)


def recipe_of(epochs: int, batch: int, rate: float, optimiser: str) -> Recipe:
    """A training by its numbers; "sgd" has momentum 0.9."""
    return Recipe(epochs, batch, SGD(rate, 0.9) if optimiser == "sgd" else AdamW(rate))
