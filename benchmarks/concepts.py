"""Influence on a concept, proved by removal: which training passages does a concept of the model depend on?

A concept is an atom of an ITDA dictionary, which is an activation at one place of one training text, or the direction
that separates a topic's passages from the rest. Training passages are ranked by what the concept's mean activation over
held-out passages depends on; the first few percent are left out; the model is fine-tuned again; the concept is measured
on other held-out passages. Beside it: the gradient product in place of EK-FAC; influence on the loss of the same
passages; the cheap shortcut, the concept's activation on the training passages themselves; words in common (BM25); and
random removals, in whose standard deviations every change is given. "others" is how far all other concepts move, "loss"
how much the held-out loss rises beyond random removals. Intervals are 95 % bootstraps over concepts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .harness import Benchmark, Run

bench = Benchmark(__file__, __doc__, example="--atoms 8 --probes 4")
CONCEPT, LOSS, SHORTCUT = "EK-FAC, on the concept", "EK-FAC, on the loss", "activation on the passage"
AT = "blocks.1"
HELD, ACTIVE = 128, 16  # held-out passages; those where a concept is most active, half to rank and half to measure


def atom_readouts(trained: Any, held: Any, count: int) -> dict[str, Any]:
    """Atoms that are active at 1 to 20 % of the held-out positions, the most active of them, named by their texts."""
    from whence import decomp
    from whence.corpora import language_reference

    rows = decomp.observe(trained, AT)
    words = language_reference(length=32, vocabulary=512).vocabulary
    assert words is not None
    dictionary = decomp.ITDA(size=256, k=8).build(rows).with_text(trained.train, words.decode)
    code = dictionary.encode(decomp.observe(trained, AT, held).whole().x)
    chosen = np.asarray(code.indices)[np.asarray(code.values) != 0]
    uses = np.bincount(chosen, minlength=len(dictionary)) / len(code.indices)
    order = [int(a) for a in np.argsort(-uses, kind="stable") if 0.01 <= uses[a] <= 0.2][:count]
    texts = {a: dictionary.text[a] for a in order}
    return {f"…{text.before[-16:]}[{text.token}]": decomp.Coefficient(dictionary, a) for a, text in texts.items()}


def probe_readouts(trained: Any, held: Any, count: int) -> dict[str, Any]:
    """Directions from the mean of all passages to that of a topic's, for the topics with most passages."""
    from whence import attrib, decomp

    rows = decomp.observe(trained, AT).whole()
    topics = np.asarray(trained.train.about["topic"])
    x = np.asarray(rows.x).reshape(len(topics), -1, rows.x.shape[-1]).mean(1)
    named, uses = np.unique(topics, return_counts=True)
    found = {}
    for topic in named[np.argsort(-uses, kind="stable")][:count]:
        gap = x[topics == topic].mean(0) - x.mean(0)
        found[f"topic {topic}"] = attrib.Direction(gap / np.linalg.norm(gap), x.mean(0))
    return found


def rankings(trained: Any, factors: Any, product: Any, task: Any, queries: Any) -> dict[str, np.ndarray]:
    """Every way to rank the training passages for one concept: [n] each."""
    from whence import attrib

    with torch.no_grad():
        everything = trained.batch(trained.train, np.arange(len(trained.train)))
        own = task.measurement(trained.model, everything).numpy()
    return {
        CONCEPT: factors.measuring(task).score(queries).values.mean(0),
        "gradient product, on the concept": product.measuring(task).score(queries).values.mean(0),
        LOSS: factors.score(queries).values.mean(0),
        SHORTCUT: own,
        "words in common": attrib.BM25().fit(trained).score(queries).values.mean(0),
    }


