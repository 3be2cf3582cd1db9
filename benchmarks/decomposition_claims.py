"""The headline claims of ITDA (Leask et al. 2025, arXiv 2505.17769) beside what small models show, with controls.

Transformers are trained here on the Python reference, four seeds of one width and two of another, with a checkpoint
after every epoch. Everything is judged on held-out passages. A claim that does not hold is printed as such.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import nn

from cache import Examples, LanguageModelling
from decomp import ITDA, SAE, Activations, Dictionary, Random, calibrate, intervals, layers, observe
from decomp.evaluate import baselines, evaluate, loss_recovered

STEPS = 8  # pursuit steps and latents of every codec
SIZE = 1024
MATCH_ROWS = 12_000
LAYER_THRESHOLD = 0.2
COMPARABLE = 0.01  # of the cross-entropy score


@dataclass(frozen=True)
class Plan:
    """How much is run. seconds: an autoencoder's training; widths: of the models, the first is the main one."""

    seeds: int = 4
    layers: int = 5
    epochs: int = 6
    width: int = 96
    other_width: int = 48
    seconds: float = 10.0
    middle: int = 3  # the layer whose dictionaries are judged


class Trained(NamedTuple):
    """One model and copies of it along the way: epoch -> state."""

    model: nn.Module
    states: Mapping[int, Mapping[str, Any]]
    loss: float


class Data(NamedTuple):
    train: Examples
    held_out: Examples


def data() -> Data:
    """Nine tenths of the reference's passages to train on and build from, the rest to judge by."""
    from whence.corpora import language_reference

    examples = language_reference().train
    order = np.random.default_rng(0).permutation(len(examples))
    cut = len(examples) // 10
    return Data(examples.select(np.sort(order[cut:])), examples.select(np.sort(order[:cut])))


def train(plan: Plan, width: int, seed: int, examples: Examples) -> Trained:
    """One epoch at a time, each with its own warm-up and cosine, so that every epoch ends in a usable model."""
    from whence.language_model import Shape, Training, new_model, train_language_model

    model = new_model(Shape(plan.layers, width, 4), seed)
    states = {}
    for epoch in range(1, plan.epochs + 1):
        curve = train_language_model(
            model, examples, Training(1, seed=1000 * seed + epoch), desc=f"width {width} seed {seed} epoch {epoch}"
        )
        states[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Trained(model, states, curve.losses[-1])


def sites(plan: Plan) -> list[str]:
    return [f"blocks.{n}.hook_out" for n in range(plan.layers)]


# -- cost and quality


def judged(codec: Any, k: int, trained: Trained, held: Activations, examples: Examples, base: Any) -> dict[str, float]:
    """FVU on held-out activations and the share of the loss recovered against zero and mean ablation."""
    fvu = float(evaluate(codec, held, k=k).value.sel(metric="fvu"))
    task, site = LanguageModelling(), held.origin.site
    loss = loss_recovered(codec, trained.model, task, examples, site, k=k, base=base).value
    return {
        "fvu": fvu,
        "ce": float(loss.sel(metric="recovered_zero")),
        "ce_mean": float(loss.sel(metric="recovered_mean")),
    }


def cost(plan: Plan, trained: Trained, data: Data) -> Iterator[tuple[str, dict[str, float]]]:
    """(codec, figures) at one layer of one model; seconds and activations read are among the figures."""
    site = f"blocks.{plan.middle}.hook_out"
    stream = observe(trained.model, data.train, [site])[site].without(positions=[0])
    held = observe(trained.model, data.held_out, [site])[site].without(positions=[0])
    mean = stream.whole().x.mean(axis=0)
    base = baselines(trained.model, LanguageModelling(), data.held_out, site, mean)
    pilot = stream.select(np.arange(min(len(stream), 8192)))
    found = calibrate(ITDA(size=SIZE, k=STEPS), pilot, size=SIZE, rows=int(0.8 * len(stream)), rounds=6)
    found.builder.build(stream)  # compiles
    began = time.perf_counter()
    built = found.builder.build(stream)
    spent = time.perf_counter() - began
    read = built.settings["rows_read"]

    def figures(codec: Any, seconds: float, rows: float) -> dict[str, float]:
        return {
            **judged(codec, STEPS, trained, held, data.held_out, base),
            "seconds": seconds,
            "rows": rows,
            "atoms": len(codec),
        }

    yield "ITDA", figures(built, spent, read)
    yield "ITDA, refit codes", figures(replace(built, pursuit="refit"), spent, read)
    began = time.perf_counter()
    control = Random(len(built), k=STEPS).build(stream)
    yield "random activations (control)", figures(control, time.perf_counter() - began, len(stream))
    for kind in ("topk", "batchtopk"):
        marks = SAE(SIZE, k=STEPS, kind=kind, rate=3e-3).train(
            stream, at_tokens=[read], at_seconds=[spent, 10 * spent, plan.seconds]
        )
        names = {read: "equal activations", spent: "equal time", 10 * spent: "10 times the time"}
        for mark in marks:
            name = names.get(mark.goal, f"{plan.seconds:g} s")
            yield f"{kind} autoencoder, {name}", figures(mark.autoencoder, mark.seconds, mark.tokens)


# -- layers, models, checkpoints


def dictionaries(
    plan: Plan, model: nn.Module, examples: Examples, seeding: str = "stream"
) -> dict[str, tuple[Activations, Dictionary]]:
    """Activations of the common text and the dictionary of every layer."""
    builder = ITDA(k=STEPS, unexplained=LAYER_THRESHOLD, seeding=seeding)
    found = {}
    for site, acts in observe(model, examples, sites(plan)).items():
        common = acts.select(np.arange(min(MATCH_ROWS, len(acts))))
        found[site] = (common, builder.build(common))
    return found


def matching(plan: Plan, models: Sequence[Trained], examples: Examples) -> xr.Dataset:
    """Layer-matching accuracy of every measure, and of dictionaries seeded as the published code does it."""
    own = [[layers.Layer(*pair) for pair in dictionaries(plan, m.model, examples).values()] for m in models]
    published = [
        [layers.Layer(*pair) for pair in dictionaries(plan, m.model, examples, "lexicographic").values()]
        for m in models
    ]
    found = layers.match_layers(own)
    other = layers.match_layers(published, ["ITDA Jaccard"])
    return xr.concat([found, other.assign_coords(measure=["ITDA Jaccard, published seeds"])], "measure")


def converging(plan: Plan, trained: Trained, examples: Examples) -> xr.Dataset:
    """Every layer at every epoch against the last one."""
    by_epoch = {}
    for epoch, state in trained.states.items():
        trained.model.load_state_dict(state)
        by_epoch[epoch] = {site: built for site, (_, built) in dictionaries(plan, trained.model, examples).items()}
    return layers.convergence(by_epoch)


# -- the table


def say(text: str = "") -> None:
    print(text, flush=True)


def show_cost(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, np.ndarray]]:
    """Prints means over seeds; returns the figures by codec, [seed] each."""
    names = list(rows[0])
    figures = {n: {f: np.array([r[n][f] for r in rows]) for f in rows[0][n]} for n in names}
    say(f"\nCost and quality at one layer: {SIZE} atoms, {STEPS} steps or latents, means over {len(rows)} seeds")
    say(f"{'':36s} {'seconds':>8s} {'read':>9s} {'FVU':>7s} {'CE, zero abl.':>14s} {'CE, mean abl.':>14s}")
    for name, f in figures.items():
        say(
            f"{name:36s} {f['seconds'].mean():8.2f} {f['rows'].mean():9.0f} {f['fvu'].mean():7.4f}"
            f" {f['ce'].mean():14.4f} {f['ce_mean'].mean():14.4f}"
        )
    return figures


