"""The demo on handwritten digits: forgetting some of them, and a few in the place of all."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from whence import attrib
from whence.cache import Classification, Examples, Store, find_sites, model_fingerprint
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import oracle_masks
from whence.unlearn.condense import (
    Condensed,
    Pool,
    Settings,
    Training,
    by_influence,
    condense,
    evaluate,
    network,
    select,
)
from whence.unlearn.datamodels import Influence, InverseProduct, exact
from whence.unlearn.deletion import Deletion
from whence.unlearn.evaluate import Panel
from whence.unlearn.evaluate import evaluate as judged
from whence.unlearn.methods import DMM, DescentAscent, FineTune, Matching, Newton, OracleMatching

from .charts import strip
from .corpora import digits
from .story import Condensing, Deleted, Forgetting, Set

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class ForgettingPlan:
    """forget: digits to forget, drawn at random. models: that forget; epochs: of every training; steps: of matching;
    damping: of the curvature that predicts what forgetting does."""

    forget: int = 20
    models: int = 24
    epochs: int = 40
    steps: int = 40
    damping: float = 1.0


@dataclass(frozen=True)
class CondensingPlan:
    """Settings of the condensation; networks trained on every set, and how often a set is drawn or made."""

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


def forgotten(plan: ForgettingPlan, store: Store, quiet: bool = False) -> Forgetting:
    """Every way of forgetting against oracles, whose outputs are kept in the store. The datamodel is influence, which
    needs no retraining."""
    from whence.unlearn import forget_sets

    bank, task = digits_bank(plan.epochs), Classification()
    ids = forget_sets.random_set(bank.train, plan.forget)
    seeds = 10_000 + np.arange(plan.models)
    models: Replicas = bank.train_replicas(np.ones((plan.models, len(bank.train)), bool), seeds, quiet=quiet)
    count = 2 * plan.models
    oracles = bank.run(oracle_masks(bank.train.ids, ids, count), 20_000 + np.arange(count), store, quiet=quiet)
    deletion = Deletion(models, task, bank.train, ids, bank.recipe, bank.build, seeds)  # type: ignore[arg-type]
    matching = Matching(steps=plan.steps, optimiser=AdamW(1e-2))

    made: dict[str, InverseProduct] = {}

    def inverse(model: nn.Module) -> InverseProduct:
        key = model_fingerprint(model).hex  # two methods want it
        if key not in made:
            made[key] = exact(model, task, deletion.kept, damping=plan.damping)
        return made[key]

    found = judged(
        Panel.of(deletion, oracles, bank.points),
        [
            DMM(lambda model: Influence(model, task, bank.train, inverse(model)), matching),
            OracleMatching(oracles, matching),
            Newton(inverse),
            DescentAscent(),
            FineTune(),
        ],
        resamples=0,
    )
    rows = [
        Deleted(
            row.method,
            row.klom["forget"].p95,
            row.klom["forget"].mean,
            row.klom["retain"].p95,
            row.klom["validation"].p95,
            None if number < 2 else row.ratio,
        )
        for number, row in enumerate(found.rows)
    ]
    return Forgetting(len(ids), len(bank.train), plan.models, tuple(rows))


def digits_bank(epochs: int) -> Bank:
    """An MLP 64-16-10 on 400 digits, measured on these and 400 others."""
    from .commands._classifier import make_bank

    return make_bank("digits", "mlp-16", epochs, 50, 0.02, "sgd", "logits,margins")


def condensed(plan: CondensingPlan, store: Store) -> Condensing:
    """Sets of equal size, and what networks learn from them. Influence is on digits that nothing is reported on."""
    data, settings = digits(), plan.settings
    train, asked = _split(data.train)
    pool = Pool.of(_images(train))
    test = Pool.of(_images(data.queries), pool.classes, pool.scaling)
    draws = tuple(range(plan.sets))
    sets: dict[str, list[Pool] | list[Condensed]] = {
        "drawn at random": [select(pool, "random", plan.per_class, seed) for seed in draws],
        "chosen by herding": [select(pool, "herding", plan.per_class)],
        "chosen by influence": [by_influence(pool, _influence(train, asked, store), plan.per_class)],
        "condensed": list(condense(pool, settings, draws, store, quiet=True)),
    }
    rows = []
    for name, given in sets.items():
        found = evaluate(given, test, settings.network, Training(plan.epochs), plan.networks, quiet=True)
        rows.append(Set(name, found.mean, *found.interval(), strip(given[0].x[..., 0])))
    return Condensing(plan.per_class, len(train), plan.network, plan.networks, tuple(rows))


def _split(train: Examples, asked: int = 200) -> tuple[Examples, Examples]:
    """What sets are made of, and what influence is asked about."""
    return train.select(np.arange(len(train) - asked)), train.select(np.arange(len(train) - asked, len(train)))


def _images(examples: Examples) -> Examples:
    columns = {"x": np.asarray(examples.columns["x"]).reshape(-1, 8, 8), "y": np.asarray(examples.columns["y"])}
    return Examples(columns, examples.ids)


def _influence(train: Examples, asked: Examples, store: Store) -> "xarray.DataArray":
    """Scores [query, train] of one network that learned all of them."""
    bank = digits_bank(20)
    model = (
        Bank(bank.build, Classification(), train, asked, bank.recipe)
        .train_replicas(np.ones((1, len(train)), bool))
        .module(0)
    )
    task, options = Classification(), attrib.FitOptions(quiet=True)
    factors = attrib.EKFAC().fit(model, task, train, sites=find_sites(model, quiet=True), store=store, options=options)
    return attrib.score(factors, model, task, asked, train, store=store, options=options)
