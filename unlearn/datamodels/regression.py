"""Datamodels by regression on retrained models (Ilyas et al. 2022): every logit of every point as a linear function
of the inclusion mask, all outputs in one solve.

With centred masks M [m n] and outputs Y [m k], ridge is W = V diag(s / (s² + λ)) Uᵀ Y for M = U S Vᵀ: one
decomposition for every λ and every output. Lasso is accelerated proximal gradient (Beck and Teboulle 2009) on the
Gram matrix, all outputs at once.

λ is chosen by LDS on held-out masks, and the LDS reported is on other held-out masks still. But ranks do not see
size, and a penalty that ranks a little better by averaging away noise also shrinks every weight, so that the sum over
a forget set falls short. Among penalties that rank nearly as well as the best (NEARLY of its LDS), the smallest is
taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from whence.cache import DataError, Entry, Examples, Store
from whence.cache.model.ids import rows_of
from whence.cache.retrain.retrained import Retrained, StoredOutput, member_rows
from whence.cache.statistics import LDS, spearman

from .base import Cost, lds_of

MODELS_AT_ONCE = 128
LAMBDAS = tuple(float(x) for x in 10.0 ** np.arange(-1.0, 3.51, 0.5))
SHARES = (0.3, 0.1, 0.03, 0.01, 0.003)
FEWEST_MODELS = 40
NEARLY = 0.9


@dataclass(frozen=True, eq=False)
class Regression:
    """weights[n, p, c]: how much training example n adds to logit c of point p by being there.

    penalty: the chosen λ. lds: on masks that neither the fit nor the choice of λ saw. choices: λ -> LDS on the
    masks it was chosen by. fitted: seed and penalties of the fit, for the key, unless they are the default.
    """

    weights: Float[np.ndarray, "n p c"] | StoredOutput
    train_ids: Int64[np.ndarray, " n"]
    point_ids: Int64[np.ndarray, " p"]
    penalty: float
    lds: LDS
    choices: dict[float, float]
    trainings: int
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        return Cost(trainings=float(self.trainings))

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p c"]:
        """-Σ of the forgotten examples' weights; the points must be among those of the bank."""
        rows, at = np.flatnonzero(member_rows(self.train_ids, forget)), self.at_points(points)
        return -self.weights[rows].sum(0)[at]

    def at_points(self, points: Examples) -> Int64[np.ndarray, " k"]:
        """Their columns in the weights. Raises DataError for points that the bank was not run on."""
        unknown = points.ids[~np.isin(points.ids, self.point_ids)]
        if len(unknown):
            raise DataError(
                f"This datamodel has no weights for {len(unknown)} points, for instance {unknown[:3].tolist()}.",
                "Run its bank with them among the points; regression knows only points it was fitted on.",
            )
        return rows_of(self.point_ids, points.ids)

    def save(self, store: Store, inputs: dict[str, Any]) -> str:
        """Keep the weights under the key of what they were fitted on; returns the key."""
        entry = store.put(
            "datamodel",
            {"datamodel": "regression", "penalty": self.penalty, **self.fitted, **inputs},
            {"weights": np.asarray(self.weights[:])},
            {
                "lds": [self.lds.value, self.lds.low, self.lds.high, self.lds.subsets],
                "train_ids": self.train_ids, "point_ids": self.point_ids,
                "penalty": self.penalty, "trainings": self.trainings, "choices": list(self.choices.items()),
            },
            {"weights": ("n", "p", "c")},
        )  # fmt: skip
        return entry.key

    @staticmethod
    def of(entry: Entry) -> "Regression":
        """What `save` kept; only the forgotten examples' weights are read. Raises DataError for another entry."""
        if entry.inputs.get("datamodel") != "regression":
            raise DataError(
                f"{entry.key[:12]} holds {entry.kind}, no regression datamodel.", "Give what `unlearn datamodel` wrote."
            )
        train_ids, point_ids = (np.asarray(entry.about[name], np.int64) for name in ("train_ids", "point_ids"))
        penalty, trainings = float(entry.about["penalty"]), int(entry.about["trainings"])
        value, low, high, subsets = entry.about["lds"]
        score = LDS(value, low, high, 0.9, subsets=int(subsets))
        choices = {float(k): float(v) for k, v in entry.about["choices"]}
        return Regression(StoredOutput(entry, "weights"), train_ids, point_ids, penalty, score, choices, trainings)


def ridge(bank: Retrained, penalties: Sequence[float] = LAMBDAS, seed: int = 0) -> Regression:
    """Ridge regression of the bank's logits on its masks. Raises DataError for a bank that is too small.

    >>> datamodel = ridge(subsets)
    >>> datamodel.predict_delta(forget, points).shape  # change of every logit at every point
    (60, 3)
    """
    return _fit(bank, penalties, seed, _ridge_path, LAMBDAS)


def lasso(bank: Retrained, shares: Sequence[float] = SHARES, seed: int = 0) -> Regression:
    """Lasso: λ as shares of the smallest penalty that would leave no weight."""
    return _fit(bank, shares, seed, _lasso_path, SHARES)


