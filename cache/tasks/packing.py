"""Packing: several short texts in one row, their attention kept apart, as they are trained where padding is dear."""

from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..model.examples import Examples


def packed(examples: Examples, length: int) -> Examples:
    """Rows of up to `length` tokens, each of one or more of these texts, for `LanguageModelling`. A row's loss is the
    sum of its texts' own, and influence is that of a row. `segments` numbers the texts of a row from 1, `position_ids`
    begins anew with each; a model that lets one text see another is refused before its first use.

    Texts go, longest first, to the first row that they fit in. Rows are numbered 0, 1, 2, ...; `about["documents"]`
    has the ids of a row's texts.

    Args:
        examples: with the columns `input_ids` and, optionally, `labels`; others are left out.
        length: most tokens of a row.

    Raises DataError for a text longer than a row, UsageError for texts that are packed already.
    """
    if "segments" in examples.columns:
        raise UsageError("These texts are packed already.", "Pack the texts that they were packed from.")
    lengths = examples.lengths
    if len(lengths) and lengths.max() > length:
        row = int(np.argmax(lengths))
        raise DataError(
            f"Example {examples.ids[row]} has {lengths[row]} tokens, more than a row of {length}.",
            "Cut texts to the rows' length first, or make rows longer.",
        )
    rows: list[list[int]] = []
    left: list[int] = []
    for text in np.argsort(-lengths, kind="stable").tolist():
        row = next((r for r, free in enumerate(left) if free >= lengths[text]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(length)
        rows[row].append(text)
        left[row] -= int(lengths[text])

    def joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [np.concatenate(row).astype(np.int64) for row in parts]

    columns: dict[str, Any] = {
        name: joined([[np.asarray(examples.columns[name][text]) for text in row] for row in rows])
        for name in ("input_ids", "labels")
        if name in examples.columns
    }
    columns["position_ids"] = joined([[np.arange(lengths[text]) for text in row] for row in rows])
    columns["segments"] = joined([[np.full(lengths[text], n) for n, text in enumerate(row, 1)] for row in rows])
    about: dict[str, list[Any]] = {"documents": [examples.ids[row].tolist() for row in rows]}
    for name in ("title", "text"):
        if name in examples.about:
            about[name] = [" | ".join(str(examples.about[name][text]) for text in row) for row in rows]
    return Examples(columns, np.arange(len(rows), dtype=np.int64), about)