@bench.case(quick={"atoms": 2, "probes": 1, "random": 4, "train": 64})
def removal(run: Run, atoms: int = 8, probes: int = 4, share: float = 0.05, random: int = 24, train: int = 160) -> None:
    """Remove the passages that a concept depends on, retrain, and measure the concept and the rest.

    Args:
        atoms: of the dictionary.
        probes: directions of topics.
        share: of the training passages that is left out.
        random: random removals.
        train: passages that the model is fine-tuned on.
    """
    from whence import attrib
    from whence.cache.display.interval import Interval
    from whence.problems.finetuned import finetuned_problem

    problem = finetuned_problem("short, eps 1e-5", train=train, queries=HELD, store=run.store)
    trained, held = problem.trained(run.store), problem.queries
    factors, product = attrib.EKFAC().fit(trained), attrib.Identity().fit(trained)
    readouts = atom_readouts(trained, held, atoms) | probe_readouts(trained, held, probes)
    tasks = {
        name: attrib.ActivationMeasurement(trained.task, at=AT, readout=readout) for name, readout in readouts.items()
    }
    batch, count = trained.batch(held, np.arange(HELD)), max(1, round(share * train))
    kept, places = [np.ones(train, bool)], {}
    rng = np.random.default_rng(0)
    kept += [~np.isin(np.arange(train), rng.choice(train, count, replace=False)) for _ in range(random)]
    measured: dict[str, np.ndarray] = {}
    for name, task in tasks.items():
        with torch.no_grad():
            active = np.argsort(-task.measurement(trained.model, batch).numpy(), kind="stable")[:ACTIVE]
        measured[name] = active[1::2]
        for method, scores in rankings(trained, factors, product, task, held.select(active[::2])).items():
            places[name, method] = len(kept)
            kept.append(~np.isin(np.arange(train), np.argsort(-scores, kind="stable")[:count]))
    bank = replace(problem.bank(), keep=("weights",))
    replicas = bank.replicas(bank.run(np.stack(kept), np.zeros(len(kept), np.int64), run.store, quiet=True))
    values, losses = [], []
    with torch.no_grad():
        for e in range(len(replicas)):
            model = replicas.module(e).eval()
            every = {name: task.measurement(model, batch).numpy() for name, task in tasks.items()}
            values.append([every[name][measured[name]].mean() for name in tasks])
            losses.append(float((trained.task.loss(model, batch) / trained.task.positions(batch).sum(1)).mean()))
    moved, rise = changes(np.array(values), np.array(losses), random)
    report(run, tasks, places, moved, rise, Interval, f"{count} of {train} passages left out; {problem.recipe}")


def changes(values: np.ndarray, losses: np.ndarray, random: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [e c] and losses [e] of models of which the first 1 + random are trained on everything and without random
    sets, as changes from the random ones' mean; those of values in their standard deviations."""
    by_chance = values[1 : 1 + random]
    moved = (values - by_chance.mean(0)) / by_chance.std(0, ddof=1)
    return moved, losses - losses[1 : 1 + random].mean()


def report(
    run: Run, tasks: Mapping[str, Any], places: Mapping[tuple[str, str], int], moved: np.ndarray, rise: np.ndarray,
    interval: Any, title: str,
) -> None:  # fmt: skip
    methods, columns = list(dict.fromkeys(method for _, method in places)), {name: c for c, name in enumerate(tasks)}
    falls = {m: np.array([-moved[places[name, m], c] for name, c in columns.items()]) for m in methods}
    heads = ("the concept falls, sd", "others move, sd", "loss rises, 0.001 nats a token")
    table = run.table("ranked by", *heads, title=title)
    for m in methods:
        others = [np.abs(np.delete(moved[places[name, m]], c)).mean() for name, c in columns.items()]
        loss = np.array([rise[places[name, m]] for name in columns]) * 1e3
        cells = (interval.bootstrap(np.asarray(v), resamples=2000) for v in (falls[m], others, loss))
        table.row(m, *(format(cell, ".2f") for cell in cells))
    each = run.table("concept", *(f"{m}|.1f" for m in methods), title="Falls by concept, sd of random removals")
    for name, c in columns.items():
        each.row(name, *(falls[m][c] for m in methods))
    for other, versus in ((None, "a random removal"), (LOSS, "influence on the loss"), (SHORTCUT, "its activation")):
        gap = interval.bootstrap(falls[CONCEPT] - (0.0 if other is None else falls[other]), resamples=2000)
        run.claim_above(f"removal by influence on the concept lowers it more than {versus}", gap, ".2f", "sd")


if __name__ == "__main__":
    bench.main()
