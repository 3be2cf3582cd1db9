"""The demo on handwritten digits: unlearning some of them, and condensing all of them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whence import attrib
from whence.cache import Classification, Examples, Store, TrainedModel
from whence.cache.display import strip
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import oracle_masks
from whence.unlearn import forget_sets
from whence.unlearn.condense import (
    Condensed,
    Pool,
    Settings,
    Training,
    condense,
    evaluate,
    network,
    select,
)
from whence.unlearn.datamodels import Influence, InverseProduct, exact
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.evaluate import evaluate as judged
from whence.unlearn.methods import DMM, DescentAscent, FineTune, Matching, Newton, OracleMatching
from whence.unlearn.request import UnlearningRequest
from whence.unlearn.results import to_json

from .classifiers import make_bank, recipe_of
from .corpora import digits

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class ForgettingPlan:
    """forget: number of random digits to forget. models: size of the ensemble. epochs: of every training. steps: of
    matching. damping: of the curvature that predicts the effect of a removal."""

    forget: int = 20
    models: int = 24
    epochs: int = 40
    steps: int = 40
    damping: float = 1.0


@dataclass(frozen=True)
class CondensingPlan:
    """Settings of the condensation. networks: trained on every set. sets: how many random or synthetic sets."""

    network: str = "mlp-64"
    per_class: int = 1
    outer: int = 40
    lr: float = 0.1
    epochs: int = 100
    networks: int = 5
    sets: int = 3

    @property
    def settings(self) -> Settings:
        net = network(self.network)
        return Settings("dcc", net, self.per_class, self.outer, 10, 5, 64, self.lr, warm_outer=0, augment=())


def forgotten(plan: ForgettingPlan, store: Store, device: str = "cpu", quiet: bool = False) -> dict[str, Any]:
    """Unlearning methods against oracles, whose outputs are stored: the evaluation as JSON, and the number of examples.
    The datamodel is influence, which needs no retraining."""
    bank = digits_bank(plan.epochs, device)
    ids = forget_sets.random_set(bank.train, plan.forget)
    seeds = 10_000 + np.arange(plan.models)
    models: Replicas = bank.train_replicas(np.ones((plan.models, len(bank.train)), bool), seeds, quiet=quiet)
    count = 2 * plan.models
    oracles = bank.run(oracle_masks(bank.train.ids, ids, count), 20_000 + np.arange(count), store, quiet=quiet)
    request = UnlearningRequest(models, bank.task, bank.train, ids, bank.recipe, bank.build, seeds)  # type: ignore[arg-type]
    matching = Matching(steps=plan.steps, optimiser=AdamW(1e-2))

    inverses: dict[str, InverseProduct] = {}

    def inverse(trained: TrainedModel) -> InverseProduct:
        key = trained.fingerprint()  # two methods use it
        if key not in inverses:
            inverses[key] = exact(trained, request.kept, damping=plan.damping)
        return inverses[key]

    found = judged(
        OracleSplit.of(request, oracles, bank.points),
        [
            DMM(lambda trained: Influence(inverse(trained)), matching),
            OracleMatching(oracles, matching),
            Newton(inverse),
            DescentAscent(),
            FineTune(),
        ],
        resamples=0,
    )
    return {"examples": len(bank.train), "evaluation": to_json(found)}


def digits_bank(epochs: int, device: str = "cpu") -> Bank:
    """An MLP 64-16-10 on 400 digits, measured on these and 400 others."""
    return replace(make_bank("digits", "mlp-16", recipe_of(epochs, 50, 0.02, "sgd"), "logits,margins"), device=device)


def condensed(plan: CondensingPlan, store: Store, device: str = "cpu") -> dict[str, Any]:
    """Sets of equal size: accuracy of networks trained on each, percent, with its 95 % interval, and a picture (PNG in
    base64). Influence uses queries that no accuracy is reported on."""
    data, settings = digits(), plan.settings
    train, queried = _split(data.train)
    pool = Pool.of(_images(train))
    test = Pool.of(_images(data.queries), pool.classes, pool.scaling)
    seeds = tuple(range(plan.sets))
    sets: dict[str, list[Pool] | list[Condensed]] = {
        "chosen at random": [select(pool, "random", plan.per_class, seed) for seed in seeds],
        "chosen by herding": [select(pool, "herding", plan.per_class)],
        "chosen by influence": [
            select(pool, "influence", plan.per_class, scores=_influence(train, queried, store, device))
        ],
        "condensed": list(condense(pool, settings, seeds, store, device=device, quiet=True)),
    }
    rows = []
    for name, given in sets.items():
        found = evaluate(given, test, settings.network, Training(plan.epochs), plan.networks, quiet=True)
        low, high = found.interval()
        rows.append({"name": name, "mean": found.mean, "low": low, "high": high, "image": strip(given[0].x[..., 0])})
    return {
        "per_class": plan.per_class, "examples": len(train), "network": plan.network, "networks": plan.networks,
        "sets": rows,
    }  # fmt: skip


def _split(train: Examples, queries: int = 200) -> tuple[Examples, Examples]:
    """(the examples that sets are chosen from, the queries of influence)."""
    order = np.arange(len(train))
    return train.select(order[:-queries]), train.select(order[-queries:])


def _images(examples: Examples) -> Examples:
    columns = {"x": np.asarray(examples.columns["x"]).reshape(-1, 8, 8), "y": np.asarray(examples.columns["y"])}
    return Examples(columns, examples.ids)


def _influence(train: Examples, queries: Examples, store: Store, device: str) -> "xarray.DataArray":
    """Scores [query, train] of one network trained on all examples."""
    bank = digits_bank(20, device)
    own = Bank(bank.build, Classification(), train, queries, bank.recipe, device=device)
    model = own.train_replicas(np.ones((1, len(train)), bool)).module(0)
    trained = TrainedModel(model, train, Classification(), store=store, quiet=True)
    return attrib.EKFAC().fit(trained).score(queries)
