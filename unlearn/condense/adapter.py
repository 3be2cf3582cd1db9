"""Few examples in the place of many: a condensed retain set for unlearning; and which stand-in is better at equal size,
examples that attribution chose, that were drawn, or that were made."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from whence.cache import Store
from whence.cache.errors import UsageError

from ..request import UnlearningRequest
from .condensed import Condensed
from .evaluate import Accuracies, evaluate
from .making import condense
from .pool import Pool
from .selection import by_influence, select
from .settings import Settings
from .training import Training

if TYPE_CHECKING:
    import xarray


def condensed_retain(
    request: UnlearningRequest, settings: Settings, seed: int = 0, store: Store | None = None
) -> UnlearningRequest:
    """The same deletion with its kept data condensed: methods see `per_class` synthetic examples a class and the forget
    set, and no other example. Nothing of the forget set goes into them.

    Raises UsageError where the deletion already has a stand-in; otherwise as `condense`.
    """
    if request.retain is not None:
        raise UsageError("This deletion has a stand-in for its kept data already.", "Condense that of the plain one.")
    (made,) = condense(Pool.of(request.kept), settings, (seed,), store, quiet=True)
    return replace(request, retain=made.examples)


def at_equal_size(
    pool: Pool,
    test: Pool,
    scores: "xarray.DataArray",
    settings: Settings,
    training: Training = Training(),
    *,
    seeds: Sequence[int] = (0,),
    networks: int = 5,
    store: Store | None = None,
) -> dict[str, Accuracies]:
    """Test accuracy, percent, of networks trained on `per_class` examples a class: "random" (a draw a seed), "herding",
    "influence" (the highest mean scores of the class), and the settings' own method (a set a seed).

    scores: [query, train] of the pool's examples; the queries must not be the test data. Raises as its parts do.
    """
    size = settings.per_class
    sets: dict[str, Sequence[Condensed | Pool]] = {
        "random": [select(pool, "random", size, seed) for seed in seeds],
        "herding": [select(pool, "herding", size)],
        "influence": [by_influence(pool, scores, size)],
        settings.method: list(condense(pool, settings, tuple(seeds), store, quiet=True)),
    }
    return {
        name: evaluate(given, test, settings.network, training, networks, quiet=True) for name, given in sets.items()
    }
