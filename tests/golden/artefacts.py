"""Everything that is kept in a store, and everything whose settings stand in keys, each made once and small.

This is the only file of the golden tests that calls the library: where a call changes, it changes here, and what was
frozen (keys.json, values.npz, store.zip) stays. A row of ARTEFACTS makes one artefact in the store that it is given
and says what it is; a row of READERS reads one back from its key alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from attrib.heads import find_heads, head_scores
from attrib.reading import Direction, Reading
from attrib.sketches import Sketch
from attrib.states import scores_of
from cache.bank import Bank
from cache.bank_store import retrained_from
from cache.bridge import to_jax
from cache.retrained import Retrained, oracle_masks, subset_masks
from cache.training import SGD, AdamW, Recipe, Schedule
from torch import nn
from unlearn.condense.standing_in import condensed_retain
from unlearn.deletion import Deletion

import attrib
import decomp
import unlearn
from attrib import Damping, FitOptions
from attrib import methods as methods_of
from attrib.index import build_index
from attrib.merge import Basis, factors_of, merge, moment_sums, square_sums
from attrib.method import make_run
from attrib.methods.ekfac import Bases
from attrib.methods.magic import record, trained
from cache import (
    Classification,
    Examples,
    LanguageModelling,
    Regression,
    Store,
    Task,
    activations,
    canonical,
    find_sites,
    gradients,
    key_of,
)
from decomp import (
    ITDA,
    SAE,
    Activations,
    Calibrated,
    Coefficient,
    Dictionary,
    KMeans,
    Origin,
    Partition,
    Random,
    SparseAutoencoder,
)  # fmt: skip
from decomp.files import from_entry, put
from unlearn import audit, datamodels, methods, traces
from unlearn.condense import METHODS as CONDENSING
from unlearn.condense import MLP, Condensed, ConvNet, Pool, Settings, condense, evaluate, kernel_velocity
from unlearn.condense import Training as NetworkTraining
from unlearn.datamodels.regression import Regression as FittedRegression
from whence import demo
from whence.corpora import Corpus
from whence.language_model import Shape, Training, model_inputs

from . import models as given

HERE = Path(__file__).parent
QUIET = FitOptions(quiet=True)
ALL_KINDS = ("linear", "conv", "embedding", "norm")


class Made(NamedTuple):
    """One artefact.

    kind, key: its entry in the store; where there is none, kind is "settings" (inputs stand in the keys of others; key
    is that of an entry which is too large to make here, or empty) or "values" (inputs stand in no key).
    inputs: what it is computed from, as JSON. values: what the calls returned, beside the entry's own arrays.
    """

    kind: str
    key: str
    inputs: Any
    values: dict[str, np.ndarray]


def stored(store: Store, kind: str, key: str, **values: Any) -> Made:
    return Made(kind, key, store.header(kind, key).inputs, arrays(values))


def last(store: Store, kind: str, **values: Any) -> Made:
    """The entry of this kind that was asked for last."""
    return stored(store, kind, next(event.key for event in reversed(store.events) if event.kind == kind), **values)


def settings(inputs: Any, key: str = "", **values: Any) -> Made:
    return Made("settings", key, plain(inputs), arrays(values))


def only(inputs: Any, **values: Any) -> Made:
    return Made("values", "", plain(inputs), arrays(values))


def plain(value: Any) -> Any:
    return json.loads(canonical(value))


def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value.detach() if hasattr(value, "detach") else value) for name, value in values.items()}


def asked_for(method: Any) -> dict[str, Any]:
    """Settings of an unlearning method as far as they are plain."""
    out = {"class": type(method).__name__}
    for name in type(method).__dataclass_fields__:
        try:
            out[name] = plain(getattr(method, name))
        except Exception:  # a function or a model
            out[name] = "(given)"
    return out


# artefacts whose keys leave out what they depend on: entries under them are read, but a later version may give others
FAULTY = {
    "dictionary/by hand": "the fingerprint that is the key leaves out the steps and the pursuit",
    "attrib/merge squares": "the data of merged sums are told by their ids alone",
}
ARTEFACTS: dict[str, Callable[[Store], Made]] = {}
READERS: dict[str, Callable[[Store, str], dict[str, np.ndarray]]] = {}


def artefact(name: str) -> Callable[[Callable[[Store], Made]], Callable[[Store], Made]]:
    def keep(make: Callable[[Store], Made]) -> Callable[[Store], Made]:
        ARTEFACTS[name] = make
        return make

    return keep


# --- tasks, recipes -----------------------------------------------------------------------------------------

TASKS: dict[str, Task] = {
    "language": LanguageModelling(),
    "language margin": LanguageModelling(measure="margin"),
    "classification": Classification(),
    "classification margin": Classification(measure="margin"),
    "classification loss": Classification(measure="loss"),
    "regression": Regression(),
    "regression loss": Regression(measure="loss"),
    "regression sign": Regression(noise="sign"),
}


def task_settings(name: str, store: Store) -> Made:
    task = TASKS[name]
    model, data = {
        "language": (given.reader(0), given.questions()),
        "classification": (given.net(0), given.train(8)),
        "regression": (given.regressor(0), given.pairs()),
    }[name.split()[0]]
    batch = data.batch(np.arange(len(data)))
    return settings(
        task.settings,
        loss=task.loss(model, batch),
        sampled=torch.stack([task.sampled_loss(model, batch, seed) for seed in (0, 5)]),
        measurement=task.measurement(model, batch),
        positions=task.positions(batch),
        logits=task.logits(model, batch),
    )


ARTEFACTS |= {f"task/{name}": partial(task_settings, name) for name in TASKS}

RECIPE = Recipe(epochs=2, batch_size=8, optimiser=SGD(0.25, momentum=0.5))
RECIPES = {
    "published": Recipe(),
    "sgd": RECIPE,
    "nesterov": replace(RECIPE, optimiser=SGD(0.25, 0.5, weight_decay=0.125, nesterov=True)),
    "adamw": replace(RECIPE, optimiser=AdamW(0.03125)),
    "adamw decay": replace(RECIPE, optimiser=AdamW(0.03125, (0.5, 0.75), 1e-3, 0.25)),
    "linear": replace(RECIPE, schedule=Schedule("linear", warmup=0.25, final=0.125)),
    "cosine": replace(RECIPE, schedule=Schedule("cosine", final=0.125)),
    "shared": replace(RECIPE, batches="shared"),
    "clip": replace(RECIPE, clip=0.25),
}


def recipe_settings(name: str, store: Store) -> Made:
    bank = Bank(given.net, Classification(), given.train(), given.points(), RECIPES[name])
    lanes = bank.train_replicas(subset_masks(32, 2, 0.75), np.array([3, 4]))
    return settings(RECIPES[name], weights=lanes.flat)


ARTEFACTS |= {f"recipe/{name}": partial(recipe_settings, name) for name in RECIPES}


# --- attribution --------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """model: what is attributed; queries, train: scored. start: an earlier model of the same shape."""

    model: nn.Module
    task: Task
    queries: Examples
    train: Examples
    start: nn.Module
    kinds: tuple[str, ...] = ("linear", "conv")

    @property
    def sites(self) -> Any:
        return find_sites(self.model, quiet=True, kinds=self.kinds)


REPLAYED = Recipe(epochs=6, batch_size=8, optimiser=SGD(0.125, momentum=0.5), batches="shared")


def replayed_weights() -> dict[str, np.ndarray]:
    """Where training from net(1) ends; kept in inputs.npz, since its last bits differ from machine to machine."""
    end = trained(record(given.net(1), Classification(), given.train(16), REPLAYED, 0, True))
    return {name: p.detach().numpy() for name, p in end.named_parameters()}


@cache
def problem(name: str) -> Problem:
    text = (given.questions(), given.texts())
    if name == "replayed":
        model = given.net(1)
        with np.load(HERE / "inputs.npz") as file:
            model.load_state_dict({n: torch.from_numpy(file[n]) for n in file.files})
        return Problem(model, Classification(), given.held_out(3), given.train(16), given.net(1))
    return {
        "classifier": Problem(given.net(0), Classification(), given.held_out(3), given.train(16), given.net(1)),
        "reader": Problem(given.reader(0), LanguageModelling(), *text, given.reader(1)),
        "regressor": Problem(
            given.regressor(0), Regression(), given.pairs().select([1, 2]), given.pairs(), given.regressor(1)
        ),
        "transformer": Problem(given.transformer(), LanguageModelling(), *text, given.transformer(), ALL_KINDS),
        "convolutions": Problem(
            given.convolutions(), Classification(), given.pictures().select([1, 5]), given.pictures(),
            given.convolutions(),
        ),
    }[name]  # fmt: skip


class Row(NamedTuple):
    """An attribution method with its settings, and the problem that it is fitted on."""

    build: Callable[[Problem], Any]
    problem: str = "classifier"


FACTORS = {
    "identity": Row(lambda p: methods_of.Identity()),
    "diagonal": Row(lambda p: methods_of.Diagonal()),
    "diagonal true seed": Row(lambda p: methods_of.Diagonal(labels="true", seed=2)),
    "kfac": Row(lambda p: methods_of.KFAC()),
    "kfac text": Row(lambda p: methods_of.KFAC(labels="true", seed=1), "reader"),
    "shampoo": Row(lambda p: methods_of.Shampoo()),
    "shampoo plain": Row(lambda p: methods_of.Shampoo(corrected=False, seed=1, eigen="float64")),
    "ekfac": Row(lambda p: methods_of.EKFAC()),
    "ekfac text": Row(lambda p: methods_of.EKFAC(), "reader"),
    "ekfac regression": Row(lambda p: methods_of.EKFAC(), "regressor"),
    "ekfac every kind": Row(lambda p: methods_of.EKFAC(), "transformer"),
    "ekfac convolutions": Row(lambda p: methods_of.EKFAC(), "convolutions"),
    "ekfac true": Row(lambda p: methods_of.EKFAC(labels="true")),
    "ekfac seed": Row(lambda p: methods_of.EKFAC(seed=3, damping=Damping(0.01, "absolute", {"2": 0.5}))),
    "ekfac float64": Row(lambda p: methods_of.EKFAC(eigen="float64")),
    "ekfac basis": Row(lambda p: methods_of.EKFAC(basis_examples=12)),
    "ekfac kept labels": Row(lambda p: methods_of.EKFAC(redraw=False)),
    "ekfac tf32": Row(lambda p: methods_of.EKFAC(products="tf32", redraw=False)),
}
SOLVERS = {
    "cg": Row(lambda p: methods_of.CG(iterations=2)),
    "cg on kfac": Row(lambda p: methods_of.CG(methods_of.KFAC(), tolerance=0.5, iterations=1)),
    "astra": Row(lambda p: methods_of.ASTRA(iterations=2, batch=8, seed=1)),
    "astra rate": Row(lambda p: methods_of.ASTRA(methods_of.EKFAC(labels="true"), iterations=1, batch=8, rate=0.25)),
    "lissa": Row(lambda p: methods_of.LiSSA(depth=3, batch=8)),
    "lissa scale": Row(lambda p: methods_of.LiSSA(Damping(0.5), depth=2, batch=8, repeats=2, scale=4.0, seed=1)),
    "datainf": Row(lambda p: methods_of.DataInf()),
}
STATES = {
    "tracin": Row(lambda p: methods_of.TracIn([p.start, p.model], [0.125, 0.25])),
    "trak": Row(lambda p: methods_of.TRAK([p.start, p.model], width=8, damping=0.01, seed=1)),
    "trak text": Row(lambda p: methods_of.TRAK(width=8), "reader"),
    "logra": Row(lambda p: methods_of.LoGra(rank=2, damping=Damping(0.2))),
    "logra random": Row(lambda p: methods_of.LoGra(rank=2, start="random", seed=1)),
    "source": Row(lambda p: methods_of.SOURCE([
        methods_of.Segment([p.start], 0.125, 3), methods_of.Segment([p.start, p.model], 0.25, 2)], seed=1,
    )),
    "magic": Row(lambda p: methods_of.MAGIC(p.start, REPLAYED), "replayed"),
    "representation": Row(lambda p: methods_of.Representation()),
    "representation at": Row(lambda p: methods_of.Representation(at="mix"), "reader"),
    "grand": Row(lambda p: methods_of.GraNd([p.start, p.model])),
    "el2n": Row(lambda p: methods_of.EL2N([p.start, p.model])),
    "bm25": Row(lambda p: methods_of.BM25(), "reader"),
    "bm25 settings": Row(lambda p: methods_of.BM25(k1=2.0, b=0.5), "reader"),
}  # fmt: skip
METHODS = FACTORS | SOLVERS | STATES
KEPT_FITS = [name for name in FACTORS if name != "identity"]


def fitted(name: str, store: Store | None) -> tuple[Problem, Any]:
    row = METHODS[name]
    p = problem(row.problem)
    method = row.build(p)
    return p, method.fit(p.model, p.task, p.train, sites=p.sites, store=store, options=QUIET)


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
    scores = scores_of(state, p.model, p.task, p.queries, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=scores.values, train=scores["train"].values, query=scores["query"].values)


ARTEFACTS |= {f"attrib/{name}/fit": partial(method_fit, name) for name in KEPT_FITS}
ARTEFACTS |= {f"attrib/{name}/scores": partial(method_scores, name) for name in METHODS}


def read_factors(store: Store, key: str, damping: Damping = Damping()) -> dict[str, np.ndarray]:
    factors = attrib.factors.load_factors(store.root, key, damping)
    return {f"eigenvalues {site}": state.eigenvalues for site, state in factors.per_site.items()} | products(factors)


READERS |= {f"attrib/{name}/fit": read_factors for name in FACTORS if name.startswith("ekfac") and name != "ekfac seed"}
READERS["attrib/ekfac seed/fit"] = partial(read_factors, damping=Damping(0.01, "absolute", {"2": 0.5}))

SCORINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "per site": ("ekfac", {"per_site": True}),
    "per site text": ("ekfac text", {"per_site": True}),
    "rank": ("ekfac text", {"rank": 1}),
    "bfloat16": ("ekfac text", {"precision": "bfloat16"}),
    "tf32": ("ekfac", {"precision": "tf32"}),
    "train size": ("ekfac", {"train_size": 100}),
}


def scoring(name: str, store: Store) -> Made:
    method, options = SCORINGS[name]
    p, factors = fitted(method, store)
    scores = attrib.score(factors, p.model, p.task, p.queries, p.train, store=store, options=QUIET, **options)
    return last(store, "scores", scores=scores.values)


ARTEFACTS |= {f"attrib/scores/{name}": partial(scoring, name) for name in SCORINGS}


@artefact("attrib/scores/measured by margin")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    task = Classification(measure="margin")
    scores = attrib.score(factors, p.model, task, p.queries, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=scores.values)


@artefact("attrib/scores/damped otherwise")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    factors = factors.with_damping(0.5, "absolute")
    scores = attrib.score(factors, p.model, p.task, p.queries, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=scores.values)


@artefact("attrib/self-influence")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    found = attrib.self_influence(factors, p.model, p.task, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=found.values)


@artefact("attrib/relative")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac", store)
    scores = attrib.score(factors, p.model, p.task, p.queries, p.train, store=store, options=QUIET)
    out = attrib.relative(
        scores, factors, p.model, p.task, p.train, per="parameters", store=store, options=QUIET
    )  # fmt: skip
    return last(store, "scores", scores=out.values)


@artefact("attrib/top")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    ends = attrib.top(factors, p.model, p.task, p.queries, p.train, 3, store=store, options=QUIET)
    return last(store, "scores", **{str(name): ends[name].values for name in ends.data_vars})


@artefact("attrib/heads")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac every kind", store)
    heads = find_heads(factors.sites, 2)
    found = head_scores(factors, p.model, p.task, p.queries, p.train, heads, store=store, options=QUIET)
    return last(store, "scores", scores=found.values)


@artefact("attrib/groups")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    groups = {"first": p.train.ids[:5], "others": p.train.ids[5:]}
    found = attrib.group_scores(
        factors, p.model, p.task, p.queries, p.train, train_groups=groups, store=store, options=QUIET
    )  # fmt: skip
    return only({}, scores=found.values)


@artefact("attrib/tokens")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    of = (factors, p.model, p.task, p.queries.select([0]), p.train.select(range(4)))
    return only(
        {},
        at_layers=attrib.token_scores(*of, options=QUIET).values,
        predicted=attrib.output_token_scores(*of, options=QUIET).values,
        read=attrib.input_token_scores(*of, options=QUIET).values,
    )


def index(sketch: Sketch, store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    made = build_index(factors, p.model, p.task, p.train, store, sketch, QUIET)
    scores = made.scores(p.model, p.task, p.queries, QUIET)
    return stored(store, "gradients", made.entry.key, scores=scores)


ARTEFACTS |= {
    "attrib/index/rank": partial(index, Sketch(width=60)),
    "attrib/index/largest": partial(index, Sketch("largest", 40)),
    "attrib/index/random": partial(index, Sketch("random", 32, seed=2)),
}


def kept_gradients(objective: str, seed: int, dtype: str, store: Store) -> Made:
    """Of other data than the scores', which would be read from them."""
    p = problem("reader")
    run = make_run(p.model, p.task, p.train.select(range(9)), p.sites, objective, seed, QUIET)
    frames = list(gradients(run, store, dtype=dtype, quiet=True).frames(quiet=True))
    grads = {f"grads {n} {at}": g for at, frame in enumerate(frames) for n, g in frame.grads.items()}
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
    task = Reading(p.task, "mix", Direction(DIRECTION, np.full(6, 0.25, np.float32)))
    scores = attrib.score(factors, p.model, task, p.queries, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=scores.values)


