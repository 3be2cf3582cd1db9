"""The small transformers that claims about dictionaries are measured on, and the text they read.

Four seeds of one width and one of another read the Python reference character by character: with so little text a
model of characters gets far enough that its layers differ, which one of byte pairs does not. The state after every
epoch is stored. Models are trained once and then loaded from the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from whence.cache import Examples, LanguageModelling, Store, TrainedModel
from whence.decomp.evaluate import losses

RATE, BATCH = 3e-3, 16
LENGTH = 128  # characters of an example
STREAM, COMMON, JUDGED = 640, 100, 100  # examples
ALPHABET = 128  # at least the characters of the text


@dataclass(frozen=True)
class Plan:
    """How much is run. seeds: of the main width; other_seeds: of the other one; middle: the layer whose dictionaries
    are judged; multiples: of ITDA's time, up to which autoencoders are trained."""

    seeds: int = 4
    other_seeds: int = 1
    layers: int = 5
    width: int = 64
    other_width: int = 40
    epochs: int = 7
    middle: int = 3
    multiples: tuple[float, ...] = (1, 5, 20)

    @property
    def sites(self) -> list[str]:
        return [f"blocks.{n}.hook_out" for n in range(self.layers)]


class Data(NamedTuple):
    """train: read by models; stream: the part of it that dictionaries and autoencoders read; common: the part that
    layers are compared on; validation: settings are chosen on it; held_out: everything that is reported about
    quality."""

    train: Examples
    stream: Examples
    common: Examples
    validation: Examples
    held_out: Examples


class Trained(NamedTuple):
    """One model, its state after every epoch, and its loss on held-out passages in nats per token."""

    model: nn.Module
    states: Mapping[int, Mapping[str, torch.Tensor]]
    loss: float


def data() -> Data:
    """17 of 20 passages to train on, one for validation, two held out; each part cut into examples of LENGTH
    characters, numbered by their place in the alphabet of the whole text."""
    from whence.corpora import language_reference

    texts = language_reference().train.about["text"]
    letters = np.unique(np.array([*"".join(texts), "\n"]))
    order = np.random.default_rng(0).permutation(len(texts))
    part, parts, first = len(texts) // 20, [], 0
    for rows in np.split(order, [2 * part, 3 * part]):
        ids = np.searchsorted(letters, np.array(list("\n\n".join(texts[n] for n in np.sort(rows)))))
        pieces = [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
        parts.append(Examples({"input_ids": pieces}, first + np.arange(len(pieces), dtype=np.int64)))
        first += len(pieces)
    held_out, validation, train = parts
    return Data(
        train, spread(train, STREAM), spread(train, COMMON), spread(validation, JUDGED), spread(held_out, JUDGED)
    )


def spread(examples: Examples, count: int) -> Examples:
    """`count` of them, evenly spaced."""
    return examples.select(np.linspace(0, len(examples) - 1, count).astype(int))


def trained(plan: Plan, width: int, seed: int, read: Data, store: Store) -> Trained:
    """The model from the store, or trained now."""
    from whence.language_model import Shape, Training, model_inputs, new_model, train_language_model

    shape = Shape(plan.layers, width, heads=4, context=LENGTH, vocabulary=ALPHABET)
    training = Training(plan.epochs, BATCH, RATE, seed=seed)
    model = new_model(shape, seed)

    def inputs(epoch: int) -> dict[str, Any]:
        return {**model_inputs(shape, training, read.train), "checkpoint": epoch}

    def put(epoch: int) -> None:
        store.put("model", inputs(epoch), {name: t.detach().numpy().copy() for name, t in model.state_dict().items()})

    if not store.has("model", inputs(plan.epochs)):
        train_language_model(model, read.train, training, after_epoch=put, desc=f"width {width}, seed {seed}")
    states = {}
    for epoch in range(1, plan.epochs + 1):
        entry = store.open("model", inputs(epoch))
        states[epoch] = {name: torch.from_numpy(np.array(entry.read(name))) for name in entry.arrays}
    model.load_state_dict(states[plan.epochs])
    bound = TrainedModel(model, read.held_out, LanguageModelling(), quiet=True)
    return Trained(model, states, float(losses(bound).mean()) / (LENGTH - 1))
