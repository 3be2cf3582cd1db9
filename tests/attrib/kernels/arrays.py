"""Random arrays of the kernels' shapes, and gradients formed one outer product at a time."""

import numpy as np

SHAPES = [(3, 5, 4, 6), (2, 1, 7, 3), (4, 9, 300, 2)]  # b s o i


def arrays(b: int, s: int, o: int, i: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    a, g = rng.normal(size=(b, s, i)), rng.normal(size=(b, s, o))
    qa, qs = np.linalg.qr(rng.normal(size=(i, i)))[0], np.linalg.qr(rng.normal(size=(o, o)))[0]
    return tuple(x.astype(np.float32) for x in (a, g, qa, qs))


def formed(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Per-example gradients, one outer product at a time."""
    return np.array([sum(np.outer(g[b, s], a[b, s]) for s in range(a.shape[1])) for b in range(len(a))])


def close(found, wanted, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())
