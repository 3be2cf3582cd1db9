"""What is differentiated: a task gives the training loss, the loss under labels sampled from the model, and the
measurement whose change a query asks about.

All three return one number per example, summed (never averaged) over positions, in nats, and skip the same
positions: padding and labels of -100. Labels sampled from the model are masked exactly as the true ones are; an
unmasked sample would put the loss of padding and of prompts into the curvature.

A task of one's own is a class with these methods; being a frozen dataclass of plain values makes its settings
part of every key.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import DataError, ModelError
from . import rng
from .stateless import unwrapped, widened

Batch = dict[str, Tensor]
IGNORED = -100
TARGETS = ("y", "labels", "x", "input_ids", "example_id")  # never passed on by name


@runtime_checkable
class Task(Protocol):
    """The contract between a model, its data and everything that differentiates them."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss of each example, [b], summed over positions, in nats."""
        ...

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        """The same loss [b] with labels sampled from the model's own predictions, keyed by (seed, example id,
        position): its gradients have the Fisher matrix as their second moment."""
        ...

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a query measures, [b]; influence is its predicted change."""
        ...

    def positions(self, batch: Batch) -> Any:
        """Bool [b s] (or [b 1]): the positions whose layer inputs count in the curvature's input moments. Several such
        masks, of different widths, where a model has sides (encoder and decoder)."""
        ...

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs on the batch, [b s c] or [b c]."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """JSON-able description that enters every key."""
        ...


def outputs_of(out: Any) -> Tensor:
    """The logits tensor of what a model returned (a tensor, a tuple, a dict, or a Hugging Face output)."""
    if isinstance(out, Tensor):
        return out
    if hasattr(out, "logits"):
        return out.logits
    if isinstance(out, Mapping) and isinstance(out.get("logits"), Tensor):
        return out["logits"]
    if isinstance(out, (tuple, list)) and isinstance(out[0], Tensor):
        return out[0]
    raise DataError(
        f"The model returned a {type(out).__name__}, which holds no logits.",
        "Return a tensor, a tuple that begins with one, or logits by that name in an object or dict; or write a Task.",
    )


def column(batch: Batch, name: str) -> Tensor:
    if name not in batch:
        raise DataError(
            f"The batch has no column {name!r}; it has {', '.join(sorted(batch))}.",
            f"Name a column of the examples {name!r}, or use the task that fits these data.",
        )
    return batch[name]


class Settings:
    """The settings of a task that is a dataclass of plain values: its name and its fields."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"task": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


