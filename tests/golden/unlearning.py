"""Unlearning methods, and the audits of what they leave."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from whence import unlearn
from whence.cache import SGD, AdamW, Classification, Examples, LanguageModelling, Store, TrainedModel
from whence.decomp import ITDA
from whence.unlearn import UnlearningRequest, audit, datamodels, methods
from whence.unlearn.traces import atoms_changed, remaining_influence

from . import models as given
from .registry import ARTEFACTS, Made, artefact, only, plain
from .retraining import DATAMODELS, FORGET, bank, reading_bank, retrained


def asked_for(method: Any) -> dict[str, Any]:
    """Settings of an unlearning method as far as they are plain."""
    out = {"class": type(method).__name__}
    for name in type(method).__dataclass_fields__:
        try:
            out[name] = plain(getattr(method, name))
        except Exception:  # a function or a model
            out[name] = "(given)"
    return out


def deletion(store: Store) -> UnlearningRequest:
    return UnlearningRequest.of_bank(bank(), FORGET, 3, seed=100, store=store)


def text_deletion(store: Store) -> UnlearningRequest:
    return UnlearningRequest.of_bank(reading_bank(), given.texts().ids[:3], 2, seed=100, store=store)


def exact_on_kept(trained: TrainedModel) -> datamodels.InverseProduct:
    return datamodels.exact(trained, given.train().without(FORGET), damping=0.5)


MATCHING = methods.Matching(steps=3, batch_size=16, retain_multiplier=3, optimiser=AdamW(0.0078125))
# where a gradient begins at zero, up to rounding, which Adam would make as large as any other
STEADY = SGD(0.125, momentum=0.5)
UNLEARNING: dict[str, Callable[[Store], Any]] = {
    "gradient ascent": lambda store: methods.GradientAscent(epochs=2.0, batch_size=2),
    "descent-ascent": lambda store: methods.DescentAscent(steps=3, forget_batch=2, retain_batch=8),
    "DM-Direct": lambda store: methods.DMDirect(DATAMODELS["ridge"](retrained("subsets", store)), scale=0.5),
    "DMM": lambda store: methods.DMM(DATAMODELS["ridge"](retrained("subsets", store)), MATCHING, scale=0.5),
    "DMM ahead": lambda store: methods.DMM(
        lambda trained: datamodels.Influence(exact_on_kept(trained)), MATCHING, ahead=0.5
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


def forgot(method: Any, asked: UnlearningRequest, points: Examples) -> Made:
    out = unlearn.run(method, asked)
    forgotten = [list(map(int, entry.forgotten)) for entry in out.log.entries]
    kept = [entry.kept for entry in out.log.entries]
    values = out.outputs(points, ("logits", "margins"))
    return only(
        {"method": asked_for(method), "forgotten": forgotten, "kept": kept}, weights=out.models.flat, passes=out.passes,
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
    replicas = unlearn.lora(text_deletion(store).models.module(0), rank=2, alpha=4.0, seed=3)
    asked = replace(text_deletion(store), models=replicas, seeds=np.array([7]))
    return forgot(UNLEARNING_TEXT["GradDiff"], asked, given.texts().select(range(5)))


def compared(train: Examples, model: Callable[[int], Any], task: Any, store: Store) -> dict[str, TrainedModel]:
    names = ("before", "after", "oracle")
    return {n: TrainedModel(model(seed), train, task, store=store, quiet=True) for seed, n in enumerate(names)}


@artefact("unlearn/traces influence")
def _(store: Store) -> Made:
    models = compared(given.train(), given.net, Classification(), store)
    return only({}, influence=remaining_influence(models, FORGET).values)


@artefact("unlearn/traces atoms")
def _(store: Store) -> Made:
    texts = given.texts()
    models = compared(texts, given.reader, LanguageModelling(), store)
    builder = ITDA(k=2, unexplained=0.2, seeding="none")
    found = atoms_changed(models, texts.ids[:3], "mix", builder)
    return only({}, count=found["count"].values, agreement=found["agreement"].values)


@artefact("unlearn/audit")
def _(store: Store) -> Made:
    request, texts = text_deletion(store), given.texts()
    models = [request.trained(number, quiet=True) for number in range(len(request.models))]
    return only(
        {},
        losses=audit.loss_per_token(models, texts),
        rounded=audit.quantisation_curve(models, texts, (4, 3)),
        relearned=audit.relearning_curve(models, texts.select(range(4)), texts, steps=2, batch_size=2),
        extracted=audit.extraction(models, texts, prefix=3, length=2),
    )
