"""Few examples in the place of many: a condensed retain set for unlearning; and which few are better at equal size,
examples that attribution chose, that were sampled, or synthesised. The only file here that imports unlearn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from whence.cache import Store
from whence.cache.errors import UsageError

from ..request import UnlearningRequest
from .condensed import Condensed
from .condensing import condense
from .evaluate import Accuracies, evaluate
from .pool import Pool
from .selection import select
from .settings import Settings
from .training import Training

if TYPE_CHECKING:
    import xarray


def condensed_retain(
    request: UnlearningRequest,
    settings: Settings,
    seed: int = 0,
    store: Store | None = None,
    *,
    device: str | None = None,
    layout: str | None = None,
) -> UnlearningRequest:
    """The same request with its kept data condensed: methods see `per_class` synthetic examples per class and the
    forget set, and no other example. Nothing of the forget set goes into them.

    Args:
        request: with real kept data.
        settings: of the condensation.
        seed: of the condensation.
        store: see `condense`.
        device: see `condense`.
        layout: of images, see `Pool.of`.

    Raises UsageError if the request's kept data are replaced already; and what `condense` raises.
    """
    if request.retain is not None:
        raise UsageError("The kept data of this request are replaced already.", "Condense those of the plain request.")
    (small,) = condense(Pool.of(request.kept, layout=layout), settings, (seed,), store, device=device, quiet=True)
    return replace(request, retain=small.examples)


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
    """Test accuracy, percent, of networks trained on `per_class` examples per class: "random" (one per seed),
    "herding", "influence" (the highest mean scores of the class), and the settings' own method (a set per seed).

    scores: [query, train] of the pool's examples; the queries must not be the test data. Raises what its parts raise.
    """
    size = settings.per_class
    sets: dict[str, Sequence[Condensed | Pool]] = {
        "random": [select(pool, "random", size, seed) for seed in seeds],
        "herding": [select(pool, "herding", size)],
        "influence": [select(pool, "influence", size, scores=scores)],
        settings.rule.name: list(condense(pool, settings, tuple(seeds), store, quiet=True)),
    }
    return {
        name: evaluate(given, test, settings.network, training, networks, quiet=True) for name, given in sets.items()
    }
