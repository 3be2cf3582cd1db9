"""Without these data: datamodels, unlearning methods, and their evaluation against retrained oracles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from whence.cache.display.files import ENDINGS, save_table
from whence.options import Count, Page, ending

from ._classifier import ClassifierOptions, forget_ids
from ._settings import methods_command, registered, values_of
from ._shared import Printed, Stored, Tabled
from ._unlearn_arrays import EvaluateArrays
from ._unlearn_document import Document
from ._unlearn_language import EvaluateLanguage
from ._unlearn_margins import Margins

if TYPE_CHECKING:
    from whence.cache import Examples
    from whence.unlearn import UnlearningMethod
    from whence.unlearn.request import UnlearningRequest


@dataclass(frozen=True)
class Datamodel(Stored, Tabled):
    """Fit a datamodel to a bank: every logit of every point as a linear function of the training set.

    It prints the linear datamodeling score on held-out masks. `whence unlearn run --datamodel NAME` uses the stored
    datamodel.

    Example:

        whence unlearn datamodel digits-subsets --method ridge --name digits-ridge
    """

    bank: tyro.conf.Positional[str]
    """The bank's key or name (`whence bank run`)."""
    method: Literal["ridge", "lasso"] = "ridge"
    """The penalty of the regression."""
    name: str | None = None
    """A name for the weights in the store."""

    def run(self) -> None:
        from whence.cache.retrain.retrained import retrained_from
        from whence.unlearn.datamodels import lasso, ridge

        store = self.open_store()
        entry = store.get(self.bank)
        found = {"ridge": ridge, "lasso": lasso}[self.method](retrained_from(entry))
        same = {name: entry.inputs[name] for name in ("train", "points")}
        key = found.save(store, {"bank": entry.key, "method": self.method, **same})
        if self.name:
            store.name(self.name, store.get(key))
        lds = {name: getattr(found.lds, name) for name in ("value", "low", "high", "subsets")}
        lines = [f"{self.method} on {found.trainings} models: penalty {found.penalty:g}, LDS {found.lds}"]
        lines += [f"  penalty {p:<10g} LDS {score:.3f} on the validation masks" for p, score in found.choices.items()]
        facts = {"key": key, "penalty": found.penalty, "lds": lds}
        rows = [
            {"penalty": p, "validation_lds": score, "chosen": p == found.penalty} for p, score in found.choices.items()
        ]
        self.show_table(facts, "\n".join([*lines, f"weights: {key}"]), rows)


@dataclass(frozen=True, kw_only=True)
class _Setting(ClassifierOptions):
    """The forget set, the ensemble and the datamodel."""

    forget: str = "random:20"
    """random:20, random:20:3 (a seed), neighbours:17:20 (of example 17, in its class), class:8:20, 3,17,29, a file."""
    models: Count = 32
    """Models in the ensemble that unlearns; distances need several."""
    bank: Count = 512
    """Models retrained on random subsets for the datamodel of dmm and dm-direct."""
    datamodel: str | None = None
    """A datamodel that `whence unlearn datamodel` stored, by name or key, instead."""
    steps: Count = 80
    """Steps of matching, for dmm and oracle-matching."""

    def prepared(self) -> "Prepared":
        from whence.unlearn import UnlearningRequest

        store = self.open_store()
        bank = self.make_bank()
        ids = forget_ids(self.forget, bank.train)
        return Prepared(self, bank, store, UnlearningRequest.of_bank(bank, ids, self.models, store=store))


@dataclass(frozen=True, eq=False)
class Prepared:
    """Data, bank and models of a command."""

    setting: _Setting
    bank: Any
    store: Any
    request: "UnlearningRequest"

    def oracles(self) -> Any:
        from whence.cache.retrain.retrained import oracle_masks

        count = 2 * self.setting.models
        masks = oracle_masks(self.bank.train.ids, self.request.forget, count)
        return self.bank.run(masks, 20_000 + np.arange(count), self.store)

    def datamodel(self) -> Any:
        """The datamodel that was named, or one fitted now. Raises DataError if it was fitted on other data."""
        from whence.cache import DataError
        from whence.cache.jobs.progress import say
        from whence.cache.retrain.retrained import subset_masks
        from whence.unlearn.datamodels import Regression, ridge

        if self.setting.datamodel is not None:
            entry = self.store.get(self.setting.datamodel)
            found = Regression.of(entry)
            own = {"train": self.bank.train.fingerprint, "points": self.bank.points.fingerprint}
            if any(entry.inputs.get(name) != value for name, value in own.items()):
                raise DataError(
                    f"The datamodel {self.setting.datamodel!r} was fitted on other data than "
                    f"{self.setting.data or self.setting.on or 'digits'!r}.",
                    "Fit one to a bank of this data (`whence bank run`), or leave --datamodel out.",
                )
            return found
        masks = subset_masks(len(self.bank.train), self.setting.bank, self.setting.share)
        found = ridge(self.bank.run(masks, store=self.store))
        say(f"datamodel: penalty {found.penalty:g}, LDS {found.lds}")
        return found

    def method(self, name: str, settings: Sequence[str] = ()) -> "UnlearningMethod":
        """The method of a name with its settings, given the datamodel or the oracles that it needs. Raises UsageError
        for a name or setting that is not known."""
        from whence.unlearn import METHODS

        values = checked(name, settings, self.setting.steps)
        sources: dict[str, Callable[[], Any]] = {"datamodel": self.datamodel, "oracles": self.oracles}
        return METHODS[name](**values | {field: sources[field]() for field in sources if field in values})