@artefact("attrib/reading atom")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    by_query = {int(i): Coefficient(by_hand(), atom, k=4) for i, atom in zip(p.queries.ids, (0, 1, 3))}
    scores = attrib.score(
        factors, p.model, Reading(p.task, "mix", by_query), p.queries, p.train, store=store, options=QUIET
    )  # fmt: skip
    return last(store, "scores", scores=scores.values)


@artefact("attrib/through atoms")
def _(store: Store) -> Made:
    p, factors = fitted("ekfac text", store)
    found = attrib.through_atoms(
        factors, p.model, p.task, p.queries, p.train.select(range(6)), by_hand(), site="mix", options=QUIET
    )  # fmt: skip
    return only({}, scores=found.values, atom=found["atom"].values)


@artefact("attrib/merge moments")
def _(store: Store) -> Made:
    p = problem("classifier")
    part = p.train.select(range(8))
    sums = moment_sums(p.model, p.task, part, sites=p.sites, store=store, seed=2, options=QUIET)
    return last(store, "factors", **sums.arrays)


@artefact("attrib/merge squares")
def _(store: Store) -> Made:
    p = problem("classifier")
    flip = {w: np.eye(w, dtype=np.float32)[::-1].copy() for w in (3, 5, 6, 7)}  # exact, so that its hash is
    turned = {f"{s.name}/A": flip[s.shape[1]] for s in p.sites} | {f"{s.name}/S": flip[s.shape[0]] for s in p.sites}
    basis = Basis(Bases("", "", turned), p.sites)
    halves = [
        square_sums(basis, p.model, p.task, p.train.select(part), store=store, seed=2, options=QUIET)
        for part in (range(8), range(8, 16))
    ]
    factors = factors_of(basis, merge(*halves))
    scores = attrib.score(factors, p.model, p.task, p.queries, p.train, store=store, options=QUIET)
    return last(store, "scores", scores=scores.values)


