"""Methods for language models: their losses are those of the papers, they forget, and they keep what they retain."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unlearn import cases
from whence.cache import Examples, LanguageModelling, ModelError, UsageError
from whence.cache.retrain.recipe import SGD, AdamW
from whence.unlearn import audit
from whence.unlearn.loop import run
from whence.unlearn.methods import NPO, RMU, UNDIAL, GradDiff, SimNPO
from whence.unlearn.plan import FORWARD

TASK = LanguageModelling()
ALL = {"forget_batch": 4, "retain_batch": 26}
CASES: dict[str, Any] = {
    "GradDiff": GradDiff(0.5, **ALL),
    "GradDiff, KL": GradDiff(0.5, **ALL, retain="kl"),
    "NPO": NPO(0.7, 1.5, **ALL),
    "NPO, KL": NPO(0.7, 1.5, **ALL, retain="kl"),
    "SimNPO": SimNPO(2.0, 0.3, 1.5, **ALL),
    "SimNPO, KL": SimNPO(2.0, 0.3, 1.5, **ALL, retain="kl"),
    "UNDIAL": UNDIAL(3.0, **ALL),
    "UNDIAL, NLL": UNDIAL(3.0, 0.5, **ALL),
    "UNDIAL, KL": UNDIAL(3.0, 0.5, **ALL, retain="kl"),
    "RMU": RMU("mix", 2.0, 3.0, **ALL, seed=1),
    "RMU, absolute, NLL": RMU("mix", 2.0, 3.0, **ALL, seed=1, absolute=True, retain="nll"),
    "RMU, KL": RMU("mix", 2.0, 3.0, **ALL, retain="kl"),
}


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def slow(method: Any, now: Any, before: Any) -> float:
    """The loss of a method on all of the text, token by token."""
    tokens = [np.asarray(t) for t in cases.text().columns["input_ids"]]

    def logits(model: Any, text: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.as_tensor(text)[None])[0].numpy().astype(np.float64)

    def hidden(model: Any, text: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            x = model.embed(torch.as_tensor(text)[None])
            past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            return model.mix(x + past)[0].numpy().astype(np.float64)

    def nll(model: Any, text: np.ndarray) -> list[float]:
        z = logits(model, text)
        return [-log_softmax(z[t])[text[t + 1]] for t in range(len(text) - 1)]

    def retained() -> float:
        each: list[float] = []
        for text in tokens[4:]:
            if method.retain == "nll":
                each += nll(now, text)
            elif method.retain == "kl":
                for a, b in list(zip(logits(before, text), logits(now, text)))[:-1]:
                    p, q = log_softmax(a), log_softmax(b)
                    each.append(float((np.exp(p) * (p - q)).sum()))
            else:
                each += [float(((a - b) ** 2).mean()) for a, b in zip(hidden(now, text), hidden(before, text))][:-1]
        return float(np.mean(each))

    found: list[float] = []
    for text in tokens[:4]:
        losses = nll(now, text)
        if isinstance(method, GradDiff):
            found += [-method.weight * loss for loss in losses]
        elif isinstance(method, NPO):
            ratio = method.beta * (sum(nll(before, text)) - sum(losses))
            found.append(2 / method.beta * np.log(1 + np.exp(ratio)))
        elif isinstance(method, SimNPO):
            found.append(2 / method.beta * np.log(1 + np.exp(method.gamma - method.beta * np.mean(losses))))
        elif isinstance(method, UNDIAL):
            for t, (z, own) in enumerate(list(zip(logits(before, text), logits(now, text)))[:-1]):
                z[text[t + 1]] -= method.beta
                found.append(float(-(np.exp(log_softmax(z)) * log_softmax(own)).sum()))
        else:
            unit = np.random.default_rng(method.seed).random(16)
            unit /= np.linalg.norm(unit)
            for h, h0 in list(zip(hidden(now, text), hidden(before, text)))[:-1]:
                length = method.coefficient * (1 if method.absolute else np.linalg.norm(h0))
                found.append(float(((h - length * unit) ** 2).mean()))
    weight = {GradDiff: 1.0, RMU: getattr(method, "alpha", 0)}.get(type(method), method.__dict__.get("weight"))
    return float(np.mean(found)) + (weight * retained() if weight else 0.0)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_that_of_the_paper_token_by_token(name: str) -> None:
    request, method = cases.document(), CASES[name]
    phase = method.plan(request).phases[0]
    moved = request.models.with_flat(request.models.flat + 0.1 * torch.randn(2, request.models.flat.shape[1]))
    rows = torch.arange(30)
    extra = {"forget": (rows < 4).expand(2, -1), "progress": torch.zeros(2)}
    extra |= {name: table[:, rows] for name, table in phase.tables.items()}
    if phase.before is not None:
        extra |= request.models.apply(phase.before, request.pool.batch(rows), extra, shared=True)
    losses = moved.apply(phase.objective, request.pool.batch(rows), extra, shared=True)
    for e in range(2):
        slowly = slow(method, moved.module(e), request.models.module(e))
        assert float(losses[e]) == pytest.approx(slowly, rel=1e-4, abs=1e-6)


LEARNING = {
    "GradDiff": GradDiff(steps=12, optimiser=AdamW(3e-3)),
    "NPO": NPO(steps=12, optimiser=AdamW(3e-3)),
    "SimNPO": SimNPO(steps=25, optimiser=AdamW(3e-3)),
    "UNDIAL": UNDIAL(weight=1.0, steps=12, optimiser=AdamW(3e-3)),
    "RMU": RMU("mix", 10.0, 1.0, steps=25, optimiser=AdamW(3e-3)),
}


@pytest.mark.parametrize("retain", ["nll", "kl"])
@pytest.mark.parametrize("name", LEARNING)
def test_a_method_forgets_and_keeps_what_it_retains(name: str, retain: str) -> None:
    request = cases.document()
    before = [audit.loss_per_token([request.trained(e) for e in range(2)], part) for part in
              (request.forgotten, request.kept)]  # fmt: skip
    found = run(replace(LEARNING[name], retain=retain), request)
    models = [found.trained(e) for e in range(2)]
    rise = [audit.loss_per_token(models, part) - was for part, was in
            zip((request.forgotten, request.kept), before)]  # fmt: skip
    assert rise[0].mean() > 0.05
    assert rise[1].mean() < 0.7 * rise[0].mean()


def test_what_the_model_before_computes_is_counted() -> None:
    request, sizes = cases.document(), {"steps": 3, "forget_batch": 2, "retain_batch": 6}
    plain = run(GradDiff(**sizes), request).passes
    assert plain == 3 * 8
    assert run(GradDiff(**sizes, retain="kl"), request).passes == pytest.approx(plain + 3 * FORWARD * 6)
    assert run(UNDIAL(**sizes), request).passes == pytest.approx(plain + 3 * FORWARD * 2)
    assert run(NPO(**sizes), request).passes == pytest.approx(plain + FORWARD * 4)


def test_only_the_named_parameters_are_steered() -> None:
    request = cases.document()
    found = run(RMU("mix", steps=3, parameters=r"embed\..*", optimiser=SGD(0.1)), request)
    moved = {name: not torch.equal(value, request.models.views()[name]) for name, value in found.models.views().items()}
    assert [name for name, yes in moved.items() if yes] == ["embed.weight"]
    with pytest.raises(ModelError, match="No trained parameter"):
        run(RMU("mix", parameters="mlp"), request)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="NPO has no retained term 'l2'"):
        NPO(retain="l2")
    with pytest.raises(UsageError, match="predicts none"):
        run(UNDIAL(), cases.request())


def test_a_prompt_is_no_part_of_a_mean_over_predicted_tokens() -> None:
    """SimNPO's mean is over the labelled tokens."""
    text = cases.text()
    labels = [np.r_[np.full(3, -100), np.asarray(t)[3:]] for t in text.columns["input_ids"]]
    masked = Examples({**text.columns, "labels": labels}, text.ids, text.about)
    request = replace(cases.document(), train=masked)
    found = run(SimNPO(2.0, weight=0.0, steps=1, forget_batch=4, optimiser=SGD(0.0)), request).losses[0, 0]
    each = []
    for t in range(4):
        tokens = torch.as_tensor(np.asarray(text.columns["input_ids"][t]))
        with torch.no_grad():
            logp = request.models.module(0)(tokens[None])[0].log_softmax(-1)
        each.append(float(-logp[2:-1].gather(1, tokens[3:, None]).mean()))
    assert found == pytest.approx(np.mean(np.log1p(np.exp(-2 * np.array(each)))), rel=1e-4)
