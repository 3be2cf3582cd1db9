"""Attribution methods, every question that their fits answer, and stored gradients."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from whence.attrib import ActivationMeasurement, Damping, Direction, load
from whence.attrib import methods as m
from whence.attrib.index import Sketch, build_index
from whence.attrib.merge import Basis, factors_of, merge, moment_sums, square_sums
from whence.attrib.methods.ekfac import Bases
from whence.attrib.scoring.heads import find_heads
from whence.cache import (
    SGD,
    Classification,
    Examples,
    LanguageModelling,
    Recipe,
    Regression,
    Store,
    Task,
    TrainedModel,
    find_sites,
    gradients,
)  # fmt: skip
from whence.cache.model.bridge import to_jax
from whence.cache.retrain.trajectory import Trajectory
from whence.decomp import Coefficient

from . import models as given
from .decomposition import by_hand
from .registry import ARTEFACTS, HERE, READERS, Made, artefact, last, only, stored

ALL_KINDS = ("linear", "conv", "embedding", "norm")


class Problem(NamedTuple):
    """What is attributed, to which queries. start: an earlier model of the same shape."""

    trained: TrainedModel
    queries: Examples
    start: nn.Module


REPLAYED = Recipe(epochs=6, batch_size=8, optimiser=SGD(0.125, momentum=0.5), batches="shared")


def replayed_weights() -> dict[str, np.ndarray]:
    """Where training from net(1) ends; kept in inputs.npz, since its last bits differ from machine to machine."""
    start = TrainedModel(given.net(1), given.train(16), Classification(), quiet=True)
    end = Trajectory.record(start, REPLAYED, 0).trained()
    return {name: p.detach().numpy() for name, p in end.named_parameters()}


@cache
def problem(name: str) -> Problem:
    if name == "replayed":
        model = given.net(1)
        with np.load(HERE / "inputs.npz") as file:
            model.load_state_dict({n: torch.from_numpy(file[n]) for n in file.files})
    else:
        model = {
            "classifier": given.net, "reader": given.reader, "regressor": given.regressor,
            "transformer": lambda seed: given.transformer(), "convolutions": lambda seed: given.convolutions(),
        }[name](0)  # fmt: skip
    points: tuple[Task, Examples, Examples] = (Classification(), given.train(16), given.held_out(3))
    text: tuple[Task, Examples, Examples] = (LanguageModelling(), given.texts(), given.questions())
    task, train, queries = {
        "replayed": points, "classifier": points, "reader": text, "transformer": text,
        "regressor": (Regression(), given.pairs(), given.pairs().select([1, 2])),
        "convolutions": (Classification(), given.pictures(), given.pictures().select([1, 5])),
    }[name]  # fmt: skip
    kinds = ALL_KINDS if name == "transformer" else ("linear", "conv")
    start = given.regressor(1) if name == "regressor" else given.reader(1) if name == "reader" else given.net(1)
    sites = find_sites(model, quiet=True, kinds=kinds)
    return Problem(TrainedModel(model, train, task, sites=sites, quiet=True), queries, start)


class Row(NamedTuple):
    """An attribution method with its settings, and the problem that it is fitted on."""

    build: Callable[[Problem], Any]
    problem: str = "classifier"


FACTORS = {
    "identity": Row(lambda p: m.Identity()),
    "diagonal": Row(lambda p: m.Diagonal()),
    "diagonal true seed": Row(lambda p: m.Diagonal(labels="true", seed=2)),
    "kfac": Row(lambda p: m.KFAC()),
    "kfac text": Row(lambda p: m.KFAC(labels="true", seed=1), "reader"),
    "shampoo": Row(lambda p: m.Shampoo()),
    "shampoo plain": Row(lambda p: m.Shampoo(corrected=False, seed=1, eigen="float64")),
    "ekfac": Row(lambda p: m.EKFAC()),
    "ekfac text": Row(lambda p: m.EKFAC(), "reader"),
    "ekfac regression": Row(lambda p: m.EKFAC(), "regressor"),
    "ekfac every kind": Row(lambda p: m.EKFAC(), "transformer"),
    "ekfac convolutions": Row(lambda p: m.EKFAC(), "convolutions"),
    "ekfac true": Row(lambda p: m.EKFAC(labels="true")),
    "ekfac seed": Row(lambda p: m.EKFAC(seed=3, damping=Damping(0.01, "absolute", {"2": 0.5}))),
    "ekfac float64": Row(lambda p: m.EKFAC(eigen="float64")),
    "ekfac basis": Row(lambda p: m.EKFAC(basis_examples=12)),
    "ekfac kept labels": Row(lambda p: m.EKFAC(redraw=False)),
    "ekfac tf32": Row(lambda p: m.EKFAC(products="tf32", redraw=False)),
}
SOLVERS = {
    "cg": Row(lambda p: m.CG(iterations=2)),
    "cg on kfac": Row(lambda p: m.CG(m.KFAC(), tolerance=0.5, iterations=1)),
    "astra": Row(lambda p: m.ASTRA(iterations=2, batch=8, seed=1)),
    "astra rate": Row(lambda p: m.ASTRA(m.EKFAC(labels="true"), iterations=1, batch=8, rate=0.25)),
    "lissa": Row(lambda p: m.LiSSA(depth=3, batch=8)),
    "lissa scale": Row(lambda p: m.LiSSA(Damping(0.5), depth=2, batch=8, repeats=2, scale=4.0, seed=1)),
    "datainf": Row(lambda p: m.DataInf()),
}
STATES = {
    "tracin": Row(lambda p: m.TracIn([p.start, p.trained.model], [0.125, 0.25])),
    "trak": Row(lambda p: m.TRAK([p.start, p.trained.model], width=8, damping=0.01, seed=1)),
    "trak text": Row(lambda p: m.TRAK(width=8), "reader"),
    "logra": Row(lambda p: m.LoGra(rank=2, damping=Damping(0.2))),
    "logra random": Row(lambda p: m.LoGra(rank=2, start="random", seed=1)),
    "source": Row(lambda p: m.SOURCE([
        m.Segment([p.start], 0.125, 3), m.Segment([p.start, p.trained.model], 0.25, 2)], seed=1,
    )),
    "magic": Row(lambda p: m.MAGIC(p.start, REPLAYED), "replayed"),
    "representation": Row(lambda p: m.Representation()),
    "representation at": Row(lambda p: m.Representation(at="mix"), "reader"),
    "grand": Row(lambda p: m.GraNd([p.start, p.trained.model])),
    "el2n": Row(lambda p: m.EL2N([p.start, p.trained.model])),
    "bm25": Row(lambda p: m.BM25(), "reader"),
    "bm25 settings": Row(lambda p: m.BM25(k1=2.0, b=0.5), "reader"),
}  # fmt: skip
METHODS = FACTORS | SOLVERS | STATES
KEPT_FITS = [name for name in FACTORS if name != "identity"]


def fitted(name: str, store: Store | None) -> tuple[Problem, Any]:
    """A problem bound to the store, and the method's fit of it."""
    row = METHODS[name]
    p = problem(row.problem)
    p = p._replace(trained=p.trained.replace(store=store))
    return p, row.build(p).fit(p.trained)


