"""The headline claims of ITDA (Leask et al. 2025, arXiv 2505.17769) measured on small models, with controls.

Thresholds and learning rates are chosen on validation passages; everything reported about quality is measured on
held-out ones. Times exclude compilation and the choice of a threshold or of a rate, which is reported separately.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from whence.cache import Examples, LanguageModelling, Store, TrainedModel
from whence.cache.jobs.progress import progress
from whence.decomp import ITDA, SAE, Activations, Dictionary, Random, calibrate, layers, observe
from whence.decomp.builders import MPSAE
from whence.decomp.evaluate import baselines, evaluate, loss_recovered

from .decomposition_models import Data, Plan, Trained

STEPS = 8  # pursuit steps and latents of every codec
SIZE = 1024
LAYER_THRESHOLD = 0.2
RATES = (3e-3, 1e-2, 3e-2)
ATOM_RATES = (1e-3, 3e-3, 1e-2)  # of atoms that are trained through their pursuit
KINDS = ("topk", "batchtopk")
TOKENS = "equal activations"  # a mark of an autoencoder's training beside the multiples of ITDA's time


def times(multiple: float) -> str:
    """The name of a mark in time."""
    return "equal time" if multiple == 1 else f"{multiple:g} times the time"


# -- cost and quality


class Place(NamedTuple):
    """One layer of one model: activations to build from, to choose by and to judge by, and the ablations' losses."""

    trained: Trained
    stream: Activations
    validation: Activations
    held_out: Activations
    base: dict[str, np.ndarray]


class Built(NamedTuple):
    """A dictionary with the seconds that its build and the choice of its threshold took."""

    dictionary: Dictionary
    seconds: float
    calibration: float

    @property
    def read(self) -> int:
        return int(self.dictionary.settings["rows_read"])


class Figures(NamedTuple):
    """seconds and activations that a codec cost; fvu and l0 on held-out activations; share of the loss recovered
    against zero and against mean ablation."""

    seconds: float
    rows: float
    fvu: float
    l0: float
    zero: float
    mean: float


def place(plan: Plan, trained: Trained, read: Data, store: Store) -> Place:
    site = plan.sites[plan.middle]
    bound = TrainedModel(trained.model, read.stream, LanguageModelling(), store=store, quiet=True)
    stream, validation, held_out = (
        observe(bound, site, examples).without(positions=[0])
        for examples in (read.stream, read.validation, read.held_out)
    )
    mean = stream.whole().x.mean(axis=0)
    base = baselines(bound, read.held_out, site, mean)
    return Place(trained, stream, validation, held_out, base)


def judged(codec: Any, at: Place, examples: Examples, seconds: float, rows: float) -> Figures:
    found = evaluate(codec, at.held_out).value
    bound = TrainedModel(at.trained.model, examples, LanguageModelling(), quiet=True)
    loss = loss_recovered(bound, codec, at=at.held_out.origin.site, base=at.base).value
    recovered = [float(loss.sel(metric=f"recovered_{name}")) for name in ("zero", "mean")]
    return Figures(seconds, rows, float(found.sel(metric="fvu")), float(found.sel(metric="l0")), *recovered)


def build(at: Place) -> Built:
    """SIZE atoms, the threshold such that they are reached near the end of the stream."""
    began = time.perf_counter()
    pilot = at.stream.select(np.arange(min(len(at.stream), 8192)))
    builder = calibrate(ITDA(size=SIZE, k=STEPS), pilot, size=SIZE, rows=int(0.8 * len(at.stream)), rounds=6).builder
    calibrated = time.perf_counter()
    builder.build(at.stream)  # compiles
    timed = time.perf_counter()
    dictionary = builder.build(at.stream)
    return Built(dictionary, time.perf_counter() - timed, calibrated - began)


def dictionaries_judged(built: Built, at: Place, examples: Examples) -> Iterator[tuple[str, Figures]]:
    """ITDA and as many random activations, each with matching pursuit and with least squares at the end."""
    began = time.perf_counter()
    control = Random(len(built.dictionary), k=STEPS).build(at.stream)
    sampled = time.perf_counter() - began
    for name, dictionary, seconds, rows in (
        ("ITDA", built.dictionary, built.seconds, built.read),
        ("random activations", control, sampled, len(at.stream)),
    ):
        yield name, judged(dictionary, at, examples, seconds, rows)
        yield f"{name}, refit codes", judged(replace(dictionary, pursuit="refit"), at, examples, seconds, rows)


