"""What the code of the README and the notebooks runs on when it is tested."""

from dataclasses import replace

import pytest

from whence.corpora import language_reference, models
from whence.language_model import Training


@pytest.fixture
def quick(monkeypatch, tmp_path, store):
    """A small corpus and a small model, in an empty folder: whether the code runs is tested, not how well it learns."""
    corpus = language_reference()
    few = replace(corpus, train=corpus.train.select(range(16)), queries=corpus.queries.select(range(2)))
    monkeypatch.setattr("whence.corpora.language_reference", lambda: few)
    monkeypatch.setattr(models, "language_reference", lambda: few)
    monkeypatch.setattr(models, "REFERENCE_SHAPE", replace(models.REFERENCE_SHAPE, layers=3, width=16, heads=2))
    monkeypatch.setattr(models, "REFERENCE_TRAINING", Training(epochs=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path
