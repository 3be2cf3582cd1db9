"""Do independently trained models agree on which layer is which? And when did a layer settle?

Layer matching (Leask et al. 2025, §5, after Kornblith et al. 2019): layer i of one model is matched to the layer
of another that is most like it; right when that is layer i. The paper counts a model matched with itself among
the trials, which is always right; here pairs of different models are the result and self pairs stand beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from whence.cache.display.interval import Interval
from whence.cache.errors import DataError

from . import intervals, overlap
from .activations import Activations
from .dictionary import Dictionary
from .similarity import MEASURES, Measure


class Layer(NamedTuple):
    """One layer of one model: its activations on the common text and the dictionary built from them."""

    activations: Activations
    dictionary: Dictionary


def _places(seeds: bool) -> Callable[[Layer], Any]:
    return lambda layer: overlap.places(layer.dictionary, seeds)


def _rows(measure: Measure) -> Measure:
    return Measure(lambda layer: measure.prepare(layer.activations.whole().x), measure.compare)  # type: ignore


def layer_measures(tokens: int) -> Mapping[str, Measure]:
    """Every measure of layers by name; `tokens` read by the builders, for the chance correction.

    "dictionary size alone" is the control: it looks at no atom.
    """
    return {
        **{name: _rows(measure) for name, measure in MEASURES.items()},
        "ITDA Jaccard": Measure(_places(True), overlap.jaccard),  # type: ignore[arg-type]
        "ITDA Jaccard without seeds": Measure(_places(False), overlap.jaccard),  # type: ignore[arg-type]
        "ITDA Jaccard, chance corrected": Measure(
            _places(True),  # type: ignore[arg-type]
            lambda a, b: overlap.corrected(a, b, tokens),
        ),
        "dictionary size alone": Measure(_places(True), overlap.size_only),  # type: ignore[arg-type]
    }


def similarities(models: Sequence[Sequence[Layer]], measure: Measure) -> xr.DataArray:
    """[model, other, layer, other_layer] for every ordered pair of models, self pairs included.

    Raises DataError when models differ in their number of layers, or fewer than two are given.
    """
    if len(models) < 2 or len({len(layers) for layers in models}) != 1:
        raise DataError(
            f"Models with {[len(layers) for layers in models]} layers.",
            "Give at least two models with the same number of layers.",
        )
    prepared = [[measure.prepare(layer) for layer in layers] for layers in models]  # type: ignore[arg-type]
    values = [[[[measure.compare(a, b) for b in other] for a in one] for other in prepared] for one in prepared]
    return xr.DataArray(np.array(values), dims=("model", "other", "layer", "other_layer"), name="similarity")


class Matching(NamedTuple):
    """accuracy: share of layers matched rightly over ordered pairs of different models, its interval by
    resampling pairs; by_pair: that share for each pair; self_pairs: the same over a model and itself; chance:
    1/layers; trials: how many."""

    accuracy: Interval
    by_pair: Float[np.ndarray, " p"]
    self_pairs: float
    chance: float
    trials: int


def matching(similarity: xr.DataArray, seed: int = 0) -> Matching:
    """How often the most similar layer is the same layer. Ties count as wrong unless the first is right."""
    values = similarity.values
    models, layers = values.shape[0], values.shape[2]
    right = values.argmax(axis=3) == np.arange(layers)
    cross = ~np.eye(models, dtype=bool)
    hits = right[cross].sum(axis=1).astype(float)
    return Matching(
        intervals.ratio(hits, np.full(len(hits), float(layers)), seed),
        hits / layers,
        float(right[~cross].mean()),
        1 / layers,
        int(cross.sum()) * layers,
    )


def match_layers(models: Sequence[Sequence[Layer]], names: Sequence[str] | None = None) -> xr.Dataset:
    """Accuracy of every measure (or of those named), with controls: variables accuracy, low, high, self_pairs
    over `measure`; by_pair over (measure, pair), by which two measures are compared pair by pair."""
    read = int(models[0][0].dictionary.settings.get("rows_read", len(models[0][0].activations)))
    measures = layer_measures(read)
    chosen = list(measures) if names is None else list(names)
    found = {name: matching(similarities(models, measures[name])) for name in chosen}
    return xr.Dataset(
        {
            "accuracy": ("measure", [m.accuracy.value for m in found.values()]),
            "low": ("measure", [m.accuracy.low for m in found.values()]),
            "high": ("measure", [m.accuracy.high for m in found.values()]),
            "self_pairs": ("measure", [m.self_pairs for m in found.values()]),
            "by_pair": (("measure", "pair"), [m.by_pair for m in found.values()]),
        },
        coords={"measure": chosen},
        attrs={"chance": 1 / len(models[0]), "trials": next(iter(found.values())).trials, "models": len(models)},
    )


def model_similarity(models: Mapping[str, Sequence[Dictionary]], seeds: bool = False) -> xr.Dataset:
    """Jaccard index of the union over layers for every pair of models, beside the size-only control.

    Without seeds unless asked: with them any two models share at least the start of the stream.
    """
    names = list(models)
    sets = [overlap.places(dictionaries, seeds) for dictionaries in models.values()]
    return xr.Dataset(
        {
            "jaccard": (("model", "other"), [[overlap.jaccard(a, b) for b in sets] for a in sets]),
            "size_only": (("model", "other"), [[overlap.size_only(a, b) for b in sets] for a in sets]),
        },
        coords={"model": names, "other": names},
    )


def convergence(checkpoints: Mapping[int, Mapping[str, Dictionary]]) -> xr.Dataset:
    """How like its last self each layer was at each checkpoint: step -> layer name -> dictionary.

    Jaccard index with the last checkpoint's dictionary, with and without seeds, chance corrected (without
    seeds), and by size alone; all over (step, layer). Raises DataError for fewer than two checkpoints.
    """
    if len(checkpoints) < 2:
        raise DataError("Convergence needs two checkpoints.", "Give dictionaries of at least two.")
    steps = sorted(checkpoints)
    last = checkpoints[steps[-1]]
    names = list(last)

    def over(compare: Callable[[Dictionary, Dictionary], float]) -> tuple[tuple[str, str], list[list[float]]]:
        rows = [[compare(checkpoints[step][name], last[name]) for name in names] for step in steps]
        return ("step", "layer"), rows

    def sets(seeds: bool, compare: Callable[..., float]) -> Callable[[Dictionary, Dictionary], float]:
        return lambda a, b: compare(overlap.places(a, seeds), overlap.places(b, seeds))

    def against_chance(a: Dictionary, b: Dictionary) -> float:
        tokens = int(b.settings.get("rows_read", 0)) or max(len(a), len(b)) * 1000
        return overlap.corrected(overlap.places(a, False), overlap.places(b, False), tokens)

    return xr.Dataset(
        {
            "jaccard": over(sets(True, overlap.jaccard)),
            "jaccard_without_seeds": over(sets(False, overlap.jaccard)),
            "corrected_without_seeds": over(against_chance),
            "size_only": over(sets(True, overlap.size_only)),
        },
        coords={"step": steps, "layer": names},
    )