# --- decomposition ------------------------------------------------------------------------------------------


@cache
def by_hand() -> Dictionary:
    """Atoms whose bits are the same everywhere, with a place each."""
    atoms = np.concatenate([np.eye(6), [[0.6, 0.8, 0, 0, 0, 0], [0, 0, 0.8, -0.6, 0, 0]]]).astype(np.float32)
    n = np.arange(len(atoms))
    provenance = decomp.Provenance.of(n, n % 3, n + 1, np.ones(len(n)), 0.5, n == 0)
    return Dictionary(atoms, provenance, 2, Origin("mix", "a model", "some data"), np.full(6, 0.125, np.float32))


def observed(at: list[str], dtype: str, store: Store) -> Made:
    entry = activations(given.reader(0), given.texts(), at, store=store, dtype=dtype, quiet=True)
    return stored(store, "activations", entry.key, ends=entry.about["ends"], **read_activations(store, entry.key))


ARTEFACTS |= {
    "activations/one": partial(observed, ["mix"], "float32"),
    "activations/two": partial(observed, ["mix", "embed"], "float32"),
    "activations/bfloat16": partial(observed, ["mix"], "bfloat16"),
}


@artefact("activations/numbers")
def _(store: Store) -> Made:
    entry = activations(given.net(0), given.train(), "1", store=store, quiet=True)
    return stored(store, "activations", entry.key)


