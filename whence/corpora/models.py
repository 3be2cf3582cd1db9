"""Small language models of the embedded corpora, trained on first use and read from the store afterwards."""

from dataclasses import replace

from torch import nn

from whence.cache import Store

from ..language_model import Shape, Training, trained_model
from .biographies import biographies
from .corpus import Corpus
from .language_reference import language_reference

REFERENCE_SHAPE = Shape(layers=4, width=128, heads=4, context=128, vocabulary=2048)
REFERENCE_TRAINING = Training(epochs=7, batch=32, rate=1.6e-2, decay=0.1, seed=0, muon=3.75)
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


def biographies_model(store: Store | None = None, corpus: Corpus | None = None, quiet: bool = False) -> nn.Module:
    """A smaller one that has read the biographies and answers questions about them."""
    docs = corpus or biographies()
    words = docs.vocabulary
    assert words is not None
    shape = replace(BIOGRAPHIES_SHAPE, vocabulary=len(words))
    return trained_model(shape, BIOGRAPHIES_TRAINING, docs.train, store or Store(), desc="training", quiet=quiet)