def products(factors: Any) -> dict[str, np.ndarray]:
    """(G + damping)^-1 of a fixed gradient, which the signs of the eigenvectors do not change."""
    asked = {site.name: to_jax(torch.from_numpy(given.numbers(9, 1, *site.shape))) for site in factors.sites}
    return {f"product {name}": np.asarray(value) for name, value in factors.inverse_product(asked).items()}


def method_fit(name: str, store: Store) -> Made:
    _, factors = fitted(name, store)
    values = {f"eigenvalues {site}": state.eigenvalues for site, state in factors.per_site.items()}
    return stored(store, "factors", factors.key, **values, **products(factors))


def method_scores(name: str, store: Store) -> Made:
    p, state = fitted(name, store)
    scores = state.score(p.queries)
    return last(store, "scores", scores=scores.values, train=scores["train"].values, query=scores["query"].values)


ARTEFACTS |= {f"attrib/{name}/fit": partial(method_fit, name) for name in KEPT_FITS}
ARTEFACTS |= {f"attrib/{name}/scores": partial(method_scores, name) for name in METHODS}


def read_factors(store: Store, key: str, damping: Damping = Damping()) -> dict[str, np.ndarray]:
    factors = load(problem("classifier").trained.replace(store=store), key, damping)
    return {f"eigenvalues {site}": state.eigenvalues for site, state in factors.per_site.items()} | products(factors)


READERS |= {f"attrib/{name}/fit": read_factors for name in FACTORS if name.startswith("ekfac") and name != "ekfac seed"}
READERS["attrib/ekfac seed/fit"] = partial(read_factors, damping=Damping(0.01, "absolute", {"2": 0.5}))

SCORINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "per site": ("ekfac", {"per_site": True}),
    "per site text": ("ekfac text", {"per_site": True}),
    "rank": ("ekfac text", {"rank": 1}),
    "bfloat16": ("ekfac text", {"precision": "bfloat16"}),
    "tf32": ("ekfac", {"precision": "tf32"}),
}


def scoring(name: str, store: Store) -> Made:
    method, options = SCORINGS[name]
    p, factors = fitted(method, store)
    scores = factors.score(p.queries, **options)
    return last(store, "scores", scores=scores.values)


ARTEFACTS |= {f"attrib/scores/{name}": partial(scoring, name) for name in SCORINGS}


