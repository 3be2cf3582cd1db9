"""`whence unlearn document`: one language model forgets a document, without retraining."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.options import Count, Positive

from ._settings import registered, with_settings
from ._shared import ModelOptions, Printed

if TYPE_CHECKING:
    from torch import nn

    from whence.cache import TrainedModel
    from whence.cache.retrain.replicas import Replicas
    from whence.unlearn import UnlearningMethod
    from whence.unlearn.request import UnlearningRequest

INNER = r"^(?!.*(lm_head|unembed|embed_out))"  # every linear map but the output layer, as peft's "all-linear"


@dataclass(frozen=True, kw_only=True)
class Document(ModelOptions, Printed):
    """Remove a document from a language model by fine-tuning all weights, or low-rank updates, or a model's adapters.

    By default EK-FAC predicts the logits of a model trained without it, and fine-tuning matches them (dmm). The
    direction of the prediction is more reliable than its size, so `--scale` must come from requests with known outcome:
    `--pilots` names other documents, retrains without them and chooses the scale (embedded models only, whose training
    is known; retrained models are stored). For your own model, compare with retrainings of your own. Other methods
    (npo, simnpo, undial, rmu, grad-diff) have no target: how far they go depends on `--steps` and `--rate`.

    Example:

        whence unlearn document --document yield --scale 0.5 --out out/forgot.safetensors
        whence unlearn document --model MODEL --data FILE --document 3 --method npo --rank 8 --adapters --out out/lora
    """

    document: str
    """The document to forget: the value of `--column` that its passages share; of your own files, an id."""
    method: str = "dmm"
    """dmm, or another method for language models; `whence unlearn methods` lists all with their settings."""
    set: tuple[str, ...] = ()
    """Settings of another method than dmm, as name=value (beta=0.05 retain=kl)."""
    column: str | None = None
    """The property that names documents; topic by default, or of your own files `document`: the file's ids."""
    sites: tuple[str, ...] = ("*.mlp.*",)
    """Layers that the prediction moves, by clean name; "*" for every linear map."""
    damping: float = 0.1
    """Damping, as a multiple of each site's mean eigenvalue."""
    scale: float | None = None
    """Factor of the predicted change: this or --pilots, for dmm."""
    pilots: tuple[str, ...] = ()
    """Choose the scale on these documents instead."""
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Scales that are tried on the pilots."""
    steps: Count = 16
    """Steps of fine-tuning."""
    batch: Count = 8
    """Passages per step; as many forgotten and as many retained ones for another method than dmm."""
    rate: Positive = 3e-4
    """Learning rate of Adam. Low-rank updates allow ten times as much; larger rates change the retained passages."""
    rank: int = 0
    """Train low-rank updates of this rank of all linear maps but the output layer; 0 trains every weight."""
    adapters: bool = False
    """With --rank: write the updates alone, as adapters (PEFT) that go on the model. Parts of a joint map (GPT-2's
    queries, keys and values) then stay as they are."""
    epochs: Count = 12
    """Epochs of the training, which compute is compared with."""
    out: Path = Path("out/forgot.safetensors")
    """A .safetensors file: weights and buffers by name, the deletion log in its metadata. Or, for a pretrained model, a
    folder as transformers (or peft) opens it, with the log beside the weights (deletion_log.json)."""

    def precheck(self) -> None:
        from whence.cache import UsageError
        from whence.unlearn import METHODS

        registered(METHODS, self.method, self.set, what="unlearning method")
        if self.out.suffix != ".safetensors" and self.model in ("demo", "biographies"):
            raise UsageError(f"{self.model} is no model of transformers.", "Give --out FILE.safetensors.")
        if self.adapters and (not self.rank or self.out.suffix == ".safetensors"):
            raise UsageError("Adapters are a folder with low-rank updates.", "Give --rank N and --out FOLDER.")
        if self.method == "dmm" and self.set:
            raise UsageError("dmm has options of its own here.", "Use --scale, --damping, --steps, --batch and --rate.")
        if self.scale is not None and self.pilots:
            raise UsageError("--scale and --pilots exclude each other: pilots choose the scale.", "Give one of them.")
        if self.method == "dmm" and self.scale is None and not self.pilots:
            raise UsageError(
                "The size of the prediction is not calibrated: it can exceed the effect of a removal many times.",
                "Give either --scale, or --pilots to choose it on other documents.",
            )
        if self.method != "dmm" and (self.scale is not None or self.pilots):
            raise UsageError(f"{self.method} predicts nothing to be scaled.", "Leave --scale and --pilots out.")

    def run(self) -> None:
        from whence.cache.model.stateless import named_parameters
        from whence.pretrained import save_pretrained
        from whence.unlearn.loop import run
        from whence.unlearn.lora import merge, save_adapters

        self.precheck()
        trained = self.load_named(self.model, self.sites).trained
        job = _Forgetting(self, trained)
        scale = job.calibrated() if self.pilots else self.scale
        request = job.request(self.document)
        done = run(job.method(scale), request, quiet=self.quiet)
        before, after = job.losses(trained, request), job.losses(done.trained(), request)
        forgot = merge(done.module()) if self.rank and not self.adapters else done.module()
        if self.adapters:
            save_adapters(self.out, forgot, self.model)
        elif self.out.suffix == ".safetensors":
            buffers = {name: b for name, b in forgot.named_buffers() if name in forgot.state_dict()}
            _save(self.out, named_parameters(forgot) | buffers, done.log.to_json())
        else:
            save_pretrained(self.out, self.model, self, trained.model, forgot, quiet=self.quiet)
        if self.out.suffix != ".safetensors":
            (self.out / "deletion_log.json").write_text(done.log.to_json(), "utf-8")
        facts = {
            "passages": len(request.forget), "method": self.method, "scale": scale,
            "passes": done.passes, "of retraining": done.ratio,
            "forgotten before": before[0], "forgotten after": after[0],
            "retained before": before[1], "retained after": after[1],
            "stopped": [stop.why for stop in done.stopped], "warnings": list(done.warnings), "file": str(self.out),
        }  # fmt: skip
        self.show(
            facts,
            f"{len(request.forget)} passages of {self.document!r} forgotten by {done.method}"
            + ("\n" if scale is None else f" at scale {scale:g}\n")
            + f"nats per token: forgotten {before[0]:.3f} -> {after[0]:.3f}, "
            f"retained {before[1]:.3f} -> {after[1]:.3f}\n"
            f"{done.passes:.0f} example passes, {100 * done.ratio:.1f} % of retraining"
            + ("\n" if scale is None else ", beside the factor fit\n")
            + "".join(f"stopped at step {stop.step}: {stop.why}\n" for stop in done.stopped)
            + "".join(f"warning: {text}\n" for text in done.warnings)
            + f"written: {self.out}",
        )


@dataclass(frozen=True, eq=False)
class _Forgetting:
    """A command's trained model, and requests to it."""

    job: Document
    trained: "TrainedModel"

    def replicas(self) -> "Replicas":
        from whence.cache.retrain.replicas import Replicas
        from whence.pretrained import parts_of
        from whence.unlearn import lora

        model = self.trained.model
        if not self.job.rank:
            return Replicas.of([model])
        parts = {name.rpartition(".")[0] for name in parts_of(model)} if self.job.adapters else set()
        left = "|".join(re.escape(name) for name in sorted(parts))
        return lora(model, self.job.rank, layers=f"^(?!({left})$){INNER[1:]}" if parts else INNER)

    def request(self, document: str) -> "UnlearningRequest":
        from whence.cache.retrain.recipe import AdamW, Recipe
        from whence.unlearn import UnlearningRequest
        from whence.unlearn.forget_sets import document as passages

        trained = self.trained
        about = trained.train.about
        column = self.job.column or ("topic" if "topic" in about else "document")
        same = [value for value in about.get(column, ()) if str(value) == document]  # an id may be a number
        forget = passages(trained.train, same[:1] or document, column)
        recipe = Recipe(self.job.epochs, self.job.batch, AdamW(self.job.rate))
        return UnlearningRequest(self.replicas(), trained.task, trained.train, forget, recipe)

    def method(self, scale: float | None) -> "UnlearningMethod":
        """The method with its settings; at a scale DMM with the model's own influence datamodel, whose factors come
        from the store once fitted."""
        from whence import attrib
        from whence.cache.retrain.recipe import AdamW
        from whence.unlearn import DMM, METHODS, Influence, Matching

        job, optimiser = self.job, AdamW(self.job.rate)
        if scale is None:
            kind = METHODS[job.method]
            sizes = dict.fromkeys(("forget_batch", "retain_batch", "batch_size"), job.batch)
            given: dict[str, Any] = {"steps": job.steps, "optimiser": optimiser, **sizes}
            return with_settings(kind, job.set, {f.name: given[f.name] for f in fields(kind) if f.name in given})
        own = Influence(attrib.EKFAC(damping=attrib.Damping(job.damping)).fit(self.trained))
        matching = Matching(job.steps, job.batch, 1, 1, optimiser=optimiser)
        return DMM(own, matching, scale, ahead=0.0 if job.rank else 1.0)

    def losses(self, trained: "TrainedModel", request: "UnlearningRequest") -> tuple[float, float]:
        """Nats per token on what is forgotten, and on 64 retained passages."""
        from whence.unlearn.audit import loss_per_token

        rows = np.random.default_rng(0).permutation(len(request.kept))[:64]
        parts = (request.forgotten, request.kept.select(np.sort(rows)))
        found = [float(loss_per_token(trained, part)[0]) for part in parts]
        return found[0], found[1]

    def calibrated(self) -> float:
        """The scale at which the pilots' losses are nearest to those of models retrained without them.

        Raises UsageError when the document is among its pilots, or the model's training is not known.
        """
        from whence.cache import UsageError
        from whence.cache.jobs.progress import say
        from whence.unlearn.loop import run

        job = self.job
        if job.document in job.pilots:
            raise UsageError(
                f"{job.document!r} cannot calibrate its own removal.", "Name pilots among the other documents."
            )
        errors = dict.fromkeys(job.scales, 0.0)
        for pilot in job.pilots:
            request = self.request(pilot)
            oracle = self.trained.at(retrained(self, request))
            before, goal = self.losses(self.trained, request)[0], self.losses(oracle, request)[0]
            for scale in job.scales:
                found = self.losses(run(self.method(scale), request).trained(), request)[0]
                errors[scale] += ((found - goal) / (goal - before)) ** 2
                say(f"pilot {pilot!r}, scale {scale:g}: {before:.3f} -> {found:.3f}, retrained {goal:.3f}")
        return min(errors, key=lambda scale: errors[scale])


def retrained(job: _Forgetting, request: "UnlearningRequest") -> "nn.Module":
    """The demo's model retrained without a document, or from the store. Raises UsageError for another model or data."""
    from dataclasses import replace

    from whence.cache import UsageError
    from whence.corpora.models import REFERENCE_SHAPE, REFERENCE_TRAINING
    from whence.inputs import load_data
    from whence.language_model import trained_model

    if (job.job.model, job.job.data) != ("demo", "language-reference"):
        raise UsageError(
            "Only the demo's model can be retrained here to calibrate the scale.",
            "Leave --pilots out, and choose --scale by retrainings of your own.",
        )
    words = load_data(job.job.data).vocabulary
    assert words is not None
    shape = replace(REFERENCE_SHAPE, vocabulary=len(words))
    weights = request.left.astype(np.float32)
    train, store = job.trained.train, job.trained.store
    assert store is not None
    return trained_model(
        shape, REFERENCE_TRAINING, train, store, weights=weights, desc="retraining", quiet=job.job.quiet
    )


def _save(path: Path, parameters: Any, log: str) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous().clone() for name, p in parameters.items()}
    save_file(tensors, path, {"deletion_log": log})
