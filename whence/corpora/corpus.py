"""What a corpus is: examples to train on, queries to ask about, and the vocabulary both are written in."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache import DataError, Examples

from .vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Corpus:
    """name, and: train: examples, about them at least `title` and `text`. queries: examples that are not in
    `train`; in language, the prompt is masked and the completion is what is asked about. vocabulary: None where
    examples are not text."""

    name: str
    train: Examples
    queries: Examples
    vocabulary: Vocabulary | None = None

    def where(self, **equal: Any) -> Examples:
        """The training examples whose `about` values equal these."""
        return self.train.where(**equal)

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
    prompts: Sequence[str],
    completions: Sequence[str],
    vocabulary: Vocabulary,
    *,
    places: Sequence[str] = (),
    **about: Sequence[Any],
) -> Examples:
    """Queries: prompt and completion as one sequence, labels -100 on the prompt.

    The completion's first token may grow out of the prompt's last (" yield" is not "yield"), so a completion
    begins with the space it needs. places: where each was read from, for errors. Raises DataError for a completion of
    no token, or a prompt of none (its first token could not be predicted from anything).
    """
    ids, labels = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        head, tail = vocabulary.encode(prompt), vocabulary.encode(completion)
        if len(head) == 0 or len(tail) == 0:
            raise DataError(
                f"{f'{places[row]}: t' if places else 'T'}he query {prompt!r} -> {completion!r} has an empty half.",
                "Give both a prompt and a completion.",
            )
        ids.append(np.concatenate([head, tail]))
        labels.append(np.concatenate([np.full(len(head), -100, np.int64), tail]))
    text = [p + c for p, c in zip(prompts, completions)]
    known = {"title": list(prompts), "text": text, "prompt": list(prompts), "completion": list(completions), **about}
    return Examples(ragged(ids, labels), np.arange(len(ids), dtype=np.int64), known)


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
