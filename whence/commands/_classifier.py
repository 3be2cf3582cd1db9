"""What the commands of bank and unlearn share: forget sets by name."""

from pathlib import Path

import numpy as np

from whence.cache import Examples, UsageError


def forget_ids(text: str, train: Examples) -> np.ndarray:
    """ids: `random:20`, `random:20:3` (seed), `neighbours:ID:20` (within its class), `class:8:20`, `3,17,29`, or a
    file with an id a line. Raises UsageError for anything else."""
    from whence.unlearn import forget_sets

    parts = text.split(":")
    try:
        if parts[0] == "random":
            return forget_sets.random_set(train, *map(int, parts[1:]))
        if parts[0] == "neighbours":
            return forget_sets.neighbours(train, int(parts[1]), int(parts[2]), within="y")
        if parts[0] == "class":
            return forget_sets.class_slice(train, int(parts[1]), int(parts[2]))
        if Path(text).is_file():
            return np.array([int(line) for line in Path(text).read_text().split()], np.int64)
        return np.array([int(i) for i in text.split(",") if i.strip()], np.int64)
    except (ValueError, IndexError, TypeError) as error:
        raise UsageError(
            f"{text!r} names no forget set.",
            "Use random:20, neighbours:17:20, class:8:20, ids such as 3,17,29, or a file of ids.",
        ) from error
