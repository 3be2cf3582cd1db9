"""Slow and obvious forms of what unlearn computes fast."""

import math

import numpy as np


def klom_of_point(unlearned, oracles, bins, floor=1e-5, clip=100.0):
    """KL(unlearned || oracle) of one point, bin by bin, the last bin closed."""
    p = [min(max(float(v), -clip), clip) for v in unlearned]
    q = [min(max(float(v), -clip), clip) for v in oracles]
    low, high = min(p + q), max(p + q)
    width = (high - low) or 1.0

    def counts(samples):
        out = [0] * bins
        for v in samples:
            out[min(int((v - low) / width * bins), bins - 1)] += 1
        return [c / len(samples) for c in out]

    pp, qq = counts(p), [max(v, floor) for v in counts(q)]
    total = sum(qq)
    return sum(a * math.log(a / (b / total)) for a, b in zip(pp, qq) if a > 0)


def energy_of_point(first, second):
    """All pairs."""
    e, f = len(first), len(second)
    between = sum(abs(a - b) for a in first for b in second) / (e * f)
    own = sum(abs(a - b) for a in first for b in first) / (e * (e - 1))
    other = sum(abs(a - b) for a in second for b in second) / (f * (f - 1))
    return 2 * between - own - other


def held_out_gaussian(samples, one):
    rest = np.delete(samples, one)
    return rest.mean(), rest.std(ddof=1)