def show_matching(found: xr.Dataset) -> None:
    trials, chance = found.attrs["trials"], found.attrs["chance"]
    say(f"\nLayer matching, pairs of different models: {trials} trials, chance {chance:.2f}")
    say(f"{'':36s} {'accuracy':>9s} {'95 % interval':>16s} {'self pairs':>11s}")
    for name in found.measure.values:
        row = found.sel(measure=name)
        interval = f"[{float(row.low):.2f}, {float(row.high):.2f}]"
        say(f"{name:36s} {float(row.accuracy):9.2f} {interval:>16s} {float(row.self_pairs):11.2f}")


def show_convergence(found: xr.Dataset) -> None:
    say("\nJaccard index with the last epoch's dictionary (with seeds / without, chance corrected / size alone)")
    say(f"{'epoch':>6s} " + " ".join(f"{str(name).split('.')[1]:>20s}" for name in found.layer.values))
    for step in found.step.values[:-1]:
        cells = []
        for name in found.layer.values:
            at = found.sel(step=step, layer=name)
            cells.append(
                f"{float(at.jaccard):.2f}/{float(at.corrected_without_seeds):.2f}/{float(at.size_only):.2f}".rjust(20)
            )
        say(f"{step:6d} " + " ".join(cells))


def verdict(claim: str, measured: str, holds: bool | None) -> None:
    word = {True: "HOLDS", False: "DOES NOT HOLD", None: "UNDECIDED"}[holds]
    say(f"\n[{word}] {claim}\n    {measured}")


def above(gain: np.ndarray) -> bool | None:
    """Whether a paired difference over seeds is above zero: None where its interval holds zero."""
    estimate = intervals.mean(gain)
    return True if estimate.low > 0 else False if estimate.high < 0 else None


