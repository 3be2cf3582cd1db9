"""Documents forgotten by a language model without a single retraining, by one command:

    python -m benchmarks.unlearning document [--store FOLDER]

A transformer of two layers reads part of the Python language reference. An EK-FAC influence datamodel predicts how
every logit changes when a document is left out; DMM fine-tunes to that prediction. Its damping is calibrated on
pilot documents. Three other documents are then forgotten, and judged against an ensemble of retrained models that
never read them: loss on the document and on retained text, per-token KLoM with its null row, and curves of attack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache import Examples, LanguageModelling, Store, find_sites, say
from cache.bank import Bank
from cache.lanes import Lanes
from cache.retrained import Retrained, oracle_masks
from cache.training import AdamW, Recipe, Schedule
from unlearn import audit, forget_sets
from unlearn.datamodels import Influence, ekfac
from unlearn.deletion import Deletion
from unlearn.evaluate import Panel, evaluate
from unlearn.loop import Method, run
from unlearn.methods import DMM, NPO, GradDiff, Matching
from unlearn.metrics import KLoM
from unlearn.report import save, table

LENGTH, VOCABULARY, WIDTH = 64, 512, 64
MODELS = 8  # that forget; oracles are twice as many, for the null row
PILOTS = ("identifiers", "binary")
DOCUMENTS = ("objects", "async", "execmodel")
OTHERS = ("numeric-types", "calls", "sequence-types", "operator-summary", "strings", "comparisons", "import")
DAMPINGS = (1.0, 3.0, 10.0, 30.0)
RECIPE = Recipe(8, 16, AdamW(3e-3, (0.9, 0.98), weight_decay=0.1), Schedule("cosine", 0.1, 0.05), clip=1.0)
MATCHING = Matching(steps=16, batch_size=16, forget_multiplier=2, retain_multiplier=2, optimiser=AdamW(2e-3))
TASK = LanguageModelling()


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, d))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class Reader(nn.Module):
    """A decoder-only transformer in plain torch, so that the bank can train copies side by side."""

    def __init__(self, vocabulary: int, width: int = WIDTH, layers: int = 2, heads: int = 2, length: int = LENGTH):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.embed.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.place[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


@dataclass(frozen=True, eq=False)
class Library:
    """Text in three parts, the bank, and the models that read all of `train`."""

    train: Examples
    points: Examples
    bank: Bank
    models: Lanes
    store: Store

    def deletion(self, forget: np.ndarray) -> Deletion:
        return Deletion(self.models, TASK, self.train, forget, RECIPE, self.bank.build)

    def oracles(self, forget: np.ndarray, count: int, first_seed: int) -> Retrained:
        masks = oracle_masks(self.train.ids, forget, count)
        return self.bank.run(masks, first_seed + np.arange(count), self.store)


def library(store: Store) -> Library:
    from whence.corpora import language_reference

    everything = language_reference(LENGTH, VOCABULARY).train
    topics = {*PILOTS, *DOCUMENTS, *OTHERS}
    chosen = everything.select(np.array([t in topics for t in everything.about["topic"]]))
    others = np.flatnonzero([t in OTHERS for t in chosen.about["topic"]])
    held_out = np.random.default_rng(0).permutation(others)[:32]
    stays = np.ones(len(chosen), bool)
    stays[held_out] = False
    train, validation = chosen.select(stays), chosen.select(~stays)
    kept = np.flatnonzero([t in OTHERS for t in train.about["topic"]])
    sample = np.random.default_rng(1).permutation(kept)[:32]
    read = np.isin(train.about["topic"], [*PILOTS, *DOCUMENTS])
    read[sample] = True
    points = chosen.select(np.isin(chosen.ids, np.r_[train.ids[read], validation.ids]))
    bank = Bank(lambda seed: Reader(VOCABULARY), TASK, train, points, RECIPE, keep=("margins", "weights", "losses"))
    say(f"{len(train)} pieces of text to read, {len(validation)} held out; training {MODELS} models")
    everyone = bank.run(np.ones((MODELS, len(train)), bool), np.arange(MODELS), store)
    return Library(train, points, bank, lanes_of(bank, everyone), store)


def lanes_of(bank: Bank, retrained: Retrained) -> Lanes:
    """A bank's models themselves, from the weights that it kept."""
    like = Lanes.of([bank.build(int(seed)) for seed in retrained.seeds])
    return like.with_flat(torch.as_tensor(retrained["weights"]))


def per_model(on: Library, damping: float) -> Any:
    """A function from a model to its own influence datamodel; factors come from the store once fitted."""
    import attrib

    def make(model: nn.Module) -> Influence:
        sites = find_sites(model, "blocks*", quiet=True)
        factors = attrib.EKFAC().fit(
            model, TASK, on.train, sites=sites, store=on.store, options=attrib.FitOptions(quiet=True)
        )
        return Influence(model, TASK, on.train, ekfac(model, factors.with_damping(damping)))

    return make