def read_activations(store: Store, key: str) -> dict[str, np.ndarray]:
    whole = decomp.activations.from_entry(store.get(key), "mix").whole()
    return {"rows": whole.x, "document": whole.document, "position": whole.position, "token": whole.token}


READERS |= {f"activations/{name}": read_activations for name in ("one", "two", "bfloat16")}


@cache
def stream() -> Activations:
    """Rows of 24 documents."""
    x, n = given.rows(), np.arange(192)
    return Activations.of(x, n // 8, n % 8, n % 50, Origin("somewhere", "a model", "some data"))


BUILDERS = {
    "itda": ITDA(size=24, k=3, unexplained=0.1, batch=64),
    "itda no limit": ITDA(k=2, unexplained=0.3, seeding="none", batch=32),
    "itda lexicographic": ITDA(size=20, k=2, unexplained=0.2, seeding="lexicographic", seeds=4, pursuit="refit"),
    "itda nonnegative": ITDA(size=20, k=2, unexplained=0.2, pursuit="nonnegative"),
    "itda orthogonal": ITDA(size=20, k=2, unexplained=0.2, pursuit="orthogonal"),
    "itda gradient": ITDA(size=20, k=2, unexplained=0.2, pursuit="gradient"),
    "kmeans": KMeans(size=10, k=2, rounds=3, rows=150, seed=1),
    "kmeans centroids": KMeans(size=8, k=2, snap=False, pursuit="orthogonal"),
    "random": Random(size=12, k=2, pursuit="orthogonal", seed=3),
    "partition": Partition(cosine=0.7, size=20, batch=64, centre_rows=100),
    "partition no limit": Partition(cosine=0.3, k=2),
    "calibrated": Calibrated(ITDA(size=20, k=2), rows=96, rounds=3),
}


def codes(dictionary: Dictionary) -> dict[str, np.ndarray]:
    code = dictionary.encode(given.rows()[:16])
    back = dictionary.decode(code)
    return {"residual": np.asarray(code.residual), "energy": np.asarray(code.energy), "decoded": back}


def built(name: str, store: Store) -> Made:
    dictionary = BUILDERS[name].build(stream(), store=store, selection={"skip": [0], "held_out": 0.1})
    told = dictionary.settings
    curve = np.asarray(told["curve"], np.int64).reshape(-1, 2)
    counts = np.array([told["rows_read"], told["rows_zero"], told["rows_not_finite"], told["seeds_placed"]])
    return last(store, "dictionary", **codes(dictionary), curve=curve, counts=counts)


def read_dictionary(store: Store, key: str) -> dict[str, np.ndarray]:
    return codes(from_entry(store.get(key)))


ARTEFACTS |= {f"dictionary/{name}": partial(built, name) for name in BUILDERS}
READERS |= {f"dictionary/{name}": read_dictionary for name in BUILDERS}


@artefact("dictionary/of activations")
def _(store: Store) -> Made:
    """From activations of the store, as the commands build."""
    acts = decomp.observe(given.reader(0), given.texts(), ["mix"], store)["mix"]
    dictionary = ITDA(k=2, batch=32).build(acts.without([0]).shuffled(1), store=store, selection={"skip": [0]})
    return last(store, "dictionary", document=dictionary.provenance.document, k=dictionary.k)


@artefact("dictionary/by hand")
def _(store: Store) -> Made:
    return stored(store, "dictionary", put(by_hand(), store).key, atoms=by_hand().atoms)


def read_by_hand(store: Store, key: str) -> dict[str, np.ndarray]:
    found = from_entry(store.get(key))
    assert found.fingerprint == by_hand().fingerprint
    assert (found.k, found.pursuit, found.origin) == (by_hand().k, by_hand().pursuit, by_hand().origin)
    return {"atoms": found.atoms}


READERS["dictionary/by hand"] = read_by_hand


def autoencoder(builder: SAE, store: Store) -> Made:
    """Nothing of it is kept in the store."""
    made: SparseAutoencoder = replace(builder, tokens=1).build(stream())
    settings = {name: value for name, value in plain(builder).items() if name != "tokens"}
    return only(
        settings, encoder=made.encoder, bias=made.bias, decoder=made.atoms, centre=made.centre,
        threshold=made.threshold, decoded=made.reconstruct(given.rows()[:16]),
    )  # fmt: skip


ARTEFACTS |= {
    "autoencoder/topk": partial(autoencoder, SAE(size=16, k=2, batch=64, rate=0.125)),
    "autoencoder/batchtopk": partial(autoencoder, SAE(size=16, k=2, kind="batchtopk", batch=64, auxiliary=0.0, seed=1)),
}


# --- retrained models and datamodels ------------------------------------------------------------------------

FORGET = np.array([101, 105, 109, 113])


def bank(**changed: Any) -> Bank:
    own = {"model": given.net, "task": Classification(), "train": given.train(), "points": given.points()}
    return Bank(**{**own, "recipe": RECIPE, **changed})


def reading_bank() -> Bank:
    recipe = Recipe(epochs=2, batch_size=8, optimiser=AdamW(0.03125))
    return Bank(given.reader, LanguageModelling(), given.texts(), given.texts(), recipe)


class Retraining(NamedTuple):
    bank: Callable[[], Bank]
    masks: Callable[[], np.ndarray]
    seeds: Any = None


def neighbourhoods() -> np.ndarray:
    near = datamodels.nearest(given.train(), given.train(), 8)
    return datamodels.neighbourhood_masks(near, 44, smallest=3, seed=1)


BANKS = {
    "subsets": Retraining(bank, lambda: subset_masks(32, 44, 0.75)),
    "neighbourhoods": Retraining(bank, neighbourhoods),
    "oracles": Retraining(bank, lambda: oracle_masks(given.train().ids, FORGET, 8), 500 + np.arange(8)),
    "one start": Retraining(
        lambda: bank(model=given.net(5)), lambda: subset_masks(32, 3, 0.5, seed=2), np.array([-4, 0, 7])
    ),
    "everything kept": Retraining(
        lambda: bank(keep=("weights", "losses", "measurements", "margins", "logits")),
        lambda: subset_masks(32, 2, 0.5, seed=3),
        np.array([4, 9]),
    ),
    "recipe": Retraining(
        lambda: bank(recipe=Recipe(3, 16, AdamW(0.03125), Schedule("cosine", 0.25, 0.125), "shared", 1.0)),
        lambda: subset_masks(32, 2, 0.75),
    ),
    "own training": Retraining(lambda: bank(recipe=given.own_training), lambda: subset_masks(32, 2, 0.75)),
    "text": Retraining(reading_bank, lambda: oracle_masks(given.texts().ids, given.texts().ids[:3], 2)),
    "regression": Retraining(
        lambda: bank(
            model=given.regressor, task=Regression(), train=given.pairs(), points=given.pairs(), keep=("losses",)
        ),
        lambda: subset_masks(16, 2, 0.5),
    ),
}  # fmt: skip


def retrained(name: str, store: Store) -> Retrained:
    row = BANKS[name]
    return row.bank().run(row.masks(), row.seeds, store, quiet=True)


def banked(name: str, store: Store) -> Made:
    found = retrained(name, store)
    return stored(store, "bank", found.about["key"], train_ids=found.train_ids, point_ids=found.point_ids)


def read_bank(store: Store, key: str) -> dict[str, np.ndarray]:
    found = retrained_from(store.get(key))
    kept = {f"stored {name}": found[name] for name in found.outputs}
    return kept | {"train_ids": found.train_ids, "point_ids": found.point_ids, "stored mask": found.masks}


ARTEFACTS |= {f"bank/{name}": partial(banked, name) for name in BANKS}
READERS |= {f"bank/{name}": read_bank for name in BANKS}


@artefact("bank/models")
def _(store: Store) -> Made:
    lanes = bank().models(3, 100, store, quiet=True)
    return last(store, "bank", weights=lanes.flat)


DATAMODELS: dict[str, Callable[[Retrained], FittedRegression]] = {
    "ridge": lambda found: datamodels.ridge(found, (1.0, 10.0, 100.0), seed=1),
    "lasso": lambda found: datamodels.lasso(found, (0.3, 0.1)),
}


def predicted(datamodel: Any) -> np.ndarray:
    return datamodel.predict_delta(FORGET, given.points().select([1, 5, 20, 39]))


def datamodel(name: str, store: Store) -> Made:
    """Kept as the command does."""
    found = retrained("subsets", store)
    made = DATAMODELS[name](found)
    header = store.header("bank", found.about["key"])
    same = {part: header.inputs[part] for part in ("train", "points")}
    key = made.save(store, {"bank": header.key, "method": name, **same})
    return stored(store, "scores", key, delta=predicted(made), penalty=made.penalty, lds=np.asarray(made.lds[:3]))


def read_datamodel(store: Store, key: str) -> dict[str, np.ndarray]:
    found = FittedRegression.of(store.get(key))
    return {"delta": predicted(found), "penalty": np.asarray(found.penalty), "lds": np.asarray(found.lds[:3])}


ARTEFACTS |= {f"datamodel/{name}": partial(datamodel, name) for name in DATAMODELS}
READERS |= {f"datamodel/{name}": read_datamodel for name in DATAMODELS}


@artefact("datamodel/grouped")
def _(store: Store) -> Made:
    near = datamodels.nearest(given.train(), given.points(), 30)
    made = datamodels.grouped(retrained("neighbourhoods", store), near, penalty=5.0)
    return only({"penalty": 5.0}, delta=predicted(made), lds=np.asarray(made.lds[:3]))


def influence(model: nn.Module, inverse: Any, **more: Any) -> datamodels.Influence:
    return datamodels.Influence(model, Classification(), given.train(), inverse, **more)


@artefact("datamodel/influence")
def _(store: Store) -> Made:
    model, task, train = given.net(0), Classification(), given.train()
    factors = methods_of.EKFAC().fit(
        model, task, train, sites=find_sites(model, quiet=True), store=store, options=QUIET
    )  # fmt: skip
    exact = datamodels.exact(model, task, train, damping=0.25, l2=0.125)
    projections = datamodels.projected([model, given.net(1)], task, train, width=8, damping=0.25, seed=1)
    averaged = datamodels.Averaged([influence(model, inverse) for inverse in projections])
    return only(
        {},
        ekfac=predicted(influence(model, datamodels.ekfac(model, factors))),
        exact=predicted(influence(model, exact, scale=0.5)),
        group=predicted(influence(model, exact, group=1)),
        averaged=predicted(averaged),
    )


# --- unlearning ---------------------------------------------------------------------------------------------


def deletion(store: Store) -> Deletion:
    return Deletion.of_bank(bank(), FORGET, 3, seed=100, store=store)


def text_deletion(store: Store) -> Deletion:
    return Deletion.of_bank(reading_bank(), given.texts().ids[:3], 2, seed=100, store=store)


def exact_on_kept(model: nn.Module) -> Any:
    kept = given.train().without(FORGET)
    return datamodels.exact(model, Classification(), kept, damping=0.5)


MATCHING = methods.Matching(steps=3, batch_size=16, retain_multiplier=3, optimiser=AdamW(0.0078125))
# where a gradient begins at zero, up to rounding, which Adam would make as large as any other
STEADY = SGD(0.125, momentum=0.5)
UNLEARNING: dict[str, Callable[[Store], Any]] = {
    "gradient ascent": lambda store: methods.GradientAscent(epochs=2.0, batch_size=2),
    "descent-ascent": lambda store: methods.DescentAscent(steps=3, forget_batch=2, retain_batch=8),
    "DM-Direct": lambda store: methods.DMDirect(DATAMODELS["ridge"](retrained("subsets", store)), scale=0.5),
    "DMM": lambda store: methods.DMM(DATAMODELS["ridge"](retrained("subsets", store)), MATCHING, scale=0.5),
    "DMM ahead": lambda store: methods.DMM(
        lambda model: influence(model, exact_on_kept(model)), MATCHING, ahead=0.5
    ),
    "fine-tune": lambda store: methods.FineTune(epochs=1.0, batch_size=8),
    "L1-sparse": lambda store: methods.L1Sparse(gamma=0.125, epochs=1.0, batch_size=8),
    "NegGrad+": lambda store: methods.NegGradPlus(alpha=0.75, steps=3, forget_batch=2, retain_batch=8),
    "Newton": lambda store: methods.Newton(exact_on_kept, scale=0.5),
    "oracle matching": lambda store: methods.OracleMatching(retrained("oracles", store), MATCHING),
    "oracle matching mean": lambda store: methods.OracleMatching(
        retrained("oracles", store), MATCHING, one_each=False
    ),
    "retrain": lambda store: methods.Retrain(seed=50),
    "SalUn": lambda store: methods.SalUn(share=0.5, steps=3, forget_batch=2, retain_batch=8),
    "SCRUB": lambda store: methods.Scrub(epochs=2, max_epochs=1, forget_batch=2, retain_batch=8, optimiser=STEADY),
}  # fmt: skip
SMALL = {"steps": 3, "forget_batch": 2, "retain_batch": 4, "optimiser": AdamW(0.0078125)}
UNLEARNING_TEXT = {
    "GradDiff": methods.GradDiff(weight=0.5, **SMALL),  # type: ignore[arg-type]
    "NPO": methods.NPO(beta=0.5, weight=0.5, **SMALL),  # type: ignore[arg-type]
    "SimNPO": methods.SimNPO(beta=0.5, gamma=0.25, weight=0.5, **SMALL),  # type: ignore[arg-type]
    "RMU": methods.RMU("mix", 2.0, 2.0, seed=1, **{**SMALL, "optimiser": STEADY}),  # type: ignore[arg-type]
}


def forgot(method: Any, asked: Deletion, points: Examples) -> Made:
    out = unlearn.run(method, asked)
    lines = [list(map(int, line.forgotten)) for line in out.ledger.lines]
    kept = [line.kept for line in out.ledger.lines]
    values = out.outputs(points, ("logits", "margins"))
    return only(
        {"method": asked_for(method), "forgotten": lines, "kept": kept}, weights=out.models.flat, passes=out.passes,
        losses=out.losses, **values,
    )  # fmt: skip


def unlearned(name: str, store: Store) -> Made:
    return forgot(UNLEARNING[name](store), deletion(store), given.points())


def unlearned_text(name: str, store: Store) -> Made:
    return forgot(UNLEARNING_TEXT[name], text_deletion(store), given.texts().select(range(5)))


ARTEFACTS |= {f"unlearn/{name}": partial(unlearned, name) for name in UNLEARNING}
ARTEFACTS |= {f"unlearn/{name}": partial(unlearned_text, name) for name in UNLEARNING_TEXT}


@artefact("unlearn/low rank")
def _(store: Store) -> Made:
    lanes = unlearn.lora(text_deletion(store).models.module(0), rank=2, alpha=4.0, seed=3)
    asked = replace(text_deletion(store), models=lanes, seeds=np.array([7]))
    return forgot(UNLEARNING_TEXT["GradDiff"], asked, given.texts().select(range(5)))


@artefact("unlearn/traces influence")
def _(store: Store) -> Made:
    compared = {"before": given.net(0), "after": given.net(1), "oracle": given.net(2)}
    forgotten = given.train().select(given.train().rows_of(FORGET))
    found = traces.remaining_influence(
        compared, Classification(), given.train().without(FORGET), forgotten, store=store
    )
    return only({}, influence=found.values)


@artefact("unlearn/traces atoms")
def _(store: Store) -> Made:
    compared = {"before": given.reader(0), "after": given.reader(1), "oracle": given.reader(2)}
    builder = ITDA(k=2, unexplained=0.2, seeding="none")
    found = traces.atoms_changed(compared, given.texts(), given.texts().ids[:3], "mix", builder, store)
    return only({}, count=found["count"].values, agreement=found["agreement"].values)


@artefact("unlearn/audit")
def _(store: Store) -> Made:
    lanes, task, texts = text_deletion(store).models, LanguageModelling(), given.texts()
    asked = texts.select(range(4))
    return only(
        {},
        losses=audit.loss_per_token(lanes, task, texts),
        rounded=audit.quantisation_curve(lanes, task, texts, (4, 3)),
        relearned=audit.relearning_curve(lanes, task, asked, texts, steps=2, batch_size=2),
        extracted=audit.extraction(lanes, task, texts, prefix=3, length=2),
    )


# --- condensation -------------------------------------------------------------------------------------------


@cache
def pool(shape: str) -> Pool:
    if shape == "images":
        return Pool.of(given.images())
    return Pool.of(given.train())


NETWORK, IMAGE_NETWORK = MLP((4,)), ConvNet(1, 4)
SMALL_SET: dict[str, Any] = {
    "network": NETWORK, "per_class": 2, "outer": 2, "inner": 2, "epochs": 1, "real_batch": 8, "warm_outer": 1,
    "warm_inner": 1, "augment": (),
}  # fmt: skip
CONDENSED: dict[str, tuple[str, Settings, tuple[int, ...]]] = {
    "dc": ("vectors", Settings("dc", **SMALL_SET), (0,)),
    "dcc": ("vectors", Settings("dcc", **SMALL_SET), (0, 3)),
    "dm": ("vectors", Settings("dm", **{**SMALL_SET, "init": "noise"}), (1,)),
    "subgroup": ("vectors", Settings("subgroup", **{**SMALL_SET, "groups": 2, "init": "means"}), (0,)),
    "soft labels": ("vectors", Settings("dcc", **{**SMALL_SET, "soft_labels": True, "lr_labels": 0.5}), (0,)),
    "dsa": ("images", Settings("dsa", **{**SMALL_SET, "network": IMAGE_NETWORK, "augment": ("flip", "scale")}), (0,)),
    "dsac": ("images", Settings("dsac", **{**SMALL_SET, "network": IMAGE_NETWORK, "augment": ("colour",)}), (2,)),
}


def condensed(name: str, store: Store) -> Made:
    shape, how, seeds = CONDENSED[name]
    sets = condense(pool(shape), how, seeds, store, checkpoint=1, quiet=True)
    parts: dict[str, Any] = {}
    for number, made in enumerate(sets):
        whole = {"x": made.x, "labels": made.labels, "losses": made.losses, "init_ids": made.init_ids}
        parts |= {f"{part} {number}": value for part, value in whole.items()}
    return last(store, "model", **parts)


ARTEFACTS |= {f"condense/{name}": partial(condensed, name) for name in CONDENSED}


def condensed_further(store: Store) -> None:
    """One outer step more than "condense/dcc", from where its checkpoint stands."""
    shape, how, seeds = CONDENSED["dcc"]
    condense(pool(shape), replace(how, outer=how.outer + 1), seeds, store, checkpoint=1, quiet=True)


@artefact("condense/published settings")
def _(store: Store) -> Made:
    return settings({name: Settings(name).to_json() for name in ("dc", "dsa", "dcc", "dsac", "dm", "subgroup")})


@artefact("condense/without")
def _(store: Store) -> Made:
    (made,) = condense(
        pool("vectors").without(FORGET), CONDENSED["dcc"][1], (0,), store, checkpoint=2, quiet=True
    )  # fmt: skip
    return last(store, "model", x=made.x)


@artefact("condense/retain")
def _(store: Store) -> Made:
    how = CONDENSED["dcc"][1]
    standing_in = condensed_retain(deletion(store), how, seed=4, store=store)
    assert standing_in.retain is not None
    return last(store, "model", x=standing_in.retain.columns["x"])


@artefact("condense/judged")
def _(store: Store) -> Made:
    """Nothing of it is kept in the store."""
    pooled = pool("vectors")
    training = NetworkTraining(epochs=4, lr=0.125, batch=16)
    accuracies = evaluate([pooled], pooled, NETWORK, training, networks=2, seed=1)
    velocity = kernel_velocity(pooled, pooled.x[:5], NETWORK, steps=2)
    return only({}, accuracies=accuracies.values, velocity=velocity)


def every_method() -> tuple[set[str], set[str]]:
    """Names of all attribution and condensation methods, and of those that are made here."""
    own = {name.split()[0] for name in METHODS} | {how.method for _, how, _ in CONDENSED.values()}
    return set(methods_of.METHODS) | set(CONDENSING), own


# --- what is too large to make here -------------------------------------------------------------------------


@artefact("whence/language model")
def _(store: Store) -> Made:
    """Its entry is the trained model's parameters."""
    inputs = model_inputs(Shape(1, 8, 2, 16, given.WORDS), Training(epochs=1, batch=4, rate=0.01), given.texts())
    return settings(inputs, key_of("model", inputs))


@artefact("whence/language model without a document")
def _(store: Store) -> Made:
    weights = np.ones(20, np.float32)
    weights[:3] = 0
    inputs = model_inputs(Shape(), Training(), given.texts(), weights)
    return settings(inputs, key_of("model", inputs))


def demo_part(name: str, store: Store) -> Made:
    corpus = Corpus("golden", given.texts(), given.questions())
    inputs = demo.Plan(corpus).inputs[name]
    return settings(inputs, key_of("scores", inputs))


ARTEFACTS |= {f"whence/demo {name}": partial(demo_part, name) for name in ("influence", "atoms", "forgetting")}
ARTEFACTS["whence/demo condensing"] = partial(demo_part, "condensing")


# --- files --------------------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """What is kept outside of the store: a dictionary, a condensed set, a builder's state half way."""
    decomp.save(by_hand(), folder / "dictionary")
    shape, how, seeds = CONDENSED["dcc"]
    condense(pool(shape), how, seeds, quiet=True)[0].save(folder / "condensed.npz")
    half_built(folder / "unfinished.safetensors")


BUILT_ON = BUILDERS["itda no limit"]


class Stopped(Exception):
    """The stream ends in the middle of a build."""


def half_built(path: Path) -> None:
    def breaks() -> Any:
        yield from stream().select(np.arange(128)).batches(32)
        raise Stopped

    try:
        BUILT_ON.build(breaks(), checkpoint=path, every=1)
    except Stopped:
        return
    raise AssertionError("the build should have been stopped")


def read_files(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Name of the artefact that each must equal -> its values."""
    dictionary = decomp.load(folder / "dictionary")
    made = Condensed.load(folder / "condensed.npz")
    finished = BUILT_ON.build(stream().batches(64), checkpoint=folder / "unfinished.safetensors")
    return {
        "dictionary/by hand": {"atoms": dictionary.atoms},
        "condense/dcc": {"x 0": made.x, "labels 0": made.labels, "losses 0": made.losses, "init_ids 0": made.init_ids},
        "dictionary/itda no limit": codes(finished),
    }
