"""The headline claims of ITDA beside what small models show: tables, and one line a claim that says whether it holds.

    python -m benchmarks.decomposition claims            # models are kept in the cache for the next time
    python -m benchmarks.decomposition claims --quick    # two seeds, short training: what the tables look like

A claim holds, or does not, where the 95 % interval of the difference it is about leaves zero out; it is undecided
otherwise. Differences between codecs are paired by seed (Student's t), those between measures by pair of models.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from whence.cache import Store, progress
from whence.cache.display.interval import Interval
from whence.decomp import layers

from . import decomposition_claims as claims
from .decomposition_claims import KINDS, TOKENS, Built, Figures, Place, Sweep
from .decomposition_models import Plan, Trained, data, trained

QUICK = Plan(seeds=2, other_seeds=1, layers=3, width=48, other_width=32, epochs=2, middle=1, multiples=(1, 4))
ITDA, CONTROL = "ITDA", "random activations"
JACCARD = "ITDA Jaccard"
COMPARABLE = 0.01  # of the cross-entropy score
RIVALS = ("linear regression", "SVCCA", "linear CKA", "relative representations")

Seeds = Sequence[Mapping[str, Figures]]  # by codec, one of each seed


def say(text: str = "") -> None:
    print(text, flush=True)


# -- tables


def column(rows: Seeds, codec: str, figure: str) -> np.ndarray:
    """[seed] of one figure."""
    return np.array([getattr(row[codec], figure) for row in rows])


def show_cost(rows: Seeds, built: Sequence[Built], found: Sweep) -> None:
    say(f"\nOne layer, {claims.SIZE} atoms, {claims.STEPS} steps or latents; held-out passages; {len(rows)} seeds")
    say(f"{'':38s} {'seconds':>8s} {'read':>9s} {'L0':>5s} {'FVU':>7s} {'CE, zero abl.':>14s} {'CE, mean abl.':>14s}")
    for name in rows[0]:
        mean = Figures(*(float(column(rows, name, f).mean()) for f in Figures._fields))
        say(
            f"{name:38s} {mean.seconds:8.2f} {mean.rows:9.0f} {mean.l0:5.1f} {mean.fvu:7.4f}"
            f" {mean.zero:14.4f} {mean.mean:14.4f}"
        )
    calibration = np.mean([b.calibration for b in built])
    atoms = ", ".join(str(len(b.dictionary)) for b in built)
    rates = ", ".join(f"{r:g}" for r in claims.RATES)
    say(f"ITDA's atoms: {atoms}. Not in the times: choosing its threshold, {calibration:.1f} s a seed; choosing the")
    say(f"autoencoders' rates by validation FVU, {found.seconds:.0f} s in all, from {rates}:")
    for kind in KINDS:
        chosen = ", ".join(f"{mark} {found.chosen(kind, str(mark)):g}" for mark in found.fvu.mark.values)
        say(f"  {kind}: {chosen}")


def show_matching(found: xr.Dataset) -> None:
    trials, chance = found.attrs["trials"], found.attrs["chance"]
    say(f"\nLayer matching between different models: {trials} trials, chance {chance:.2f}")
    say(f"{'':34s} {'accuracy':>9s} {'95 % interval':>16s} {'with itself':>12s} {'counted together':>17s}")
    models = found.attrs["models"]
    for name in found.measure.values:
        row = found.sel(measure=name)
        interval = f"[{float(row.low):.2f}, {float(row.high):.2f}]"
        both = (float(row.accuracy) * (models - 1) + float(row.self_pairs)) / models
        say(f"{name:34s} {float(row.accuracy):9.2f} {interval:>16s} {float(row.self_pairs):12.2f} {both:17.2f}")


def show_convergence(found: xr.Dataset) -> None:
    say("\nJaccard index with the last epoch's dictionary: as it is / without seeds, chance corrected / by size alone")
    say(f"{'epoch':>6s} " + " ".join(f"{'layer ' + str(n):>15s}" for n in range(found.sizes["layer"])))
    for step in found.step.values[:-1]:
        cells = []
        for name in found.layer.values:
            at = found.sel(step=step, layer=name)
            parts = (at.jaccard, at.corrected_without_seeds, at.size_only)
            cells.append("/".join(f"{float(part):.2f}" for part in parts))
        say(f"{step:6d} " + " ".join(f"{cell:>15s}" for cell in cells))


# -- verdicts


class Verdict(NamedTuple):
    """holds: None where it is undecided."""

    claim: str
    paper: str
    here: str
    holds: bool | None

    def show(self) -> None:
        word = {True: "HOLDS", False: "DOES NOT HOLD", None: "UNDECIDED"}[self.holds]
        say(f"\n[{word}] {self.claim}\n    paper: {self.paper}\n    here:  {self.here}")


def over_seeds(values: np.ndarray) -> Interval:
    """The mean of a few paired differences, its interval by Student's t."""
    mean, many = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, many - 1) * np.std(values, ddof=1) / np.sqrt(many))
    return Interval(mean, mean - half, mean + half)


