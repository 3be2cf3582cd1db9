"""What people read about a row of tokens: its text and its title, made when they are shown."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache.model.ragged import Field, Ragged

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class TextOf:
    """The text of a row of tokens."""

    words: Vocabulary
    pieces: Ragged | list[np.ndarray]

    def __call__(self, row: int) -> str:
        return self.words.decode(self.pieces[row])


@dataclass(frozen=True)
class TitleOf:
    """The data's own title of a piece, or the beginning of its text."""

    words: Vocabulary
    pieces: Ragged | list[np.ndarray]
    own: Field | None = None
    numbers: np.ndarray | None = None

    def __call__(self, row: int) -> Any:
        own = None if self.own is None or self.numbers is None else self.own(int(self.numbers[row]))
        return beginning(self.words.decode(self.pieces[row])) if own is None else own


def beginning(text: str) -> str:
    first = text.strip().split("\n")[0]
    return first if len(first) <= 60 else first[:57].rsplit(" ", 1)[0] + " ..."