def losses(lanes: Lanes, forget: Examples, kept: Examples) -> tuple[float, float]:
    return tuple(float(audit.loss_per_token(lanes, TASK, part).mean()) for part in (forget, kept))  # type: ignore[return-value]


def calibrated(on: Library) -> float:
    """The damping at which DMM raises the pilots' loss by what their oracles say, in relative squared error.

    Oracles of a pilot share the models' seeds: the difference is then the document's, and little of the seed's.
    """
    errors = dict.fromkeys(DAMPINGS, 0.0)
    for title in PILOTS:
        forget = forget_sets.document(on.train, title, "topic")
        deletion = on.deletion(forget)
        before = losses(on.models, deletion.forgotten, deletion.kept.select(np.arange(64)))[0]
        oracles = lanes_of(on.bank, on.oracles(forget, MODELS, 0))
        wanted = losses(oracles, deletion.forgotten, deletion.kept.select(np.arange(64)))[0] - before
        for damping in DAMPINGS:
            two = Deletion(on.models.select([0, 1]), TASK, on.train, forget, RECIPE)
            after = run(DMM(per_model(on, damping), MATCHING), two).models
            start = losses(two.models, deletion.forgotten, deletion.forgotten)[0]
            found = losses(after, deletion.forgotten, deletion.forgotten)[0] - start
            errors[damping] += ((found - wanted) / wanted) ** 2 / len(PILOTS)
            say(f"  pilot {title!r}, damping {damping:g}: loss rises by {found:.3f}, oracles by {wanted:.3f}")
    return min(errors, key=lambda damping: errors[damping])


def show(store: Store, out: Path) -> None:
    on = library(store)
    say("calibrating the damping on pilot documents")
    damping = calibrated(on)
    print(f"damping {damping:g} x the mean eigenvalue, calibrated on {', '.join(PILOTS)}\n")
    evaluations, lines = [], []
    for title in DOCUMENTS:
        forget = forget_sets.document(on.train, title, "topic")
        deletion = on.deletion(forget)
        bank = on.oracles(forget, 2 * MODELS, 1000)
        oracles = lanes_of(on.bank, bank)
        unlearned = run(DMM(per_model(on, damping), MATCHING), deletion)
        kept = on.points.select(np.isin(on.points.ids, deletion.kept.ids) & np.isin(on.points.about["topic"], OTHERS))
        trained, oracle, after = (
            losses(lanes, deletion.forgotten, kept) for lanes in (on.models, oracles, unlearned.models)
        )
        gap = oracle[0] - trained[0]
        lines.append(
            f"| {title} | {len(forget)} | {trained[0]:.3f} / {trained[1]:.3f} | {oracle[0]:.3f} / {oracle[1]:.3f} "
            f"| {after[0]:.3f} / {after[1]:.3f} | {(after[0] - oracle[0]) / gap:+.2f} | {after[1] - oracle[1]:+.3f} "
            f"| {100 * unlearned.ratio:.1f} % |"
        )
        say(lines[-1])
        panel = Panel.of(deletion, bank, on.points, KLoM(bins=3))
        methods: list[Method | Any] = [unlearned, GradDiff(steps=20), NPO(steps=20)]
        evaluations.append(evaluate(panel, methods, title=f"document {title!r}"))
        attacks(title, deletion, {"trained": on.models, "oracles": oracles, "DMM": unlearned.models})
    print("\nmean loss in nats a token, forgotten / retained\n")
    print("| document | pieces | trained | oracles | DMM | off the oracle, gaps | retained, nats | passes |")
    print("|---" * 8 + "|")
    print("\n".join(lines))
    for evaluation in evaluations:
        print(f"\n{evaluation.title}, per token, {evaluation.models} models a side\n\n{table(evaluation)}")
    print(f"\nreport: {save(evaluations, out / 'unlearning-document.html', 'Documents forgotten')}")


def attacks(title: str, deletion: Deletion, groups: dict[str, Lanes]) -> None:
    """Curves of the document's loss under relearning and rounding, and what greedy continuation gives away."""
    text = deletion.forgotten
    shown, asked = text.select(np.arange(0, len(text), 2)), text.select(np.arange(1, len(text), 2))
    print(
        f"\n{title}: loss a token on the unshown half after 0, 2, 5 and 10 steps of relearning the other half; "
        "at 8, 5, 4 and 3 bits; share of tokens extracted\n"
    )
    for name, lanes in groups.items():
        again = relearned(lanes, shown, asked)
        bits = audit.quantisation_curve(lanes, TASK, text, (8, 5, 4, 3)).mean(1)
        share = audit.extraction(lanes, TASK, text).mean()
        print(f"| {name} | {_numbers(again)} | {_numbers(bits)} | {share:.3f} |")


def relearned(lanes: Lanes, shown: Examples, asked: Examples) -> Sequence[float]:
    curve = audit.relearning_curve(lanes, TASK, shown, asked, steps=10).mean(1)
    return [float(curve[k]) for k in (0, 2, 5, 10)]


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{v:.3f}" for v in values)