def sign(estimate: Interval) -> bool | None:
    """Whether it is above zero: None where its interval holds zero."""
    return True if estimate.low > 0 else False if estimate.high < 0 else None


def gap(rows: Seeds, one: str, other: str, figure: str) -> Interval:
    return over_seeds(column(rows, one, figure) - column(rows, other, figure))


def cost_verdicts(rows: Seeds, plan: Plan) -> list[Verdict]:
    """ITDA against the better of the two autoencoders at each mark."""
    names = [name for name in rows[0] if name.startswith(KINDS)]

    def rival(mark: str) -> str:
        return max((n for n in names if n.endswith(mark)), key=lambda n: column(rows, n, "zero").mean())

    def against(mark: str) -> tuple[str, Interval]:
        name = rival(mark)
        zero, mean = gap(rows, ITDA, name, "zero"), gap(rows, ITDA, name, "mean")
        return f"ITDA less the {name}: {zero} against zero ablation, {mean} against mean ablation", zero

    control, lost = gap(rows, ITDA, CONTROL, "zero"), gap(rows, CONTROL, ITDA, "fvu")
    refit, alone = gap(rows, f"{ITDA}, refit codes", ITDA, "mean"), column(rows, CONTROL, "zero").mean()
    against_mean = gap(rows, ITDA, CONTROL, "mean")
    (time_text, time_gap), (token_text, token_gap) = against("equal time"), against(TOKENS)
    last_text, last_gap = against(claims.times(plan.multiples[-1]))
    comparable = replace(last_gap, low=last_gap.low + COMPARABLE, high=last_gap.high + COMPARABLE)
    return [
        Verdict("ITDA beats an autoencoder that has had the same time.", "not measured", time_text, sign(time_gap)),
        Verdict("ITDA beats an autoencoder that has read as much.", "not measured", token_text, sign(token_gap)),
        Verdict(
            f"At 1/{plan.multiples[-1]:g} of an autoencoder's time, ITDA's cross-entropy score is at most "
            f"{COMPARABLE:g} below.",
            "1/15 to 1/60 of the time; Pythia-160m, L0 20/40/80: .90/.96/.98 against .97/.98/.99",
            last_text,
            sign(comparable),
        ),
        Verdict(
            "Greedy selection is better than as many random activations.",
            "no such control",
            f"score {control} higher against zero ablation, {against_mean} against mean ablation, FVU {lost} lower; "
            f"random activations alone score {alone:.3f}; least squares at the end adds {refit} (mean ablation)",
            sign(control),
        ),
    ]


def matching_verdicts(found: xr.Dataset) -> list[Verdict]:
    accuracy = {str(n): float(found.accuracy.sel(measure=n)) for n in found.measure.values}

    def less(one: str, other: str) -> Interval:
        pairs = found.by_pair
        return Interval.bootstrap(pairs.sel(measure=one).values - pairs.sel(measure=other).values)

    strongest = max(RIVALS, key=lambda n: accuracy[n])
    published, size = f"{JACCARD}, published seeds", "dictionary size alone"
    listed = ", ".join(f"{n} {accuracy[n]:.2f}" for n in RIVALS)
    best, seeding, control = less(JACCARD, strongest), less(published, strongest), less(JACCARD, size)
    neighbours, late = less(JACCARD, "mutual neighbours"), accuracy[f"{JACCARD} without seeds"]
    return [
        Verdict(
            "ITDA's Jaccard index matches layers better than regression, SVCCA, CKA and relative representations.",
            "GPT-2 small/medium, self pairs counted: regression .16/.07, SVCCA .50/.44, CKA .69/.61, relative .87/.78, "
            "ITDA .88/.89",
            f"ITDA {accuracy[JACCARD]:.2f}; {listed}; less the best of them {best}",
            sign(best),
        ),
        Verdict(
            "So it does with the seeds of the published code.",
            "seeded in the order of their values, which differs from model to model",
            f"{accuracy[published]:.2f}; less the best of the others {seeding}",
            sign(seeding),
        ),
        Verdict(
            "The index does it by which atoms are shared, not by how many there are.",
            "no such control",
            f"sizes alone match {accuracy[size]:.2f}, {control} less; without seeds {late:.2f}",
            sign(control),
        ),
        Verdict(
            "No cheaper measure that needs no dictionary does as well.",
            "nearest neighbours were not tried",
            f"mutual neighbours {accuracy['mutual neighbours']:.2f}; ITDA less them {neighbours}",
            sign(neighbours),
        ),
    ]


