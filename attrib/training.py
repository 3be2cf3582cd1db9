"""What a recorded run says about how far training went: effective learning rates per site, and the damping to match.

Conventions: curvature is of an example's loss summed over its positions, averaged over examples, H. A step of rate
eta on a mean over positions moves by eta / T of that gradient, T the mean number of positions of an example; a step on
a mean over examples by eta; a step on a sum by eta times the examples in it. Momentum mu adds the steps up to
eta / (1 - mu). Adam divides each parameter's step by sqrt(v) + eps, v the bias-corrected second moment of its
gradients: the site's rate is the mean of 1 / (sqrt(v) + eps) with weights v, the rate that its gradients meet. Weight
decay, clipping and Adam's own response to a changed gradient are left out.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Sites, TrainedModel, UsageError
from whence.cache.model.bridge import to_numpy
from whence.cache.model.runs import ADAMS, SGDS, Checkpointed, TrainingRun
from whence.cache.model.sites import Site
from whence.cache.model.stateless import named_parameters

from .curvature import Damping

# Chosen on the leaderboard: with 1, EK-FAC loses against damping 0.1 in the long regime; from 3 to 25 in none. The
# exact curvature along a training example's gradient is about 2 per site there.
PER_SITE = 4.0
AT_ONCE = 64  # examples whose positions are counted together


def damping_of(trained: TrainedModel, sites: Sites) -> Damping | None:
    """The damping by rule "steps" of the recorded run; None if no run is known, or its optimiser is neither SGD nor
    Adam nor AdamW. Raises UsageError for a site that the run did not train.

    Kronecker factors treat layers apart and spread a layer's curvature over many directions, so they have less
    curvature along an example's gradient than the exact matrix: m times less. m is PER_SITE times the number of sites.
    A solver of the exact matrix needs no m.
    """
    run = trained.training
    if run is None or run.optimiser not in ADAMS + SGDS or not len(run):
        return None
    return steps_taken(trained, sites, run, 0, len(run))


def chosen_damping(trained: TrainedModel, sites: Sites, given: Damping | None = None) -> tuple[Damping, str]:
    """The damping of a fit at these sites, and why: as given, else that of the recorded run, else the paper's."""
    if given is not None:
        return given, "as given"
    if (own := damping_of(trained, sites)) is not None:
        assert trained.training is not None
        return own, f"of the recorded run, {len(trained.training)} steps of {trained.training.optimiser}"
    if trained.training is None:
        return Damping(), "the default: no run of the training is recorded"
    return Damping(), f"the default: the recorded run has no steps of {', '.join(SGDS + ADAMS)}"


def steps_taken(trained: TrainedModel, sites: Sites, run: TrainingRun, first: int, last: int) -> Damping:
    """The damping by rule "steps" of steps first..last-1, which checkpoints end."""
    return Damping(PER_SITE * len(sites), "steps", times_of(trained, sites, run, first, last))


def times_of(trained: TrainedModel, sites: Sites, run: TrainingRun, first: int, last: int) -> dict[str, float]:
    """The sum of every site's effective learning rates over steps first..last-1, which checkpoints end."""
    unit, total = per_example(trained, run), dict.fromkeys(sites.names, 0.0)
    for start, stop, factors in stretches(run):
        if not first <= start < last:
            continue
        rates = summed_rates(run, start, stop)
        for site in sites:
            total[site.name] += unit * site_rate(site, run, rates, factors)
    still = [name for name, time in total.items() if time <= 0]
    if still:
        raise UsageError(
            f"The recorded run did not train {still[0]}.",
            "Leave it out of the sites, or give a damping (EKFAC(damping=Damping(0.1))).",
        )
    return total


def per_example(trained: TrainedModel, run: TrainingRun) -> float:
    """The weight in a step's loss of the mean over examples of their summed losses."""
    if run.averaged == "examples":
        return 1.0
    if run.averaged == "nothing":
        return len(trained.train) / steps_per_epoch(trained, run)
    counted, task = 0.0, trained.task
    for first in range(0, len(trained.train), AT_ONCE):
        batch = trained.batch(trained.train, np.arange(first, min(first + AT_ONCE, len(trained.train))))
        targets = getattr(task, "targets", None) if run.averaged == "targets" else None
        counted += float((targets(batch)[1] if targets else task.positions(batch)).sum())
    return len(trained.train) / max(counted, 1.0)


def steps_per_epoch(trained: TrainedModel, run: TrainingRun) -> float:
    if run.ids is None:
        raise UsageError("The run's order is unknown, which a summed loss needs.", "Record it with run.step(ids).")
    return len(trained.train) * len(run) / max(sum(map(len, run.ids)), 1)


def stretches(run: TrainingRun) -> list[tuple[int, int, Mapping[str, Tensor]]]:
    """(first step, step after the last, effective rate per unit of learning rate of every trained parameter) of every
    stretch between checkpoints, by the optimiser's state at its end; a tensor of one number for SGD."""
    ends = [saved for saved in run.checkpoints if saved.step > 0]
    starts = [0, *(saved.step for saved in ends)]
    return [(start, saved.step, effective(run, saved)) for start, saved in zip(starts, ends)]


def effective(run: TrainingRun, saved: Checkpointed) -> dict[str, Tensor]:
    """What the optimiser multiplies a steady gradient by, over the learning rate, per parameter."""
    found = {}
    moments = saved.read("exp_avg_sq") if run.optimiser in ADAMS else {}
    for group in run.groups:
        settings = group.settings
        for name in group.names:
            if run.optimiser in SGDS:
                gain = (1 - settings.get("dampening", 0.0)) / (1 - settings.get("momentum", 0.0))
                found[name] = torch.tensor(gain if settings.get("momentum", 0.0) else 1.0, dtype=torch.float64)
            elif name in moments:  # else it never had a gradient
                corrected = moments[name].double() / (1 - settings["betas"][1] ** saved.step)
                found[name] = 1 / (corrected.sqrt() + settings["eps"])
    return found


def summed_rates(run: TrainingRun, start: int, stop: int) -> dict[str, float]:
    """The sum of the learning rates of steps start..stop-1, per parameter."""
    sums = run.rates[start:stop].sum(0)
    return {name: float(rate) for group, rate in zip(run.groups, sums) for name in group.names}


def rates_of(
    model: nn.Module, run: TrainingRun, start: int, stop: int, factors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Summed effective rates of steps start..stop-1 at every parameter of the model, zero where nothing moved it."""
    rates = summed_rates(run, start, stop)
    zero = torch.zeros((), dtype=torch.float64)
    return {
        name: (rates.get(name, 0.0) * factors.get(name, zero)).expand(parameter.shape)
        for name, parameter in named_parameters(model).items()
    }


def site_rate(site: Site, run: TrainingRun, rates: Mapping[str, float], factors: Mapping[str, Tensor]) -> float:
    """One rate of a site: the mean over its parameters' numbers, weighted by the square of their gradients."""
    weighted, weight = 0.0, 0.0
    for name in {name for _, name in site.parameters if name in factors}:
        factor = to_numpy(factors[name])
        energy = np.square(1 / factor) if run.optimiser in ADAMS else np.ones(())
        weighted += rates[name] * float((energy * factor).sum())
        weight += float(energy.sum())
    return weighted / weight if weight else 0.0
