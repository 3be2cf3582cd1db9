"""Slow, obvious twins of the pursuits: one signal at a time, float64, no cleverness."""

import numpy as np


def problem(seed: int, b: int = 12, a: int = 70, d: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Signals that are sparse in unit atoms, plus noise."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((a, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    x = sum(rng.standard_normal((b, 1)) * atoms[rng.integers(0, a, b)] for _ in range(4))
    x = x + 0.1 * rng.standard_normal((b, d))
    return x.astype(np.float32), atoms.astype(np.float32)


def paper_loop(x: np.ndarray, atoms: np.ndarray, k: int, signed: bool = True) -> np.ndarray:
    """Leask et al. 2025, algorithm 2: correlate, take the best, subtract. Dense codes [b a]."""
    codes = np.zeros((len(x), len(atoms)))
    for row, signal in enumerate(np.asarray(x, np.float64)):
        residual = signal.copy()
        for _ in range(k):
            c = atoms.astype(np.float64) @ residual
            j = np.argmax(np.abs(c) if signed else c)
            if not signed and c[j] <= 0:
                break
            codes[row, j] += c[j]
            residual -= c[j] * atoms[j]
    return codes


def orthogonal(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """Choose the best atom, then solve least squares on everything chosen."""
    codes = np.zeros((len(x), len(atoms)))
    for row, signal in enumerate(np.asarray(x, np.float64)):
        support: list[int] = []
        residual = signal.copy()
        for _ in range(k):
            support.append(int(np.argmax(np.abs(atoms.astype(np.float64) @ residual))))
            chosen = atoms[support].astype(np.float64).T
            values = np.linalg.lstsq(chosen, signal, rcond=None)[0]
            residual = signal - chosen @ values
        codes[row, support] = values
    return codes


def refitted(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """The paper's loop for the support, least squares for the coefficients."""
    codes = paper_loop(x, atoms, k)
    for row, signal in enumerate(np.asarray(x, np.float64)):
        support = np.flatnonzero(codes[row])
        codes[row, support] = np.linalg.lstsq(atoms[support].astype(np.float64).T, signal, rcond=None)[0]
    return codes


def gradient(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """Blumensath & Davies 2008: grow the support by the best atom, one exact line search along its gradient."""
    codes = np.zeros((len(x), len(atoms)))
    wide = atoms.astype(np.float64)
    for row, signal in enumerate(np.asarray(x, np.float64)):
        support: set[int] = set()
        for _ in range(k):
            c = wide @ (signal - codes[row] @ wide)
            support.add(int(np.argmax(np.abs(c))))
            chosen = sorted(support)
            direction = c[chosen] @ wide[chosen]
            codes[row, chosen] += c[chosen] * (c[chosen] @ c[chosen]) / (direction @ direction)
    return codes
