"""Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, ten classes."""

import numpy as np

from whence.cache import Examples

from .corpus import Corpus

HELD_OUT = 5  # every fifth image is a query


def digits(images: bool = False) -> Corpus:
    """1,437 training digits and 360 held out; `x` [n 64] in 0..1 (or [n 1 8 8] with `images`), `y` [n].

    Ids are the row numbers of scikit-learn's own table.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    x = (data.images / 16).astype(np.float32).reshape((-1, 1, 8, 8) if images else (-1, 64))
    y = data.target.astype(np.int64)
    about = {"title": [f"a handwritten {label}" for label in y], "text": [str(label) for label in y]}
    whole = Examples({"x": x, "y": y}, np.arange(len(y), dtype=np.int64), about)
    held_out = np.arange(len(y)) % HELD_OUT == 0
    return Corpus("digits", whole.select(~held_out), whole.select(held_out))
