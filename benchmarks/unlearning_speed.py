"""Regression datamodels against scikit-learn's ridge per output, KLoM against a plain loop, and seconds and example
passes of every unlearning method on the digits."""

import tempfile

import numpy as np

from whence.cache import Store
from whence.cache.retrain.retrained import Retrained, subset_masks
from whence.unlearn.datamodels import ridge
from whence.unlearn.loop import run as forget_by
from whence.unlearn.methods import DMM, DMDirect, OracleMatching, Retrain
from whence.unlearn.metrics import KLoM

from .harness import Run
from .timing import timed
from .unlearning_digits import MODELS, candidates, forget_set, setting

MASKS, TRAIN, POINTS, CLASSES = 1000, 400, 800, 10


def plain_klom(p: np.ndarray, q: np.ndarray, bins: int) -> float:
    """One point, as the published loops do it (with the last bin closed)."""
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), bins + 1)
    mass = np.histogram(p, edges)[0] / len(p)
    other = np.maximum(np.histogram(q, edges)[0] / len(q), 1e-5)
    other = other / other.sum()
    used = mass > 0
    return float((mass[used] * np.log(mass[used] / other[used])).sum())


def regression(run: Run) -> None:
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(0)
    masks = subset_masks(TRAIN, MASKS, 0.75)
    logits = generator.normal(size=(MASKS, POINTS, CLASSES)).astype(np.float32)
    bank = Retrained(masks, np.arange(MASKS), np.arange(TRAIN), np.arange(POINTS), {"logits": logits})
    penalties = (1.0, 3.0, 10.0, 30.0, 100.0)
    took, _ = timed(lambda: ridge(bank, penalties))
    features, outputs, tried = masks.astype(np.float32), logits.reshape(MASKS, -1), 40
    seconds, _ = timed(lambda: [Ridge(5.0).fit(features, outputs[:, k]) for k in range(tried)])
    whole = seconds / tried * outputs.shape[1]
    run.say(
        f"ridge, {MASKS} masks x {POINTS} outputs x {CLASSES} classes: {took:.2f} s for {len(penalties)} "
        f"penalties, the choice among them and the LDS; one scikit-learn ridge per output and one penalty: "
        f"{whole:.0f} s ({tried} timed, scaled); {whole / took:.0f}x"
    )


def klom(run: Run) -> None:
    generator = np.random.default_rng(0)
    p, q = generator.normal(size=(2, 100, 60_000)).astype(np.float32)
    metric = KLoM(bins=20)
    took, found = timed(lambda: metric(p, q))
    seconds, slow = timed(lambda: [plain_klom(p[:, k], q[:, k], 20) for k in range(1000)])
    loop, off = seconds * 60, np.abs(found[:1000] - slow)
    run.say(
        f"KLoM, 100 x 100 models x 60,000 points: {took:.2f} s; a plain loop: {loop:.1f} s (1,000 points timed, "
        f"scaled); {loop / took:.0f}x; median difference {np.median(off):.1e}"
    )


def methods(run: Run) -> None:
    """Every method once, on 64 models that forget 20 random digits (a small bank: its size costs a method nothing)."""
    with tempfile.TemporaryDirectory() as folder:
        on = setting(Store(folder), subsets=256)
        split, oracles = on.models.split(forget_set(on.models.bank.train, "random", 0))
        grids = candidates(on)
        first = [grid[0] for grid in grids.values()]
        dmm = next(method for method in first if isinstance(method, DMM))
        table = run.table("method", f"seconds for {MODELS} models|.2f", "example passes per model|.0f",
                          "of retraining, %|.1f")  # fmt: skip
        for method in [*first, DMDirect(dmm.datamodel), OracleMatching(oracles, dmm.matching), Retrain()]:
            done = forget_by(method, split.request)
            table.row(done.method, done.seconds, done.passes, 100 * done.ratio)
