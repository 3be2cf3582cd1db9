"""Small language models of the embedded corpora, trained on first use and read from the store afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from whence.cache import DataError, Store
from whence.cache.model.stateless import named_parameters

from ..language_model import Shape, Training, new_model, trained_model
from .biographies import biographies
from .corpus import Corpus
from .language_reference import language_reference

REFERENCE_SHAPE = Shape(layers=4, width=128, heads=4, context=128, vocabulary=2048)
REFERENCE_TRAINING = Training(epochs=6, batch=32, rate=1.6e-2, decay=0.1, seed=0, muon=3.75)
BIOGRAPHIES_SHAPE = Shape(layers=2, width=96, heads=4, context=16, vocabulary=0)
BIOGRAPHIES_TRAINING = Training(epochs=20, batch=64, rate=3e-3, decay=0.1, seed=0)


def reference_model(store: Store | None = None, corpus: Corpus | None = None, quiet: bool = False) -> nn.Module:
    """A transformer of 1.3 million parameters that has read the Python language reference: about a
    minute of training on two cores the first time, then from the store (the user's own when None is given)."""
    docs = corpus or language_reference()
    words = docs.vocabulary
    assert words is not None  # a corpus of text
    shape = replace(REFERENCE_SHAPE, vocabulary=len(words))
    return trained_model(shape, REFERENCE_TRAINING, docs.train, store or Store(), desc="training", quiet=quiet)


def biographies_model(
    store: Store | None = None,
    corpus: Corpus | None = None,
    quiet: bool = False,
    *,
    left: Sequence[bool] | None = None,
) -> nn.Module:
    """A smaller one that has read the biographies and answers questions about them.

    left: of every passage, whether it is read; all are by default.
    """
    docs = corpus or biographies()
    weights = None if left is None else np.asarray(left, np.float32)
    return trained_model(
        _biographies_shape(docs), BIOGRAPHIES_TRAINING, docs.train, store or Store(), weights=weights,
        desc="training", quiet=quiet,
    )  # fmt: skip


def with_weights(corpus: Corpus, path: Path) -> nn.Module:
    """The biographies' model with the weights of a .safetensors file. Raises DataError if they are not its own."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = new_model(_biographies_shape(corpus))
    own = {**named_parameters(model), **dict(model.named_buffers())}
    try:
        found = load_file(path)
        shapes = {name: tuple(own[name].shape) for name in found}
        if not set(named_parameters(model)) <= set(found) or any(tuple(found[n].shape) != s for n, s in shapes.items()):
            raise KeyError("of other shapes, or not all")
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"{path} has no weights of the biographies' model: {error}.", "Give what `whence unlearn document` wrote."
        ) from error
    with torch.no_grad():
        for name, values in found.items():
            own[name].copy_(values)
    return model


def _biographies_shape(corpus: Corpus) -> Shape:
    assert corpus.vocabulary is not None
    return replace(BIOGRAPHIES_SHAPE, vocabulary=len(corpus.vocabulary))