def model_verdict(found: xr.Dataset, widths: Sequence[int]) -> Verdict:
    """Pairs of one width against pairs of two."""
    one, other = np.tril_indices(len(widths), -1)
    same = np.asarray(widths)[one] == np.asarray(widths)[other]
    index, size = found.jaccard.values[one, other], found.size_only.values[one, other]
    return Verdict(
        "Models of one architecture are more alike than models of two.",
        "union over layers .56 to .59 against .46 to .47",
        f"without seeds {index[same].min():.2f} to {index[same].max():.2f} within a width ({same.sum()} pairs), "
        f"{index[~same].min():.2f} to {index[~same].max():.2f} across ({(~same).sum()}); sizes alone "
        f"{size[same].mean():.2f} and {size[~same].mean():.2f}",
        bool(index[same].min() > index[~same].max()) if same.any() else None,
    )


def convergence_verdict(found: xr.Dataset) -> Verdict:
    late = found.isel(step=-2)
    order = stats.spearmanr(np.arange(found.sizes["layer"]), late.corrected_without_seeds.values).statistic
    with_seeds = stats.spearmanr(np.arange(found.sizes["layer"]), late.jaccard.values).statistic
    return Verdict(
        "Early layers settle first.",
        "Pythia: only the first two layers come near 1 in the last third of training",
        f"an epoch before the end, rank correlation of the index with depth {with_seeds:.2f}, without seeds and chance "
        f"{order:.2f}",
        True if order <= -0.5 else False if order >= 0 else None,
    )


# -- all of it


def named(figures: Mapping[tuple[str, str], Figures]) -> dict[str, Figures]:
    return {f"{kind} autoencoder, {mark}": f for (kind, mark), f in figures.items()}


def quality(plan: Plan, models: Sequence[Trained], store: Store) -> list[Verdict]:
    read = data()
    places: list[Place] = [claims.place(plan, model, read, store) for model in models]
    built = [claims.build(at) for at in places]
    budget = claims.Budget.of(plan, built)
    found = claims.sweep(budget, places[0])
    rows: list[dict[str, Figures]] = []
    for at, made in progress(list(zip(places, built)), desc="training and judging", unit="seed"):
        autoencoders = named(dict(claims.autoencoders_judged(budget, found, at, read.held_out)))
        rows.append({**dict(claims.dictionaries_judged(made, at, read.held_out)), **autoencoders})
    show_cost(rows, built, found)
    return cost_verdicts(rows, plan)


def likeness(plan: Plan, models: Sequence[Trained], others: Sequence[Trained], store: Store) -> list[Verdict]:
    text = data().common
    own = [claims.compared(plan, m.model, text, store=store) for m in models]
    published = [claims.compared(plan, m.model, text, "lexicographic", store) for m in models]
    found = claims.matching(own, published)
    show_matching(found)
    everyone = [*own, *(claims.compared(plan, m.model, text, store=store) for m in others)]
    widths = [plan.width] * len(models) + [plan.other_width] * len(others)
    unions = {str(n): [layer.dictionary for layer in model] for n, model in enumerate(everyone)}
    curves = claims.converging(plan, models[0], text)
    show_convergence(curves)
    return [
        *matching_verdicts(found),
        model_verdict(layers.model_similarity(unions), widths),
        convergence_verdict(curves),
    ]


def main(quick: bool = False, store: Store | None = None) -> None:
    plan, kept, began, read = QUICK if quick else Plan(), store or Store(), time.monotonic(), data()
    models = [trained(plan, plan.width, seed, read, kept) for seed in range(plan.seeds)]
    others = [trained(plan, plan.other_width, seed, read, kept) for seed in range(plan.other_seeds)]
    for width, group in ((plan.width, models), (plan.other_width, others)):
        losses = ", ".join(f"{m.loss:.2f}" for m in group)
        say(f"{plan.layers} layers of width {width}: {losses} nats a character on held-out passages")
    say(f"{time.monotonic() - began:.0f} s until the models were there")
    for verdict in [*quality(plan, models, kept), *likeness(plan, models, others, kept)]:
        verdict.show()
    say("\nNot measured here: automatic interpretability scores, and models of billions of parameters.")
    say(f"{time.monotonic() - began:.0f} s in all")