def cost_verdicts(figures: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    itda, control = figures["ITDA"], figures["random activations (control)"]
    for kind in ("topk", "batchtopk"):
        names = sorted((n for n in figures if n.startswith(kind)), key=lambda n: figures[n]["seconds"].mean())
        at = {n: (figures[n]["seconds"].mean(), figures[n]["ce"].mean()) for n in names}
        late = figures[names[-1]]
        times = late["seconds"] / itda["seconds"]
        listed = ", ".join(f"{ce:.3f} after {seconds:.2f} s" for seconds, ce in at.values())
        verdict(
            f"A dictionary costs about 1 % of a trained {kind} autoencoder at a comparable cross-entropy score.",
            f"ITDA {itda['ce'].mean():.3f} after {itda['seconds'].mean():.2f} s; {kind} {listed}. "
            f"With {times.mean():.0f} times the time the autoencoder's score less ITDA's is "
            f"{intervals.mean(late['ce'] - itda['ce'])}.",
            above(itda["ce"] - late["ce"] + COMPARABLE) if times.mean() >= 10 else None,
        )
    verdict(
        "Greedy selection is what makes the dictionary good (no control in the paper): ITDA against as many random "
        "activations.",
        f"CE recovered {intervals.mean(itda['ce'] - control['ce'])} higher, FVU "
        f"{intervals.mean(control['fvu'] - itda['fvu'])} lower; random alone scores {control['ce'].mean():.3f}.",
        above(itda["ce"] - control["ce"]),
    )


def matching_verdicts(found: xr.Dataset) -> None:
    accuracy = {str(n): float(found.accuracy.sel(measure=n)) for n in found.measure.values}
    high = {str(n): float(found.high.sel(measure=n)) for n in found.measure.values}
    best = accuracy["ITDA Jaccard"]
    rivals = ["linear regression", "SVCCA", "linear CKA", "relative representations"]
    listed = ", ".join(f"{n} {accuracy[n]:.2f}" for n in rivals)
    strongest = max(rivals, key=lambda n: accuracy[n])
    verdict(
        "ITDA's Jaccard index matches layers best (paper, GPT-2 small/medium, self pairs counted: regression .16/.07, "
        "SVCCA .50/.44, CKA .69/.61, relative .87/.78, ITDA .88/.89).",
        f"ITDA {best:.2f}; {listed}. With the published seeding {accuracy['ITDA Jaccard, published seeds']:.2f}.",
        True if best > high[strongest] else False if accuracy[strongest] > high["ITDA Jaccard"] else None,
    )
    verdict(
        "The index sees which atoms two dictionaries share (no control in the paper).",
        f"The sizes of the dictionaries alone match {accuracy['dictionary size alone']:.2f}; without seeds "
        f"{accuracy['ITDA Jaccard without seeds']:.2f}, mutual neighbours {accuracy['mutual neighbours']:.2f}.",
        bool(best > high["dictionary size alone"]),
    )


def other_verdicts(curves: xr.Dataset, found: xr.Dataset, kinds: Sequence[str]) -> None:
    last = curves.isel(step=-2).corrected_without_seeds.values
    order = np.corrcoef(np.arange(len(last)), last)[0, 1]
    verdict(
        "Early layers settle first.",
        f"An epoch before the end the index without seeds, chance corrected, is {last[0]:.2f} at the first layer and "
        f"{last[-1]:.2f} at the last; its correlation with depth is {order:.2f}.",
        bool(order < -0.5),
    )
    same, different, sizes = [], [], []
    for i in range(len(kinds)):
        for j in range(i):
            value = float(found.jaccard[i, j])
            (same if kinds[i] == kinds[j] else different).append(value)
            sizes.append((kinds[i] == kinds[j], float(found.size_only[i, j])))
    size_gap = np.mean([s for k, s in sizes if k]) - np.mean([s for k, s in sizes if not k])
    verdict(
        "Models of one architecture are more alike than others (paper: .56-.59 against .46-.47).",
        f"Union over layers, without seeds: {np.mean(same):.2f} within a width ({len(same)} pairs), "
        f"{np.mean(different):.2f} across ({len(different)} pairs); the size-only control differs by {size_gap:+.2f}.",
        bool(min(same) > max(different)),
    )


def main(quick: bool = False) -> None:
    plan = Plan(seeds=2, layers=4, epochs=2, seconds=3, middle=2) if quick else Plan()
    began, given = time.monotonic(), data()
    models = [train(plan, plan.width, seed, given.train) for seed in range(plan.seeds)]
    others = [train(plan, plan.other_width, seed, given.train) for seed in range(2)]
    loss = ", ".join(f"{m.loss:.2f}" for m in models)
    say(f"{plan.layers} layers of width {plan.width}, last epoch's loss in nats a token: {loss}")
    rows = [dict(cost(plan, model, given)) for model in models]
    figures = show_cost(rows)
    found = matching(plan, models, given.train)
    show_matching(found)
    curves = converging(plan, models[0], given.train)
    show_convergence(curves)
    everyone = {f"width {plan.width}, seed {n}": m for n, m in enumerate(models)}
    everyone |= {f"width {plan.other_width}, seed {n}": m for n, m in enumerate(others)}
    built = {name: [d for _, d in dictionaries(plan, m.model, given.train).values()] for name, m in everyone.items()}
    cost_verdicts(figures)
    matching_verdicts(found)
    other_verdicts(curves, layers.model_similarity(built), [name.split(",")[0] for name in everyone])
    say("\nNot measured here: automatic interpretability scores, and models of billions of parameters.")
    say(f"{time.monotonic() - began:.0f} s in all")