# one fitted weight matrix [n k] for every penalty
Path = Callable[[np.ndarray, np.ndarray, Sequence[float]], "list[np.ndarray]"]


def _fit(bank: Retrained, penalties: Sequence[float], seed: int, path: Path, usual: tuple[float, ...]) -> Regression:
    judged, chosen_by, fitted = held_out(bank, seed)
    shape = bank.rows("logits", slice(0, 1)).shape[1:]
    means, gram, moment = moments(bank, np.sort(fitted))
    to_choose, to_judge = outputs(bank, chosen_by), outputs(bank, judged)
    fits = path(gram, moment, penalties)
    scores = []
    for weights in fits:
        predicted = (bank.masks[chosen_by] - means) @ weights
        scores.append(float(spearman(predicted, to_choose).mean()))
    enough = max(scores) - (1 - NEARLY) * abs(max(scores))
    best = min((k for k in range(len(fits)) if scores[k] >= enough), key=lambda k: penalties[k])
    score = lds_of((bank.masks[judged] - means) @ fits[best], to_judge)
    how: dict[str, Any] = {} if seed == 0 else {"seed": seed}
    how |= {} if tuple(penalties) == usual else {"penalties": [float(p) for p in penalties]}
    # with λ settled, all models
    _, gram, moment = moments(bank, np.arange(len(bank)))
    scale = len(bank) / len(fitted) if path is _ridge_path else 1.0
    weights = path(gram, moment, [penalties[best] * scale])[0].astype(np.float32)
    return Regression(
        weights.reshape(-1, *shape),
        bank.train_ids,
        bank.point_ids,
        float(penalties[best]),
        score,
        dict(zip(map(float, penalties), scores)),
        len(bank),
        how,
    )


def held_out(bank: Retrained, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Models to judge a regression by, to choose its penalty by, and to fit it on. Raises DataError for too few, or
    masks that are all one."""
    count = len(bank)
    if count < FEWEST_MODELS:
        raise DataError(
            f"A regression on {count} retrained models cannot hold out masks to judge it by.",
            f"Use at least {FEWEST_MODELS}, better several a training example.",
        )
    if (bank.masks == bank.masks[0]).all():
        raise DataError(
            "All models of this bank were trained under one mask, so nothing can be regressed on it.",
            "Use subset_masks for a datamodel's bank.",
        )
    order = np.random.default_rng(seed).permutation(count)
    tenth = max(count // 10, 8)
    return order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]


def outputs(bank: Retrained, rows: np.ndarray) -> np.ndarray:
    return bank.rows("logits", rows).reshape(len(rows), -1)


def blocks(rows: Int64[np.ndarray, " m"]) -> Iterator[Int64[np.ndarray, " b"]]:
    """As many at a time as have their outputs in memory together."""
    for start in range(0, len(rows), MODELS_AT_ONCE):
        yield rows[start : start + MODELS_AT_ONCE]


def moments(
    bank: Retrained, rows: Int64[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n"], Float[np.ndarray, "n k"]]:
    """Mean mask, MᵀM and MᵀY of centred masks, the outputs read a block of models at a time."""
    masks: Bool[np.ndarray, "m n"] = bank.masks[rows]
    means = masks.mean(0)
    centred = (masks - means).astype(np.float32)
    moment = np.zeros((masks.shape[1], outputs(bank, rows[:1]).shape[1]), np.float32)
    for block in blocks(np.arange(len(rows))):
        moment += centred[block].T @ outputs(bank, rows[block]).astype(np.float32)
    return means, (centred.T @ centred).astype(np.float64), moment


def _ridge_path(gram: np.ndarray, moment: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values, 0.0).astype(np.float32), vectors.astype(np.float32)
    rotated = vectors.T @ moment
    return [vectors @ (rotated / (values + penalty)[:, None]) for penalty in penalties]


def _lasso_path(gram: np.ndarray, moment: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """½|Y - MW|² + λ_k |W_k|₁, with λ_k a share of max |MᵀY_k|; each solution starts the next."""
    gram = gram.astype(np.float32)
    lipschitz = float(np.linalg.eigvalsh(gram)[-1])
    top = np.abs(moment).max(0)
    weights, out = np.zeros_like(moment), []
    for share in penalties:
        weights = _fista(gram, moment, share * top, weights, lipschitz)
        out.append(weights)
    return out


def _fista(
    gram: np.ndarray, moment: np.ndarray, penalty: np.ndarray, start: np.ndarray, lipschitz: float
) -> np.ndarray:
    weights, ahead, speed = start, start, 1.0
    for _ in range(300):
        step = ahead - (gram @ ahead - moment) / lipschitz
        shrunk = np.sign(step) * np.maximum(np.abs(step) - penalty / lipschitz, 0.0)
        faster = 0.5 * (1 + np.sqrt(1 + 4 * speed**2))
        ahead = shrunk + np.float32((speed - 1) / faster) * (shrunk - weights)
        moved = float(np.abs(shrunk - weights).max())
        weights, speed = shrunk, faster
        if moved <= 1e-5 * max(float(np.abs(weights).max()), 1e-12):
            break
    return weights
