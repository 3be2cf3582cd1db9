"""The place in the data that every atom came from, and the text around it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from whence.cache.errors import DataError


class Text(NamedTuple):
    """A token in its context, for people."""

    before: str
    token: str
    after: str


class Provenance(NamedTuple):
    """Where each of a atoms came from; -1 in document and token if an atom is no activation (a centroid).

    document [a], position [a], token [a]: the place. sign [a]: -1 if the atom is its activation reversed. norm [a]: of
    the activation. error [a]: share of its squared norm that the dictionary left unexplained when it was inserted, NaN
    if that was not computed. seed [a]: inserted without being judged.
    """

    document: np.ndarray
    position: np.ndarray
    token: np.ndarray
    sign: np.ndarray
    norm: np.ndarray
    error: np.ndarray
    seed: np.ndarray

    @staticmethod
    def of(
        document: Any,
        position: Any,
        token: Any,
        norm: Any,
        error: Any = 1.0,
        seed: Any = False,
        sign: Any = 1,
    ) -> "Provenance":
        """Columns of one length and the right type; scalars are repeated."""
        size = len(document)
        return Provenance(
            np.asarray(document, np.int64),
            np.asarray(position, np.int64),
            np.asarray(token, np.int64),
            np.broadcast_to(np.asarray(sign, np.int8), size).copy(),
            np.asarray(norm, np.float32),
            np.broadcast_to(np.asarray(error, np.float32), size).copy(),
            np.broadcast_to(np.asarray(seed, bool), size).copy(),
        )

    @staticmethod
    def unknown(size: int) -> "Provenance":
        """Atoms that come from no place in the data (trained, averaged or imported)."""
        nowhere = np.full(size, -1)
        return Provenance.of(nowhere, nowhere, nowhere, np.ones(size, np.float32))

    def rows(self, which: Any) -> "Provenance":
        return Provenance(*(column[which] for column in self))

    def joined(self, other: "Provenance") -> "Provenance":
        return Provenance(*(np.concatenate(pair) for pair in zip(self, other)))

    @property
    def places(self) -> list[tuple[int, int]]:
        """(document, position) of every atom: its identity across models, layers and checkpoints."""
        return list(zip(self.document.tolist(), self.position.tolist()))


def real_tokens(examples: Any, column: str) -> Sequence[Any]:
    """The tokens of each example, without those that its own attention mask leaves out: what positions count."""
    tokens, mask = examples.columns[column], examples.columns.get("attention_mask")
    if mask is None or np.ndim(mask[0]) != 1:
        return tokens
    return [np.asarray(row)[np.asarray(real) != 0] for row, real in zip(tokens, mask)]


def places_in(
    examples: Any, decode: Callable[[Sequence[int]], str] | None, window: int, column: str
) -> Callable[[int, int], Text]:
    """(document, position) -> the text around it; of examples without tokens (no `decode`), the title of the example
    and the position. Raises DataError for an unknown document, and for examples without the column of tokens."""
    row = {int(i): n for n, i in enumerate(examples.ids)}
    if decode is None:
        titles = examples.about.get("title", examples.ids)
        return lambda document, position: (
            Text(f"{titles[_row_of(row, document)]} ", f"position {position}", "")
            if position >= 0 else Text("", "", "")
        )  # fmt: skip
    if column not in examples.columns:
        raise DataError(f"There is no column {column!r} of tokens.", f"There is {', '.join(examples.columns)}.")
    tokens = real_tokens(examples, column)
    return lambda document, position: context(tokens, row, document, position, decode, window)


def _row_of(row: Mapping[int, int], document: int) -> int:
    if document not in row:
        raise DataError(
            f"Document {document} is not among these examples.", "Give the examples the dictionary was built from."
        )
    return row[document]


def context(
    tokens: Any,
    row: Mapping[int, int],
    document: int,
    position: int,
    decode: Callable[[Sequence[int]], str],
    window: int,
) -> Text:
    """The text around one place; empty for an atom that has none. Raises DataError for an unknown document."""
    if position < 0:
        return Text("", "", "")
    ids = np.asarray(tokens[_row_of(row, document)]).tolist()
    return Text(
        decode(ids[max(0, position - window) : position]),
        decode(ids[position : position + 1]),
        decode(ids[position + 1 : position + 1 + window]),
    )