@artefact("attrib/scores/train size")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    return last(store, "scores", scores=replace(factors, size=100).score(p.queries).values)


@artefact("attrib/scores/measured by margin")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    scores = factors.measuring(Classification(measure="margin")).score(p.queries)
    return last(store, "scores", scores=scores.values)


@artefact("attrib/scores/damped otherwise")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    return last(store, "scores", scores=factors.with_damping(0.5, "absolute").score(p.queries).values)


@artefact("attrib/self-influence")
def _(store: Store) -> Made:
    _, factors = fitted("ekfac", store)
    return last(store, "scores", scores=factors.self_influence().values)


@artefact("attrib/relative")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    out = factors.relative(factors.score(p.queries), per="parameters")
    return last(store, "scores", scores=out.values)


@artefact("attrib/top")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    ends = factors.top(p.queries, 3)
    names = [str(name) for name in ends.data_vars if not str(name).endswith(("_title", "_text"))]  # those are newer
    return last(store, "scores", **{name: ends[name].values for name in names})


@artefact("attrib/heads")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac every kind", store)
    found = factors.head_scores(p.queries, find_heads(factors.sites, 2))
    return last(store, "scores", scores=found.values)


@artefact("attrib/groups")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    groups = {"first": p.trained.train.ids[:5], "others": p.trained.train.ids[5:]}
    return only({}, scores=factors.group_scores(p.queries, train_groups=groups).values)


@artefact("attrib/tokens")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    of = (p.queries.select([0]), p.trained.train.select(range(4)))
    views = {"at_layers": "layer", "predicted": "output", "read": "input"}
    return only({}, **{name: factors.token_scores(*of, by=by).values for name, by in views.items()})


def index(sketch: Sketch, store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    made = build_index(factors, sketch=sketch)
    return stored(store, "gradients", made.entry.key, scores=made.scores(p.queries))


ARTEFACTS |= {
    "attrib/index/rank": partial(index, Sketch(width=60)),
    "attrib/index/largest": partial(index, Sketch("largest", 40)),
    "attrib/index/random": partial(index, Sketch("random", 32, seed=2)),
}


def kept_gradients(objective: Any, seed: int, dtype: str, store: Store) -> Made:
    """Of other data than the scores', which would be read from them."""
    trained = problem("reader").trained
    run = trained.run(objective, trained.find(), trained.train.select(range(9)), seed=seed)
    batches = gradients(run, store, dtype=dtype).batches()
    grads = {f"grads {n} {at}": g for at, batch in enumerate(batches) for n, g in batch.grads.items()}
    return last(store, "gradients", **grads)


ARTEFACTS |= {
    "gradients/loss": partial(kept_gradients, "loss", 0, "float32"),
    "gradients/sampled": partial(kept_gradients, "sampled", 3, "float32"),
    "gradients/bfloat16": partial(kept_gradients, "measurement", 0, "bfloat16"),
}

DIRECTION = np.array([0.5, 0.5, -0.5, 0.5, 0.0, 0.0], np.float32)


@artefact("attrib/reading direction")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    task = ActivationMeasurement(p.trained.task, "mix", Direction(DIRECTION, np.full(6, 0.25, np.float32)))
    return last(store, "scores", scores=factors.measuring(task).score(p.queries).values)


@artefact("attrib/reading atom")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    by_query = {int(i): Coefficient(by_hand(), atom, k=4) for i, atom in zip(p.queries.ids, (0, 1, 3))}
    task = ActivationMeasurement(p.trained.task, "mix", by_query)
    return last(store, "scores", scores=factors.measuring(task).score(p.queries).values)


@artefact("attrib/through atoms")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    found = factors.score(p.queries, p.trained.train.select(range(6)), through=by_hand(), site="mix")
    return only({}, scores=found.values, atom=found["atom"].values)


@artefact("attrib/merge moments")
def _(store: Store) -> Made:
    trained = problem("classifier").trained.replace(store=store)
    sums = moment_sums(trained, trained.train.select(range(8)), seed=2)
    return last(store, "factors", **sums.arrays)


@artefact("attrib/merge squares")
def _(store: Store) -> Made:
    p = problem("classifier")
    trained = p.trained.replace(store=store)
    sites = trained.find()
    flip = {w: np.eye(w, dtype=np.float32)[::-1].copy() for w in (3, 5, 6, 7)}  # exact, so that its hash is
    turned = {f"{s.name}/A": flip[s.shape[1]] for s in sites} | {f"{s.name}/S": flip[s.shape[0]] for s in sites}
    basis = Basis(Bases("", "", turned), sites)
    halves = [square_sums(basis, trained, trained.train.select(part), seed=2) for part in (range(8), range(8, 16))]
    scores = factors_of(basis, trained, merge(*halves)).score(p.queries)
    return last(store, "scores", scores=scores.values)