class Budget(NamedTuple):
    """The autoencoders' budget: marks in tokens and in seconds, by name."""

    tokens: int
    seconds: Mapping[str, float]

    @staticmethod
    def of(plan: Plan, built: Sequence[Built]) -> "Budget":
        spent = float(np.mean([b.seconds for b in built]))
        return Budget(int(np.mean([b.read for b in built])), {times(m): m * spent for m in plan.multiples})

    def train(self, kind: str, rate: float, stream: Activations, names: set[str]) -> dict[str, Any]:
        """Mark by name, of those wanted."""
        tokens = [self.tokens] if TOKENS in names else []
        seconds = {goal: name for name, goal in self.seconds.items() if name in names}
        marks = SAE(SIZE, k=STEPS, kind=kind, rate=rate).train(stream, at_tokens=tokens, at_seconds=list(seconds))
        return {TOKENS if mark.unit == "tokens" else seconds[mark.goal]: mark for mark in marks}


class Sweep(NamedTuple):
    """fvu: on validation activations over (kind, rate, mark), of the first seed; seconds: it took."""

    fvu: xr.DataArray
    seconds: float

    def chosen(self, kind: str, mark: str) -> float:
        return float(self.fvu.sel(kind=kind, mark=mark).idxmin("rate"))


def sweep(budget: Budget, at: Place) -> Sweep:
    """Every rate to every mark."""
    began, names = time.perf_counter(), [TOKENS, *budget.seconds]
    values = np.zeros((len(KINDS), len(RATES), len(names)))
    for i, j in progress(list(np.ndindex(len(KINDS), len(RATES))), desc="choosing rates", unit="training"):
        marks = budget.train(KINDS[i], RATES[j], at.stream, set(names))
        for n, name in enumerate(names):
            found = evaluate(marks[name].autoencoder, at.validation)
            values[i, j, n] = float(found.value.sel(metric="fvu"))
    coords = {"kind": list(KINDS), "rate": list(RATES), "mark": names}
    return Sweep(xr.DataArray(values, coords, ("kind", "rate", "mark")), time.perf_counter() - began)


def autoencoders_judged(
    budget: Budget, found: Sweep, at: Place, examples: Examples
) -> Iterator[tuple[tuple[str, str], Figures]]:
    """((kind, mark), figures), every mark at the rate that was best for it."""
    for kind in KINDS:
        marks: dict[str, Any] = {}
        names = [str(name) for name in found.fvu.mark.values]
        for rate in {found.chosen(kind, name) for name in names}:
            wanted = {name for name in names if found.chosen(kind, name) == rate}
            marks |= budget.train(kind, rate, at.stream, wanted)
        for name in names:
            mark = marks[name]
            yield (kind, name), judged(mark.autoencoder, at, examples, mark.seconds, mark.tokens)


def trained_atoms_judged(built: Built, budget: Budget, at: Place, examples: Examples) -> Iterator[tuple[str, Figures]]:
    """(mark, figures) of ITDA's atoms trained through their pursuit, at the best of the rates on validation data."""
    settings = {name: built.dictionary.settings[name] for name in ("size", "k", "unexplained")}
    best: dict[str, tuple[float, Any]] = {}
    for rate in ATOM_RATES:
        goals = {seconds - built.seconds: name for name, seconds in budget.seconds.items() if seconds > built.seconds}
        for mark in MPSAE(ITDA(**settings), rate=rate).train(at.stream, at_seconds=list(goals)):
            fvu = float(evaluate(mark.autoencoder, at.validation).value.sel(metric="fvu"))
            best[goals[mark.goal]] = min(
                best.get(goals[mark.goal], (np.inf, mark)), (fvu, mark), key=lambda one: one[0]
            )
    for name, (_, mark) in best.items():
        yield name, judged(mark.autoencoder, at, examples, mark.seconds + built.seconds, mark.tokens + built.read)


# -- layers, models, checkpoints


def compared(
    plan: Plan, model: Any, examples: Examples, seeding: str = "stream", store: Store | None = None
) -> list[layers.Layer]:
    """Activations of the common text and the dictionary of every layer."""
    builder, found = ITDA(k=STEPS, unexplained=LAYER_THRESHOLD, seeding=seeding), []
    bound = TrainedModel(model, examples, LanguageModelling(), store=store, quiet=True)
    for acts in observe(bound, plan.sites).values():
        found.append(layers.Layer(acts, builder.build(acts)))
    return found


def matching(own: Sequence[Sequence[layers.Layer]], published: Sequence[Sequence[layers.Layer]]) -> xr.Dataset:
    """Layer-matching accuracy of every measure, and of dictionaries seeded as the published code does it."""
    other = layers.match_layers(published, ["ITDA Jaccard"])
    named = other.assign_coords(measure=["ITDA Jaccard, published seeds"])
    return xr.concat([layers.match_layers(own), named], "measure", combine_attrs="override")


def converging(plan: Plan, trained: Trained, examples: Examples) -> xr.Dataset:
    """Every layer after every epoch against the last one; the model keeps the weights of the last."""
    by_epoch = {}
    for epoch, state in sorted(trained.states.items()):
        trained.model.load_state_dict(state)
        built = [layer.dictionary for layer in compared(plan, trained.model, examples)]
        by_epoch[epoch] = dict(zip(plan.sites, built))
    return layers.convergence(by_epoch)
