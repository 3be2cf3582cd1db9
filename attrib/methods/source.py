"""SOURCE: unrolled differentiation, approximated by segments of training (Bae et al. 2024, arXiv 2405.12186)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task, UsageError, model_fingerprint

from .. import kernels
from ..checkpoints import Checkpoint, models_at
from ..factors import Damping, Factors, SiteFactors
from ..fit import Moments, first_batch, fold_sites, moments
from ..method import FitOptions, inputs_of, make_run
from ..scores import prepared_queries, site_products
from ..states import NATS, check_fitted, kept, labelled
from .ekfac import Bases, RotatedSquares
from .identity import Identity

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Segment:
    """A stretch of training: checkpoints within it, its mean learning rate, and how many steps it took."""

    checkpoints: Sequence[Checkpoint]
    rate: float
    steps: int


@dataclass(frozen=True)
class Unrolled:
    """models, factors, times: of every segment, in order; factors are EK-FAC averaged over the segment's checkpoints,
    times are rate times steps. final: factors of the last model, without curvature, for the queries' gradients."""

    method: str
    inputs: Mapping[str, Any]
    models: tuple[tuple[nn.Module, ...], ...]
    factors: tuple[Factors, ...]
    times: tuple[float, ...]
    final: Factors

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> "xarray.DataArray":
        """(1/N) sum over segments l of v_l^T F(H_l) (-mean grad L_n), from the last segment back, where
        F(s) = (1 - exp(-t s)) / s, v_last = grad f and v_(l-1) = exp(-t_l H_l) v_l."""
        check_fitted(self.inputs, model)

        def make() -> np.ndarray:
            carried = prepared_queries(self.final, model, task, queries, options)
            total = np.zeros((len(queries), len(train)))
            for models, factors, time in reversed(list(zip(self.models, self.factors, self.times))):
                asked = {name: moved(v, factors.per_site[name], response, time) for name, v in carried.items()}
                for at in models:
                    total -= products(at, task, train, asked, factors.sites, options) / len(models)
                carried = {name: moved(v, factors.per_site[name], decay, time) for name, v in carried.items()}
            return total / self.final.count

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, NATS, task)


def response(eigenvalues: np.ndarray, time: float) -> np.ndarray:
    """(1 - exp(-time s)) / s, time where s is 0."""
    return np.where(eigenvalues * time > 1e-12, -np.expm1(-time * eigenvalues) / np.maximum(eigenvalues, 1e-300), time)


def decay(eigenvalues: np.ndarray, time: float) -> np.ndarray:
    return np.exp(-time * eigenvalues)


def moved(value: jax.Array, site: SiteFactors, function: Any, time: float) -> jax.Array:
    """A function of the curvature applied to [q o i]."""
    qa, qs = jnp.asarray(site.qa, value.dtype), jnp.asarray(site.qs, value.dtype)
    weight = jnp.asarray(function(site.eigenvalues, time), value.dtype)
    return kernels.rotate_back(kernels.rotate(value, qa, qs) * weight, qa, qs)


def products(
    model: nn.Module, task: Task, train: Examples, asked: Mapping[str, jax.Array], sites: Sites, options: FitOptions
) -> np.ndarray:
    """<asked_q, grad L_n> over all sites, [q n]."""
    run = make_run(model, task, train, sites, "loss", 0, options)
    out = np.empty((len(next(iter(asked.values()))), len(train)))
    for batch in run.batches(desc="segment", quiet=options.quiet):
        parts = [site_products(asked[s.name], batch, s.name) for s in run.sites]
        out[:, batch.rows] = np.asarray(sum(parts[1:], parts[0]))[:, : len(batch.rows)]
    return out


@dataclass(frozen=True)
class SOURCE:
    """segments: of the training run, in order, for losses averaged over the data as SGD minimises them. The model that
    is attributed is the run's last. seed: of the curvature's sampled labels. It needs no damping: what the run had no
    time to learn it does not invert."""

    segments: Sequence[Segment] = ()
    seed: int = 0
    name = "source"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Unrolled:
        """Raises UsageError without segments or for a rate or step count that is not positive, ModelError for unlike
        checkpoints; otherwise as EKFAC.fit."""
        if not self.segments or any(s.rate <= 0 or s.steps < 1 for s in self.segments):
            raise UsageError(
                "SOURCE needs segments of training, each with checkpoints, a learning rate and a number of steps.",
                "Give SOURCE(segments=[Segment([state_dict, ...], rate, steps), ...]).",
            )
        models = tuple(tuple(models_at(model, segment.checkpoints)) for segment in self.segments)
        final = Identity().fit(model, task, examples, sites=sites, options=options)
        factors = tuple(averaged(part, task, examples, final.sites, self.seed, store, options) for part in models)
        times = tuple(segment.rate * segment.steps for segment in self.segments)
        inputs = {**final.inputs, "method": self.name, "times": list(times), "seed": self.seed}
        inputs["checkpoints"] = [[model_fingerprint(at).hex for at in part] for part in models]
        return Unrolled(self.name, inputs, models, factors, times, final)


def averaged(
    models: Sequence[nn.Module], task: Task, examples: Examples, sites: Sites, seed: int, store: Store | None,
    options: FitOptions,
) -> Factors:  # fmt: skip
    """EK-FAC of several checkpoints' mean curvature: moments averaged, one basis, eigenvalues averaged in it."""
    runs = [make_run(at, task, examples, sites, "sampled", seed, options) for at in models]
    found = [moments(run, store, inputs_of(run), options)[0] for run in runs]
    mean = {}
    for name in found[0]:
        a, s = (np.mean([getattr(each[name], part) for each in found], axis=0) for part in ("a", "s"))
        mean[name] = Moments(a, s, 1.0)
    together = {"together": [model_fingerprint(at).hex for at in models]}
    bases = Bases.of(mean, "float32", store, {**inputs_of(runs[-1]), **together})
    batch = first_batch(runs[0])
    order = {s.name: kernels.rotation_order(batch.inputs[s.name].shape[1], *s.shape) for s in sites}
    add = RotatedSquares(bases, order, str(next(iter(batch.inputs.values())).dtype))
    values = []
    for run in runs:
        stage = {**inputs_of(run), **together, "stage": "segment eigenvalues"}
        values.append(fold_sites(run, store, stage, add, "eigenvalues", options)[0])
    per_site = {n: SiteFactors(*bases.at(n), np.mean([v[n] for v in values], axis=0)) for n in mean}
    return Factors("ekfac", sites, per_site, len(examples), Damping(0.0, "absolute"), inputs_of(runs[-1]))