class TokenTask(Settings, ABC):
    """The log-probability of labelled tokens: what language models have in common, whatever predicts a token.

    A subclass says where labels are (`labelled`), and which logits predict them (`logits` of as many positions, or
    `predicting`). Only counted positions enter: what the logits are elsewhere, NaN included, changes nothing. The
    measurement is the log-probability of the labelled tokens, or their margin: the sum over tokens of log p/(1-p),
    whose gradient does not vanish where p is near 1 (Park et al. 2023, TRAK).
    """

    measure: str

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return outputs_of(model(column(batch, "input_ids"), **extras(model, batch)))

    @abstractmethod
    def labelled(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """The tokens to predict, and where they count."""

    def predicting(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b t c"]:
        """The logits that predict the labelled tokens."""
        return self.logits(model, batch)

    def places(self, batch: Batch) -> Int[Tensor, "b t"]:
        """Positions that sampled labels are keyed by, the same under any padding."""
        return real_tokens(batch).cumsum(1) - 1  # counted from the first real token

    def positions(self, batch: Batch) -> Bool[Tensor, "b s"]:
        return real_tokens(batch)

    def token_logprobs(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b t"]:
        """log p of every labelled token, 0 where nothing is counted."""
        return _token_logprobs(self.predicting(model, batch), *self.labelled(batch))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        return -self.token_logprobs(model, batch).sum(1)

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Float[Tensor, " b"]:
        logits = self.predicting(model, batch)
        _, counted = self.labelled(batch)
        u = rng.uniforms(
            seed, column(batch, "example_id").cpu().numpy(), np.ascontiguousarray(self.places(batch).cpu().numpy())
        )
        drawn = rng.categorical(_counted(logits, counted).detach(), u)
        return -_token_logprobs(logits, drawn, counted).sum(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        if self.measure == "logprob":
            return self.token_logprobs(model, batch).sum(1)
        targets, counted = self.labelled(batch)
        rows = _counted(self.predicting(model, batch), counted)
        return torch.where(counted, margin(widened(rows), targets), 0).sum(1)


@dataclass(frozen=True)
class LanguageModelling(TokenTask):
    """Next-token prediction for causal language models: Hugging Face, TransformerLens bridges, plain modules.

    Batches have `input_ids` [b s], optionally `attention_mask` [b s] and `labels` [b s] (-100 if a token
    is not to be predicted, such as a prompt), and other columns that the model's forward names, such as `position_ids`
    [b s]. Where texts are packed (`tasks.packed`), `segments` [b s] numbers them, and the model gets a mask [b 1 s s]
    under which a token sees its own text only. Measured by log-probability or margin, as `TokenTask` says.
    """

    measure: Literal["logprob", "margin"] = "logprob"

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        if "segments" not in batch:
            return super().logits(model, batch)
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        mask = apart(batch["segments"], own)
        return outputs_of(model(column(batch, "input_ids"), **extras(model, batch), attention_mask=mask))

    def targets(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """The token after each position but the last, and where it counts (t = s - 1)."""
        tokens = column(batch, "input_ids")
        labels = batch.get("labels", tokens)
        if labels.shape != tokens.shape:
            raise DataError(
                f"Labels of shape {tuple(labels.shape)} do not fit tokens of shape {tuple(tokens.shape)}.",
                f"Give one label a token, the token itself or {IGNORED}; they are shifted here.",
            )
        labels = labels[:, 1:]
        counted = labels != IGNORED
        if "attention_mask" in batch:
            real = batch["attention_mask"].bool()
            counted = counted & real[:, 1:] & real[:, :-1]
        if "segments" in batch:
            counted = counted & (batch["segments"][:, 1:] == batch["segments"][:, :-1])
        return labels.masked_fill(~counted, 0), counted

    def labelled(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        return self.targets(batch)

    def predicting(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b t c"]:
        return self.logits(model, batch)[:, :-1]

    def places(self, batch: Batch) -> Int[Tensor, "b t"]:
        return super().places(batch)[:, :-1]

    def positions(self, batch: Batch) -> Bool[Tensor, "b s"]:
        """Real tokens from which something is predicted: all but each text's last."""
        real = real_tokens(batch)
        follows = torch.zeros_like(real)
        follows[:, :-1] = real[:, 1:]
        if "segments" in batch:
            follows[:, :-1] &= batch["segments"][:, 1:] == batch["segments"][:, :-1]
        return real & follows


class VectorTask(Settings):
    """What tasks of `x` with one label an example have in common: the model's outputs, and one position."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return outputs_of(model(column(batch, "x"), **extras(model, batch)))

    def positions(self, batch: Batch) -> Bool[Tensor, "b 1"]:
        return torch.ones(len(column(batch, "x")), 1, dtype=torch.bool, device=batch["x"].device)


@dataclass(frozen=True)
class Classification(VectorTask):
    """Cross-entropy on `x` [b ...] and integer `y` [b]; measured by log-probability, margin or loss.

    The model also gets `attention_mask` and other columns that its forward names. A model with one output z is a
    binary classifier trained with a sigmoid: its two classes have the logits 0 and z.

    >>> Classification(measure="margin").loss(model, train.batch([0, 1])).shape
    torch.Size([2])
    """

    measure: Literal["logprob", "margin", "loss"] = "logprob"

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        out = self.outputs(model, batch)
        if out.ndim > 2 or out.ndim == 0:
            raise ModelError(
                f"The model's output has the shape {tuple(out.shape)}, where Classification needs [b c].",
                "Let the model return one row of logits an example; for labels at every position, write a Task.",
            )
        if out.ndim == 1 or out.shape[1] == 1:
            z = out.reshape(-1, 1)
            return torch.cat([torch.zeros_like(z), z], dim=1)
        return out

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        logits = self.logits(model, batch)
        return F.cross_entropy(widened(logits), column(batch, "y").long(), reduction="none")

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Float[Tensor, " b"]:
        logits = self.logits(model, batch)
        ids = column(batch, "example_id").cpu().numpy()
        u = rng.uniforms(seed, ids, np.zeros((len(ids), 1), np.int64))
        drawn = rng.categorical(logits.detach()[:, None], u)[:, 0]
        return F.cross_entropy(widened(logits), drawn, reduction="none")

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        logits, y = self.logits(model, batch), column(batch, "y").long()
        if self.measure == "margin":
            return margin(widened(logits), y)
        sign = 1.0 if self.measure == "loss" else -1.0
        return sign * F.cross_entropy(widened(logits), y, reduction="none")


@dataclass(frozen=True)
class Regression(VectorTask):
    """Half the squared error on `x` and `y` [b] or [b c]: the negative log-likelihood, up to a constant, of a
    unit normal around the prediction. The measurement is the prediction (summed over outputs), or the loss.

    `noise` of the sampled labels: "normal" as the likelihood says, or "sign", plus or minus one, which has
    the same second moment and, for one output, no sampling error in it at all.
    """

    measure: Literal["prediction", "loss"] = "prediction"
    noise: Literal["normal", "sign"] = "normal"

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        out = self.outputs(model, batch)
        return out.reshape(len(out), -1)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        out = self.logits(model, batch)
        return 0.5 * (out - column(batch, "y").reshape(out.shape).to(out.dtype)).square().sum(1)

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Float[Tensor, " b"]:
        out = self.logits(model, batch)
        ids = column(batch, "example_id").cpu().numpy()
        outputs = np.broadcast_to(np.arange(out.shape[1]), tuple(out.shape))
        if self.noise == "sign":
            noise = np.where(rng.uniforms(seed, ids, outputs) < 0.5, -1.0, 1.0)
        else:
            noise = rng.normals(seed, ids, outputs)
        drawn = out.detach() + torch.as_tensor(noise, dtype=out.dtype, device=out.device)
        return 0.5 * (out - drawn).square().sum(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        return self.loss(model, batch) if self.measure == "loss" else self.logits(model, batch).sum(1)


def margin(logits: Float[Tensor, "*b c"], y: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """z_y - logsumexp over the other classes = log p_y / (1 - p_y).

    >>> margin(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).tolist()
    [2.0]
    """
    chosen = logits.gather(-1, y.unsqueeze(-1))
    others = logits.scatter(-1, y.unsqueeze(-1), float("-inf"))
    return (chosen.squeeze(-1)) - others.logsumexp(-1)


def _counted(logits: Float[Tensor, "b t c"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
    """Logits, zero where nothing is counted. A product with the mask would keep NaN, and minus infinity would have a
    gradient of NaN."""
    return torch.where(counted.unsqueeze(-1), logits, 0)


def _token_logprobs(logits: Tensor, targets: Tensor, counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    rows = _counted(logits, counted).flatten(0, 1)
    each = F.cross_entropy(widened(rows), targets.masked_fill(~counted, 0).flatten(), reduction="none")
    return -torch.where(counted, each.view_as(targets), 0)


def apart(segments: Int[Tensor, "b s"], dtype: torch.dtype) -> Float[Tensor, "b 1 s s"]:
    """What is added to attention scores so that a token sees itself and the tokens before it of its own text."""
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same & torch.ones_like(same[0]).tril()
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)[
        :, None
    ]


def real_tokens(batch: Batch) -> Bool[Tensor, "b s"]:
    """Which positions of `input_ids` are no padding."""
    tokens = column(batch, "input_ids")
    return batch.get("attention_mask", torch.ones_like(tokens)).bool()


def extras(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments of a model's forward beside its first: the columns that it names, and `attention_mask` (of packed
    texts also `position_ids`) also if it takes any name, as the bridges of TransformerLens do. Targets are no
    arguments: a model that gets `labels` computes a loss of its own."""
    accepted = parameters_of(model)
    named = {*accepted, *(("position_ids",) if "segments" in batch and _takes(model, "position_ids") else ())}
    names = [name for name in batch if name in named and name not in TARGETS and name != next(iter(accepted), "")]
    found: dict[str, Any] = {name: batch[name] for name in names if name != "attention_mask"}
    if "segments" in batch:  # the mask is the task's
        found.pop("segments", None)
    elif "attention_mask" in batch and takes_mask(model):
        found["attention_mask"] = batch["attention_mask"]
    if "use_cache" in accepted:
        found["use_cache"] = False
    return found


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of the forward of a model, or of what `torch.compile` or `DataParallel` wraps."""
    return inspect.signature(unwrapped(model).forward).parameters


def takes_mask(model: nn.Module) -> bool:
    """Whether a model's forward takes `attention_mask`."""
    return _takes(model, "attention_mask")


def _takes(model: nn.Module, name: str) -> bool:
    accepted = parameters_of(model)
    return name in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
