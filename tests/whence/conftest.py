"""What the README's and the notebooks' code runs on when it is tested."""

from dataclasses import replace

import pytest

from whence import demo_model
from whence.corpora import language_reference
from whence.language_model import Training


@pytest.fixture
def quick(monkeypatch, tmp_path, store):
    """The same corpus and model in small, in an empty folder: what the code says is tested, not how well it learns."""
    corpus = language_reference()
    few = replace(corpus, train=corpus.train.select(range(16)), queries=corpus.queries.select(range(2)))
    monkeypatch.setattr("whence.corpora.language_reference", lambda: few)
    monkeypatch.setattr(demo_model, "language_reference", lambda: few)
    monkeypatch.setattr(demo_model, "REFERENCE_SHAPE", replace(demo_model.REFERENCE_SHAPE, layers=3, width=16, heads=2))
    monkeypatch.setattr(demo_model, "REFERENCE_TRAINING", Training(epochs=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path
