"""The headline claims of ITDA beside what small models show: tables, and for each claim whether it holds.

A claim holds, or does not, if the 95 % interval of the difference that it is about excludes zero; it is undecided
otherwise. Differences between codecs are paired by seed (Student's t), those between measures by pair of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from whence.cache.display.interval import Interval
from whence.cache.jobs.progress import progress
from whence.decomp import layers

from . import decomposition_claims as claims
from .decomposition_claims import KINDS, TOKENS, Built, Figures, Place, Sweep
from .decomposition_models import Plan, Trained, data, trained
from .harness import Run

QUICK = Plan(seeds=2, other_seeds=1, layers=3, width=48, other_width=32, epochs=2, middle=1, multiples=(1, 4))
ITDA, CONTROL = "ITDA", "random activations"
JACCARD = "ITDA Jaccard"
COMPARABLE = 0.01  # of the cross-entropy score
RIVALS = ("linear regression", "SVCCA", "linear CKA", "relative representations")

Seeds = Sequence[Mapping[str, Figures]]  # by codec, one of each seed


# -- tables


def column(rows: Seeds, codec: str, figure: str) -> np.ndarray:
    """[seed] of one figure."""
    return np.array([getattr(row[codec], figure) for row in rows])


def show_cost(run: Run, rows: Seeds, built: Sequence[Built], found: Sweep) -> None:
    title = f"One layer, {claims.SIZE} atoms, {claims.STEPS} steps or latents; held-out passages; {len(rows)} seeds"
    table = run.table("codec", "seconds|.2f", "read|.0f", "L0|.1f", "FVU|.4f", "CE, zero abl.|.4f", "CE, mean abl.|.4f",
                      title=title)  # fmt: skip
    for name in rows[0]:
        table.row(name, *(column(rows, name, f).mean() for f in ("seconds", "rows", "l0", "fvu", "zero", "mean")))
    calibration = np.mean([b.calibration for b in built])
    atoms = ", ".join(str(len(b.dictionary)) for b in built)
    rates = ", ".join(f"{r:g}" for r in claims.RATES)
    run.say(f"\nITDA's atoms: {atoms}. Not in the times: choosing its threshold, {calibration:.1f} s per seed;")
    run.say(f"choosing the autoencoders' rates by validation FVU, {found.seconds:.0f} s in all, from {rates}:\n")
    for kind in KINDS:
        chosen = ", ".join(f"{mark} {found.chosen(kind, str(mark)):g}" for mark in found.fvu.mark.values)
        run.say(f"- {kind}: {chosen}")


def show_matching(run: Run, found: xr.Dataset) -> None:
    trials, chance, models = found.attrs["trials"], found.attrs["chance"], found.attrs["models"]
    title = f"Layer matching between different models: {trials} trials, chance {chance:.2f}"
    table = run.table(
        "measure", "accuracy|.2f", "95 % interval", "with itself|.2f", "counted together|.2f", title=title
    )
    for name in found.measure.values:
        row = found.sel(measure=name)
        accuracy, self_pairs = float(row.accuracy), float(row.self_pairs)
        interval = f"[{float(row.low):.2f}, {float(row.high):.2f}]"
        table.row(name, accuracy, interval, self_pairs, (accuracy * (models - 1) + self_pairs) / models)


def show_convergence(run: Run, found: xr.Dataset) -> None:
    title = "Jaccard index with the last epoch's dictionary: plain / without seeds, chance corrected / by size alone"
    table = run.table("epoch", *(f"layer {n}" for n in range(found.sizes["layer"])), title=title)
    for step in found.step.values[:-1]:
        cells = []
        for name in found.layer.values:
            at = found.sel(step=step, layer=name)
            parts = (at.jaccard, at.corrected_without_seeds, at.size_only)
            cells.append(" / ".join(f"{float(part):.2f}" for part in parts))
        table.row(int(step), *cells)


# -- verdicts


class Verdict(NamedTuple):
    """holds: None if it is undecided."""

    claim: str
    paper: str
    here: str
    holds: bool | None


def over_seeds(values: np.ndarray) -> Interval:
    """The mean of a few paired differences, its interval by Student's t."""
    mean, many = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, many - 1) * np.std(values, ddof=1) / np.sqrt(many))
    return Interval(mean, mean - half, mean + half)


def sign(estimate: Interval) -> bool | None:
    """Whether it is above zero: None if its interval contains zero."""
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
        Verdict("ITDA beats an autoencoder trained for the same time.", "not measured", time_text, sign(time_gap)),
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


def quality(run: Run, plan: Plan, models: Sequence[Trained]) -> list[Verdict]:
    read = data()
    places: list[Place] = [claims.place(plan, model, read, run.store) for model in models]
    built = [claims.build(at) for at in places]
    budget = claims.Budget.of(plan, built)
    found = claims.sweep(budget, places[0])
    rows: list[dict[str, Figures]] = []
    for at, one in progress(list(zip(places, built)), desc="training and judging", unit="seed"):
        autoencoders = named(dict(claims.autoencoders_judged(budget, found, at, read.held_out)))
        rows.append({**dict(claims.dictionaries_judged(one, at, read.held_out)), **autoencoders})
    show_cost(run, rows, built, found)
    return cost_verdicts(rows, plan)


def likeness(run: Run, plan: Plan, models: Sequence[Trained], others: Sequence[Trained]) -> list[Verdict]:
    text, store = data().common, run.store
    own = [claims.compared(plan, m.model, text, store=store) for m in models]
    published = [claims.compared(plan, m.model, text, "lexicographic", store) for m in models]
    found = claims.matching(own, published)
    show_matching(run, found)
    everyone = [*own, *(claims.compared(plan, m.model, text, store=store) for m in others)]
    widths = [plan.width] * len(models) + [plan.other_width] * len(others)
    unions = {str(n): [layer.dictionary for layer in model] for n, model in enumerate(everyone)}
    curves = claims.converging(plan, models[0], text)
    show_convergence(run, curves)
    alike, settling = model_verdict(layers.model_similarity(unions), widths), convergence_verdict(curves)
    return [*matching_verdicts(found), alike, settling]


def show(run: Run, quick: bool) -> None:
    plan, read = QUICK if quick else Plan(), data()
    models = [trained(plan, plan.width, seed, read, run.store) for seed in range(plan.seeds)]
    others = [trained(plan, plan.other_width, seed, read, run.store) for seed in range(plan.other_seeds)]
    for width, group in ((plan.width, models), (plan.other_width, others)):
        losses = ", ".join(f"{m.loss:.2f}" for m in group)
        run.say(f"{plan.layers} layers of width {width}: {losses} nats per character on held-out passages")
    run.say(f"{run.seconds:.0f} s until the models were trained or loaded")
    verdicts = [*quality(run, plan, models), *likeness(run, plan, models, others)]
    for verdict in verdicts:
        run.say()
        run.claim(verdict.claim, verdict.holds, f"paper: {verdict.paper}", f"here:  {verdict.here}")
    run.say("\nNot measured here: automatic interpretability scores, and models of billions of parameters.")
    run.say(f"{run.seconds:.0f} s in all")
