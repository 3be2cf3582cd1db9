"""Rows as examples: what the columns of a row, and the kind of model that reads it, say it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from whence.cache import DataError, Examples, UsageError, tasks

from ..files import Row, text_of
from .vocabulary import Vocabulary

Maker: TypeAlias = Callable[[Sequence[Row], Vocabulary, int | None], Examples]
FORMS = ("text", "masked", "pairs", "classes", "images")  # of causal, masked, encoder-decoder models, of classifiers


def prompted(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    prompts, completions = _texts(rows, "prompt", "completion")
    return tasks.prompted(prompts, completions, words, places=[row.place for row in rows])


def pairs(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    sources, targets = _texts(rows, "prompt", "completion")
    return tasks.sequence_pairs(sources, targets, words)


def preferred(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    prompts, chosen, rejected = _texts(rows, "prompt", "chosen", "rejected")
    return tasks.choices(prompts, list(zip(chosen, rejected)), None, words)


def options(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    """A list of options, and the place of the right one (`answer`, from 0)."""
    for row in rows:
        given, right = row.values.get("options"), row.values.get("answer")
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given) or not _whole(right):
            raise DataError(
                f"{row.place} has no list of options with the place of the right one.",
                'Give {"prompt": ..., "options": ["...", "..."], "answer": 0}.',
            )
    right = [int(row.values["answer"]) for row in rows]
    (prompts,) = _texts(rows, "prompt")
    return tasks.choices(prompts, [row.values["options"] for row in rows], right, words)


def rewarded(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    """Samples of the same prompt are compared with each other."""
    prompts, said = _texts(rows, "prompt", "completion")
    earned: list[Any] = [row.values.get("reward") for row in rows]
    bad = next((row for row, r in zip(rows, earned) if isinstance(r, bool) or not isinstance(r, (int, float))), None)
    if bad is not None:
        raise DataError(f"{bad.place}: the reward is {bad.values.get('reward')!r}.", "Give a number.")
    groups: dict[str, list[int]] = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(n)
    samples = [[said[n] for n in group] for group in groups.values()]
    rewards = [[earned[n] for n in group] for group in groups.values()]
    back = np.argsort(np.concatenate(list(groups.values())), kind="stable")
    found = tasks.samples(list(groups), samples, rewards, words).select(back)
    return Examples(found.columns, np.arange(len(rows), dtype=np.int64), found.about)


def classes(rows: Sequence[Row], words: Vocabulary, length: int | None) -> Examples:
    """A text and a class: a whole number, as in the model's label2id."""
    column = next((name for name in ("text", "content", "document", "prompt") if name in rows[0].values), "text")
    labels = [row.values.get("label", row.values.get("completion")) for row in rows]
    numbers = [int(str(value).strip()) if _whole(value) else -1 for value in labels]
    if min(numbers) < 0:
        row = numbers.index(min(numbers))
        raise DataError(f"{rows[row].place}: the class is {labels[row]!r}.", "Give whole numbers from 0 as `label`.")
    (texts,) = _texts(rows, column)
    return tasks.classified(texts, numbers, words, length=length)


def maker_of(known: Sequence[str], form: str, source: str, *, asked: bool = False) -> Maker | None:
    """What makes examples of rows with these columns for this form of model; None if they are texts. Raises UsageError
    for rows that such a model cannot read.

    Args:
        known: the columns.
        form: of the model.
        source: where the rows are, for errors.
        asked: whether they are queries, which may be choices or samples with rewards.
    """
    names = set(known)
    if form == "classes":
        return classes
    if form == "pairs":
        if not {"prompt", "completion"} <= names:
            raise UsageError(
                f"{source} has no prompt and completion.", "An encoder-decoder reads one, writes the other."
            )
        return pairs
    if form == "text" and "prompt" in names:
        found = {"chosen": preferred, "options": options, "reward": rewarded, "completion": prompted}
        left = () if asked else ("options", "reward")
        return next((maker for name, maker in found.items() if name in names and name not in left), None)
    return None


def _whole(value: Any) -> bool:
    return not isinstance(value, bool) and str(value).strip().isdecimal()


def _texts(rows: Sequence[Row], *columns: str) -> list[list[str]]:
    return [[text_of(row, column) for row in rows] for column in columns]


def columns_of(rows: Sequence[Row]) -> Mapping[str, None]:
    """The columns that there are, in their order."""
    return dict.fromkeys(name for row in rows for name in row.values)