def checked(name: str, settings: Sequence[str], steps: int) -> dict[str, Any]:
    """The settings of a method by name, None for a datamodel or oracles that are still to be computed. Raises
    UsageError for a name or setting that is not known."""
    from dataclasses import fields

    from whence.cache import UsageError
    from whence.cache.retrain.recipe import AdamW
    from whence.unlearn import METHODS, Matching

    registered(METHODS, name, what="unlearning method")
    given: dict[str, Any] = {"datamodel": None, "oracles": None}
    for text in settings:
        if (field := text.partition("=")[0].strip()) in given:
            raise UsageError(f"{name} computes {field!r} itself.", "Use --datamodel, --bank or --models.")
    given["matching"] = Matching(steps=steps, optimiser=AdamW(1e-2))
    if name == "retrain":
        given["seed"] = 50_000  # an independent oracle
    own = {field.name for field in fields(METHODS[name])}
    return values_of(METHODS[name], settings, {field: value for field, value in given.items() if field in own})


@dataclass(frozen=True)
class Run(_Setting):
    """Remove a forget set from trained models, and write their weights with the deletion log.

    Example:

        whence unlearn run --method dmm --forget neighbours:17:20 --models 8 --out out/forgot.npz
    """

    method: str = "dmm"
    """`whence unlearn methods` lists all of them with their settings."""
    set: tuple[str, ...] = ()
    """Settings of the method, as name=value (epochs=4 optimiser.lr=0.01)."""
    out: Path = Path("out/unlearned.npz")
    """Weights and buffers by name, [models, ...], and the deletion log as JSON."""

    def precheck(self) -> None:
        checked(self.method, self.set, self.steps)

    def run(self) -> None:
        from whence.cache.model.bridge import to_numpy
        from whence.unlearn.loop import run

        self.precheck()  # before anything is trained
        prepared = self.prepared()
        done = run(prepared.method(self.method, self.set), prepared.request, quiet=False)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: to_numpy(v) for name, v in (done.models.views() | done.models.buffers).items()}
        np.savez(self.out, deletion_log=np.array(done.log.to_json()), **weights)  # type: ignore[arg-type]
        print(
            f"{done.method}: {len(prepared.request.forget)} examples forgotten by {len(done.models)} models in "
            f"{done.seconds:.1f} s, {done.passes:.0f} example passes each ({100 * done.ratio:.1f} % of retraining)"
        )
        for text in done.warnings:
            print(f"  warning: {text}")
        for stop in done.stopped:
            print(f"  model {stop.model} stopped at step {stop.step}: {stop.why}")
        print(f"kept: {done.log.entries[-1].kept}\nwritten: {self.out}")


@dataclass(frozen=True)
class Plan(_Setting, Tabled):
    """Predict cost and KLoM of a no-op, a Newton step, DMM and retraining for a forget set, and choose one.

    The prediction is calibrated on pilot requests of the same size that share no example with the forget set, half
    random, half neighbours. Their oracles are trained and stored.

    Example:

        whence unlearn plan --forget neighbours:17:20
    """

    pilots: Count = 2
    """Pilot requests."""
    slack: float = 1.0
    """Accepted nats above noise."""

    def run(self) -> None:
        from dataclasses import replace

        from whence.unlearn.evaluate import OracleSplit
        from whence.unlearn.methods import DMM, Newton
        from whence.unlearn.planner import candidates, pilot_factors, plan_deletion
        from whence.unlearn.request import UnlearningRequest

        prepared = self.prepared()
        newton, dmm = prepared.method("newton"), prepared.method("dmm")
        assert isinstance(newton, Newton) and isinstance(dmm, DMM)  # noqa: PT018
        datamodel: Any = dmm.datamodel
        splits, seen = [], prepared.request.forget
        for number in range(self.pilots):
            forget = pilot_set(prepared.bank.train.without(seen), len(prepared.request.forget), number)
            seen = np.union1d(seen, forget)
            pilot: UnlearningRequest = replace(prepared.request, forget=forget)
            splits.append(OracleSplit.of(pilot, replace(prepared, request=pilot).oracles(), prepared.bank.points))
        ways = candidates(prepared.request, newton=newton, dmm=dmm)
        factors = pilot_factors(splits, ways, datamodel)
        plan = plan_deletion(prepared.request, ways, factors, datamodel, slack=self.slack)
        options = {
            o.candidate.name: {
                "p95": o.klom,
                "low": o.low,
                "high": o.high,
                "mean": o.mean,
                "passes": o.candidate.passes,
            }
            for o in plan.options
        }
        facts = {"chosen": plan.chosen, "why": plan.why, "floor": plan.floor, "options": options}
        rows = [{"way": name, **values, "chosen": name == plan.chosen} for name, values in options.items()]
        self.show_table(facts, str(plan), rows)


