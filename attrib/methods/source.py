"""SOURCE: unrolled differentiation, approximated by segments of training (Bae et al. 2024, arXiv 2405.12186)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float
from torch import nn

from whence.cache import Examples, Sites, TrainedModel, UsageError
from whence.cache.model.checkpoints import Checkpoint, models_at
from whence.cache.model.runs import ADAMS, SGDS, TrainingRun
from whence.cache.model.trained import ModelPass

from ..curvature import Curvature, Damping, SiteFactors, scaled
from ..factors import Factors
from ..fit import Moments, fold_sites, moments
from ..fitted import Fitted
from ..method import Method, in_key, not_in_key
from ..scoring.queries import exact_queries
from ..training import steps_taken
from .ekfac import Bases, RotatedSquares
from .features import products_with
from .identity import NONE, identities


@dataclass(frozen=True)
class Segment:
    """A stretch of training: checkpoints within it, its mean learning rate, and how many steps it took."""

    checkpoints: Sequence[Checkpoint]
    rate: float
    steps: int


Segments: TypeAlias = list[tuple[list[nn.Module], Damping]]  # models within each, and how far it went


@dataclass(frozen=True)
class Unrolled(Fitted):
    """models, curvatures, steps: of every segment, in order; a curvature is EK-FAC averaged over the segment's
    checkpoints, steps is a damping by that rule. count: examples that were fitted."""

    sites: Sites
    models: tuple[tuple[TrainedModel, ...], ...]
    curvatures: tuple[Mapping[str, SiteFactors], ...]
    steps: tuple[Damping, ...]
    count: int

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """(1/N) sum over segments l of v_l^T F(H_l) (-mean grad L_n), from the last segment back, where
        F(s) = (1 - exp(-t s)) / s, v_last = grad f and v_(l-1) = exp(-t_l H_l) v_l; with m s for s (`Damping`)
        where the run was recorded."""
        carried = exact_queries(self._last(), queries)
        total = np.zeros((len(queries), len(train)))
        for models, curvature, steps in reversed(list(zip(self.models, self.curvatures, self.steps))):
            vectors = {
                name: scaled(v, curvature[name], steps.inverse(name, curvature[name].eigenvalues))
                for name, v in carried.items()
            }
            for at in models:
                run = self.trained.replace(model=at.model).run("loss", self.sites, train)
                total -= products(run, vectors) / len(models)
            carried = {name: scaled(v, curvature[name], decay(steps, name, curvature)) for name, v in carried.items()}
        return total / self.count

    def _last(self) -> Curvature:
        """The last model without curvature, for the queries' gradients."""
        ones = identities(self.sites)
        return Factors(self.trained, self.method, self.inputs, self.sites, ones, self.count, NONE)


def decay(steps: Damping, site: str, curvature: Mapping[str, SiteFactors]) -> np.ndarray:
    """exp(-m t s) of every eigenvalue."""
    return np.exp(-steps.value * steps.per_site[site] * curvature[site].eigenvalues)


def products(run: ModelPass, vectors: Mapping[str, jax.Array]) -> Float[np.ndarray, "q n"]:
    """<vectors_q, grad L_n> over all sites."""
    out, feature = np.empty((len(next(iter(vectors.values()))), len(run.examples))), products_with(vectors)
    for batch in run.batches(desc="segment"):
        out[:, batch.rows] = np.asarray(feature(batch)).T[:, : len(batch.rows)]
    return out


@dataclass(frozen=True)
class SOURCE(Method):
    """The effect of an example on training, segment by segment. The model that is attributed is the run's last. It
    needs no damping: what the run had no time to learn it does not invert.

    Without segments, those of the recorded run are taken, if the trained model has one: its checkpoints in `parts`
    groups, with the effective learning rate of every site under SGD with momentum, Adam or AdamW.

    Args:
        segments: of the training run, in order, for losses averaged over the data as SGD minimises them. `fit` raises
            UsageError without segments or for a rate or step count that is not positive, ModelError for checkpoints
            whose parameters differ in name or shape.
        seed: of the curvature's sampled labels.
        parts: segments that a recorded run is divided into.
    """

    segments: Sequence[Segment] = not_in_key((), "enters as times and checkpoints' fingerprints")
    seed: int = in_key(0)
    parts: int = in_key(3, unless=3)
    name = "source"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Unrolled:
        run = trained.training
        told: dict[str, Any]
        if not self.segments and run is not None and run.optimiser in ADAMS + SGDS:
            divided, told = self._divided(trained, sites, run), {"run": run.fingerprint}
        else:
            divided, told = self._given(trained, sites)
        models = tuple(tuple(trained.replace(model=model) for model in part) for part, _ in divided)
        steps = tuple(each for _, each in divided)
        fingerprints = [[at.fingerprint() for at in part] for part in models]
        curvatures = tuple(averaged(part, prints, sites, self.seed) for part, prints in zip(models, fingerprints))
        inputs: dict[str, Any] = self.inputs(ModelPass(trained, trained.train, sites))
        told |= {"curvature times": steps[0].value} if "run" in told else {}
        inputs |= {**told, "checkpoints": fingerprints}
        return Unrolled(trained, self.name, inputs, sites, models, curvatures, steps, len(trained.train))

    def _divided(self, trained: TrainedModel, sites: Sites, run: TrainingRun) -> Segments:
        """Segments of the recorded run: its checkpoints but the first, in groups one after the other."""
        ends = [saved for saved in run.checkpoints if saved.step > 0]
        out, first = [], 0
        for part in np.array_split(np.arange(len(ends)), min(self.parts, len(ends))):
            group = [ends[k] for k in part]
            models = models_at(trained.model, [saved.read() for saved in group])
            out.append((models, steps_taken(trained, sites, run, first, group[-1].step)))
            first = group[-1].step
        return out

    def _given(self, trained: TrainedModel, sites: Sites) -> tuple[Segments, dict[str, Any]]:
        if not self.segments or any(s.rate <= 0 or s.steps < 1 for s in self.segments):
            raise UsageError(
                "SOURCE needs segments of training, each with checkpoints, a learning rate and a number of steps.",
                "Give SOURCE(segments=[Segment([state_dict, ...], rate, steps), ...]) (--checkpoints, --rates and "
                "--steps), or open a recorded run (--recorded FOLDER).",
            )
        times = [segment.rate * segment.steps for segment in self.segments]
        steps = [Damping(1.0, "steps", dict.fromkeys(sites.names, time)) for time in times]
        models = [models_at(trained.model, segment.checkpoints) for segment in self.segments]
        return list(zip(models, steps)), {"times": times}


def averaged(
    models: Sequence[TrainedModel], fingerprints: Sequence[str], sites: Sites, seed: int
) -> dict[str, SiteFactors]:
    """EK-FAC of several checkpoints' mean curvature: moments averaged, one basis, eigenvalues averaged in it."""
    runs = [at.run("sampled", sites, seed=seed) for at in models]
    found = [moments(run, run.inputs())[0] for run in runs]
    mean = {}
    for name in found[0]:
        a, s = (np.mean([getattr(each[name], part) for each in found], axis=0) for part in ("a", "s"))
        mean[name] = Moments(a, s, 1.0)
    together = {"together": list(fingerprints)}
    bases = Bases.of(mean, "float32", runs[0].trained.store, runs[-1].inputs(**together))
    add = RotatedSquares.of(bases, runs[0])
    values = [
        fold_sites(run, run.inputs(**together, stage="segment eigenvalues"), add, "eigenvalues")[0] for run in runs
    ]
    return {n: SiteFactors(*bases.at(n), np.mean([v[n] for v in values], axis=0)) for n in mean}
