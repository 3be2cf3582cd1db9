"""What a corpus is: examples to train on, queries to ask about, and the vocabulary both are written in."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache import Examples, tasks

from .images import ImageReader
from .vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Corpus:
    """name, and: train: examples, about them at least `title` and `text`. queries: examples that are not in
    `train`; in language, the prompt is masked and the completion is what is asked about. vocabulary: None where
    examples are not text. form: what rows become (`rows.FORMS`). reader: of images."""

    name: str
    train: Examples
    queries: Examples
    vocabulary: Vocabulary | None = None
    form: str = "text"
    reader: ImageReader | None = None

    @property
    def worded(self) -> bool:
        """Whether examples are tokens of one text, which a language model predicts."""
        return self.vocabulary is not None and self.form in ("text", "masked")

    @property
    def points(self) -> Examples:
        """Training examples and then queries: where retrained models are compared."""
        return self.train.joined(self.queries)

    @property
    def tokens(self) -> int:
        """Positions in the training data."""
        return int(self.train.lengths.sum())

    def __repr__(self) -> str:
        words = f", {len(self.vocabulary)} tokens known" if self.vocabulary else ""
        return f"Corpus({self.name}: {len(self.train)} examples, {len(self.queries)} queries{words})"


def query_examples(
    prompts: Sequence[str], completions: Sequence[str], vocabulary: Vocabulary, **about: Sequence[Any]
) -> Examples:
    """Queries: `cache.tasks.prompted` with a vocabulary. A completion begins with the space that it needs."""
    return tasks.prompted(prompts, completions, vocabulary, about=about)


def ragged(ids: list[np.ndarray], labels: list[np.ndarray] | None = None) -> dict[str, list[np.ndarray]]:
    """Token columns of examples, lists even where all lengths agree, so that padding is always masked."""
    return {"input_ids": ids} | ({} if labels is None else {"labels": labels})


def stable_ids(texts: Sequence[str], taken: Iterable[int] = ()) -> np.ndarray:
    """An id for each text that depends on the text alone: nine digits of its sha256, the next free number where
    two agree, or where the number is taken."""
    used = set(taken)
    out = []
    for text in texts:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10**9
        while number in used:
            number += 1
        used.add(number)
        out.append(number)
    return np.array(out, np.int64)