def pilot_set(train: "Examples", size: int, seed: int) -> np.ndarray:
    """Ids for a pilot request: half the neighbours of an example within its class, half random others."""
    from whence.unlearn import forget_sets

    near = forget_sets.neighbours(train, int(train.ids[seed]), max(1, size // 2), within="y")
    rest = size - len(near)
    return near if not rest else np.sort(np.r_[near, forget_sets.random_set(train.without(near), rest, 99 + seed)])


@dataclass(frozen=True)
class Evaluate(_Setting, Printed):
    """Evaluate unlearning methods against retrained oracles: KLoM with its null row, U-LiRA, energy distance, compute.

    Example:

        whence unlearn evaluate --methods dmm,descent-ascent,scrub --forget neighbours:17:20 --out out/near.json
    """

    methods: str = "dmm,oracle-matching,descent-ascent,fine-tune"
    """Names, with commas; `whence unlearn methods` lists all of them."""
    direction: Literal["unlearned||oracle", "oracle||unlearned"] = "unlearned||oracle"
    """Direction of the divergence in KLoM."""
    bins: Count | None = None
    """Bins of the histograms; a fifth of the models, at most 20, by default."""
    out: Annotated[Path, ending(*ENDINGS)] = Path("out/unlearning.json")
    """The results (.json, which `whence unlearn report` reads) or their table (.csv, .parquet); a page is beside it."""
    easydub: Path | None = None
    """Also write the margins of all models in the folders of EasyDUB, as forget set 1."""

    def precheck(self) -> None:
        for name in self.methods.split(","):
            checked(name.strip(), (), self.steps)

    def run(self) -> None:
        from whence.unlearn.ensembles import EasyDUB
        from whence.unlearn.evaluate import OracleSplit, evaluate
        from whence.unlearn.loop import run
        from whence.unlearn.metrics import KLoM
        from whence.unlearn.report import save
        from whence.unlearn.results import to_json, to_rows

        names = [name.strip() for name in self.methods.split(",")]
        self.precheck()  # before anything is trained
        prepared = self.prepared()
        metric = KLoM(self.direction, self.bins)
        split = OracleSplit.of(prepared.request, prepared.oracles(), prepared.bank.points, metric)
        results = [run(prepared.method(name), prepared.request, quiet=False) for name in names]
        found = evaluate(split, results, title=self.forget)
        if self.easydub is not None:
            dataset = Path(self.on or self.data or "digits").stem
            EasyDUB(self.easydub, dataset, self.network if self.on is None else "own").write_split(split, 1, results)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.suffix == ".json":
            self.out.write_text(to_json(found))
        else:
            save_table(self.out, to_rows(found))
        page = save([found], self.out.with_suffix(".html"))
        print(to_json(found) if self.json else f"{found}\n\nwritten: {self.out}, {page}")


Methods = methods_command("unlearning", "whence unlearn methods", "whence.unlearn")


@dataclass(frozen=True)
class Report:
    """Write one page for several evaluations: KLoM against compute for every method, with the null row.

    Example:

        whence unlearn report out/random.json out/near.json --out out/unlearning.html
    """

    evaluations: tyro.conf.Positional[tuple[Path, ...]]
    """Files that `whence unlearn evaluate` wrote."""
    out: Page = Path("out/unlearning.html")
    """The page to write."""

    def run(self) -> None:
        from whence.cache import DataError, UsageError
        from whence.unlearn.report import save
        from whence.unlearn.results import from_json

        if not self.evaluations:
            raise UsageError("There is nothing to report.", "Name files that `whence unlearn evaluate` wrote.")
        missing = [path for path in self.evaluations if not path.is_file()]
        if missing:
            raise DataError(f"There is no file {missing[0]}.", "Run `whence unlearn evaluate --out` first.")
        print(save([from_json(path.read_text()) for path in self.evaluations], self.out))


COMMANDS = {
    "datamodel": Datamodel,
    "plan": Plan,
    "run": Run,
    "methods": Methods,
    "document": Document,
    "evaluate": Evaluate,
    "evaluate-arrays": EvaluateArrays,
    "evaluate-language": EvaluateLanguage,
    "margins": Margins,
    "report": Report,
}
