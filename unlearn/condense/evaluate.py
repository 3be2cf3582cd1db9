"""How well networks do that were trained on a small set alone: the published protocol, for any set and network.

Every network of an evaluation is trained inside one compiled program, all in the same way and for the same
number of passes, whatever synthesised the set.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import DataError, UsageError
from whence.cache.jobs.progress import progress

from .axes import each, on
from .condensed import Condensed
from .networks import Network, check_network
from .pool import Pool
from .training import Training, accuracy, trained

if TYPE_CHECKING:
    import xarray


class Accuracies(NamedTuple):
    """Test accuracy in percent of every network [e] trained on every set [k]."""

    values: Float[np.ndarray, "k e"]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Over all sets and networks, as published tables give it."""
        return float(self.values.std())

    def interval(self, share: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
        """Bootstrap interval of the mean: sets are resampled, then networks within each."""
        rng = np.random.default_rng(0)
        k, e = self.values.shape
        sets, nets = rng.integers(0, k, (resamples, k, 1)), rng.integers(0, e, (resamples, k, e))
        means = self.values[sets, nets].mean((1, 2))
        low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.mean:.1f} ± {self.std:.1f} [{low:.1f}, {high:.1f}]"


@overload
def evaluate(
    sets: "Sequence[Condensed | Pool] | Condensed | Pool", test: Pool, network: Network, training: Training = ...,
    networks: int = ..., seed: int = ..., *, device: str | None = ..., quiet: bool = ...,
) -> Accuracies: ...  # fmt: skip
@overload
def evaluate(
    sets: "Mapping[str, Sequence[Condensed | Pool]]", test: Pool, network: Mapping[str, Network],
    training: Training = ..., networks: int = ..., seed: int = ..., *, device: str | None = ..., quiet: bool = ...,
) -> "xarray.DataArray": ...  # fmt: skip
def evaluate(
    sets: Any,
    test: Pool,
    network: Any,
    training: Training = Training(),
    networks: int = 20,
    seed: int = 0,
    *,
    device: str | None = None,
    quiet: bool = True,
) -> Any:
    """Train `networks` networks from scratch on each set and test them.

    Args:
        sets: condensed sets, or pools of real examples; with several architectures, name -> sets.
        test: scaled as the training data were (`Pool.of(..., scaling=)`).
        network: what is trained; name -> network to compare several architectures.
        training: how.
        networks: trained on each set.
        seed: of their initial weights.
        device: "cpu", "cuda", "cuda:1"; JAX's default if None.
        quiet: show no progress bar.

    Returns Accuracies; with names, the mean accuracy of every named set with every named network, a DataArray
    [set, network] in percent whose attribute `std` has the standard deviations in the same order.

    Raises DataError if a set and the test data differ in shape, classes or scaling, ModelError if the network mixes
    the examples of a batch, UsageError if there is no set or no network.

    >>> found = evaluate([select(pool, "random", 2)], pool, MLP((8,)), Training(epochs=5), networks=3)
    >>> found.values.shape  # percent, [sets, networks]
    (1, 3)
    """
    if isinstance(sets, Mapping):
        return _table(sets, test, network, training, networks, seed, device=device, quiet=quiet)
    sets = [sets] if isinstance(sets, (Condensed, Pool)) else list(sets)
    if not sets or networks < 1:
        raise UsageError(f"{networks} networks on {len(sets)} sets give no accuracy.", "Give one or more of each.")
    rows = []
    with on(device):
        check_network(network, test.shape, test.classes)
        for number, given in enumerate(progress(sets, desc="evaluating", unit="set", quiet=quiet)):
            _same(given, test)
            x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)
            keys = jax.random.split(jax.random.key(seed * 1000 + number), networks)
            rows.append(100.0 * np.asarray(_program(network, training)(keys, x, labels, test.x, test.y)))
    return Accuracies(np.stack(rows))


def _table(
    sets: "Mapping[str, Sequence[Condensed | Pool]]",
    test: Pool,
    networks: Mapping[str, Network],
    *how: Any,
    **options: Any,
) -> "xarray.DataArray":
    import xarray as xr

    table = [
        [evaluate(given, test, network, *how, **options) for network in networks.values()] for given in sets.values()
    ]
    return xr.DataArray(
        [[cell.mean for cell in row] for row in table],
        dims=("set", "network"),
        coords={"set": list(sets), "network": list(networks)},
        name="accuracy",
        attrs={
            "unit": "percent",
            "std": [[round(cell.std, 3) for cell in row] for row in table],
            "networks": [repr(network) for network in networks.values()],
            "training": str(how[0]),
        },
    )


@lru_cache(maxsize=32)
def _program(network: Network, training: Training) -> Any:
    def one(key: Array, x: Array, labels: Array, test_x: Array, test_y: Array) -> Array:
        return accuracy(network, trained(network, key, x, labels, training), test_x, test_y)

    return jax.jit(lambda keys, *data: each(lambda key: one(key, *data))(keys))


def _same(given: "Condensed | Pool", test: Pool) -> None:
    if given.x.shape[1:] != test.shape or given.labels.shape[1] != test.classes:
        raise DataError(
            f"A set of examples {list(given.x.shape[1:])} in {given.labels.shape[1]} classes cannot be judged "
            f"by test data {list(test.shape)} in {test.classes}.",
            "Use test data of the same kind.",
        )
    if not all(np.allclose(a, b) for a, b in zip(given.scaling[:2], test.scaling[:2])):
        raise DataError(
            "The set and the test data are scaled differently.", "Make the test pool with scaling=train.scaling."
        )
