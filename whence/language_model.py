"""Training a small transformer from random weights: a TransformerLens native bridge, AdamW or Muon, one cosine.

Used for the demo's model, the biographies' model, and retrainings of either with examples left out or weighted.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from whence.cache import Entry, Examples, LanguageModelling, NumericalError, Store, UsageError
from whence.cache.jobs.progress import progress
from whence.cache.model.fingerprint import model_fingerprint
from whence.cache.model.stateless import named_parameters
from whence.cache.retrain.loop import descend
from whence.cache.retrain.optimisers import AdamW, Muon, Optimiser

if TYPE_CHECKING:
    from .corpora.vocabulary import Vocabulary

SORTED_BATCHES = 8  # batches whose examples are sorted by length together: little padding, still shuffled


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer: LayerNorm, GELU, learned positions, no tied weights."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128
    vocabulary: int = 2048


@dataclass(frozen=True)
class Training:
    """Epochs over the examples in batches of `batch`, at a rate that rises over a tenth of the steps to `rate` and
    falls to a twentieth of it along a cosine; gradients clipped to norm 1.

    decay: of the weights. seed: of the weights and the order. muon: the rate of the blocks' matrices over `rate`, which
    then take Muon's orthogonal steps; 0 for AdamW everywhere.
    """

    epochs: int = 12
    batch: int = 16
    rate: float = 3e-3
    decay: float = 0.1
    seed: int = 0
    muon: float = 0.0

    @property
    def optimiser(self) -> Optimiser:
        adam = AdamW(self.rate, (0.9, 0.98), weight_decay=self.decay)
        return Muon(self.rate, self.muon, rest=adam) if self.muon else adam

    @property
    def settings(self) -> dict[str, Any]:
        """The training as it enters a key."""
        return {name: value for name, value in asdict(self).items() if name != "muon" or value}

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.rate <= 0:
            raise UsageError(
                f"Cannot train {self.epochs} epochs in batches of {self.batch} at rate {self.rate}.",
                "Use at least one epoch, one example a batch, and a rate above zero.",
            )


class Direct(nn.Module):
    """The forward pass of `new_model` on its parameters, without hook points and with torch's own attention: the same
    logits, and a training step in two thirds of the time. Texts are padded at their end."""

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.own = {name.replace("._original_component", ""): p for name, p in named_parameters(model).items()}

    def forward(self, input_ids: Int64[Tensor, "b s"]) -> Float[Tensor, "b s v"]:
        b, s = input_ids.shape
        x = functional.embedding(input_ids, self.own["embed.weight"]) + self.own["pos_embed.weight"][:s]
        for block in (f"blocks.{number}." for number in range(self.shape.layers)):
            inputs = self._norm(f"{block}ln1", x)
            q, k, v = (
                self._linear(f"{block}attn.{name}", inputs).view(b, s, self.shape.heads, -1).transpose(1, 2)
                for name in "qkv"
            )
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self._linear(f"{block}attn.o", seen.transpose(1, 2).reshape(b, s, -1))
            hidden = functional.gelu(self._linear(f"{block}mlp.fc_in", self._norm(f"{block}ln2", x)))
            x = x + self._linear(f"{block}mlp.fc_out", hidden)
        return self._linear("unembed", self._norm("ln_final", x))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.own[f"{name}.weight"], self.own.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.own[f"{name}.weight"], self.own[f"{name}.bias"])


class Curve(NamedTuple):
    """Mean loss in nats a token over each epoch, and the seconds that training took."""

    losses: list[float]
    seconds: float


def new_model(shape: Shape, seed: int = 0) -> nn.Module:
    """An untrained TransformerLens bridge; no network, no pretrained weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    if shape.width % shape.heads:
        raise UsageError(
            f"A width of {shape.width} does not divide into {shape.heads} heads.", "Choose heads that divide it."
        )
    config = TransformerBridgeConfig(
        d_model=shape.width,
        d_head=shape.width // shape.heads,
        n_heads=shape.heads,
        n_layers=shape.layers,
        n_ctx=shape.context,
        d_vocab=shape.vocabulary,
        d_mlp=4 * shape.width,
        act_fn="gelu",
        normalization_type="LN",
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        bridge: Any = TransformerBridge  # its own type hides this constructor
        return bridge.boot_native(config).eval()


def train_language_model(
    model: nn.Module,
    examples: Examples,
    training: Training = Training(),
    *,
    weights: Float[np.ndarray, " n"] | None = None,
    reweight: Callable[[Tensor], Tensor] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    forward: nn.Module | None = None,
    desc: str = "training",
    quiet: bool = False,
) -> Curve:
    """Train `model` in place on next-token prediction, with a progress bar.

    weights: of each example in the loss, 1 by default; those of weight 0 are left out, as if they were not there.
    reweight: weights of a batch's examples from their losses per token, [b] to [b] (`attrib.selection.loss_weights`).
    after_epoch: called with the number of epochs done, while `model` is as it was then (to keep checkpoints).
    forward: what computes the logits from the model's parameters; the model itself by default.
    Raises NumericalError when the loss is not finite.
    """
    if weights is not None:
        weights = np.asarray(weights, np.float32)
        examples, weights = examples.select(weights != 0), weights[weights != 0]
    task, began, losses = LanguageModelling(), time.monotonic(), []
    own = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    steps = [(epoch, rows) for epoch in range(training.epochs) for rows in _batches(examples.lengths, training, epoch)]

    def batches() -> Iterator[tuple[float, np.ndarray]]:
        for number, (_, rows) in enumerate(progress(steps, desc=desc, unit="step", quiet=quiet)):
            yield training.rate * schedule(number / len(steps)), rows

    def gradient_of(parameters: dict[str, Tensor], rows: np.ndarray) -> tuple[tuple[float, float], dict[str, Tensor]]:
        """Summed loss and number of predicted tokens; the gradient of their ratio."""
        batch = examples.batch(rows)
        each, counts = task.loss(forward or model, batch), task.targets(batch)[1].sum(1)
        positions = float(counts.sum())
        weighted = each if weights is None else each * torch.from_numpy(weights[rows])
        if reweight is not None:
            weighted = weighted * reweight((each / counts.clamp(min=1)).detach())
        slope = torch.autograd.grad(weighted.sum() / positions, list(own.values()), allow_unused=True)
        found = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(own.items(), slope)}
        return (float(each.detach().sum()), positions), found

    start = {name: p.detach() for name, p in own.items()}
    model.train()
    total = counted = 0.0
    for number, point in enumerate(descend(start, gradient_of, batches(), training.optimiser, clip=1.0)):
        epoch = steps[number][0]
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(point.parameters[name])
        total, counted = total + point.loss[0], counted + point.loss[1]
        if number + 1 == len(steps) or steps[number + 1][0] != epoch:
            losses.append(total / counted)
            total = counted = 0.0
            if not np.isfinite(losses[-1]):
                raise NumericalError(
                    f"The loss is {losses[-1]} in epoch {epoch + 1}.", "Train at a lower rate, or look at the data."
                )
            if after_epoch is not None:
                after_epoch(epoch + 1)
    model.eval()
    return Curve(losses, time.monotonic() - began)


def schedule(through: float) -> float:
    """The rate's factor when this share of the steps is done."""
    if through < 0.1:
        return 0.05 + 9.5 * through
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (through - 0.1) / 0.9)))


def _batches(lengths: Int64[np.ndarray, " n"], training: Training, epoch: int) -> Iterator[np.ndarray]:
    """Row numbers of each batch of an epoch: shuffled, then sorted by length within a few batches."""
    rng = np.random.default_rng([training.seed, epoch])
    order, size = rng.permutation(len(lengths)), training.batch * SORTED_BATCHES
    batches = []
    for start in range(0, len(order), size):
        block = order[start : start + size]
        block = block[np.argsort(lengths[block], kind="stable")]
        batches += [block[at : at + training.batch] for at in range(0, len(block), training.batch)]
    return iter([batches[k] for k in rng.permutation(len(batches))])


def model_inputs(
    shape: Shape, training: Training, examples: Examples, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """What a model trained here is computed from: its key in the store."""
    left = None if weights is None else hashlib.sha256(np.asarray(weights, np.float32).tobytes()).hexdigest()
    return {
        "what": "language model",
        "shape": asdict(shape),
        "training": training.settings,
        "data": examples.fingerprint,
        "weights": left,
    }


def trained_model(
    shape: Shape,
    training: Training,
    examples: Examples,
    store: Store | None,
    *,
    weights: np.ndarray | None = None,
    desc: str = "training",
    quiet: bool = False,
) -> nn.Module:
    """The model of this shape trained so: from the store, or trained now and kept there."""
    model = new_model(shape, training.seed)
    inputs = model_inputs(shape, training, examples, weights)
    if store is not None and store.has("model", inputs):
        return _fill(model, store.open("model", inputs))
    forward = Direct(model, shape)
    curve = train_language_model(model, examples, training, weights=weights, forward=forward, desc=desc, quiet=quiet)
    if store is not None:
        arrays = {name: p.detach().numpy() for name, p in named_parameters(model).items()}
        about = {
            "losses": curve.losses,
            "seconds": curve.seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
            "fingerprint": model_fingerprint(model).hex,
        }
        store.put("model", inputs, arrays, about=about)
    return model


def _fill(model: nn.Module, entry: Entry) -> nn.Module:
    with torch.no_grad():
        for name, parameter in named_parameters(model).items():
            parameter.copy_(torch.from_numpy(np.array(entry.read(name))))
    return model


def continuation(
    model: nn.Module, vocabulary: "Vocabulary", prompt: str, tokens: int, stop: Sequence[str] = (".", "\n")
) -> str:
    """The model's greedy continuation: up to `tokens` tokens, or through the first that contains one of `stop`."""
    ids = vocabulary.encode(prompt).tolist()
    start, task = len(ids), LanguageModelling()
    device = next(model.parameters()).device
    with torch.no_grad():
        for _ in range(tokens):
            logits = task.logits(model, {"input_ids": torch.tensor([ids], device=device)})
            ids.append(int(logits[0, -1].argmax()))
            if any(mark in vocabulary.decode(ids[start:]) for mark in stop):
                break
    return vocabulary.decode(ids)[len(vocabulary.decode(ids[:start])) :]


def top_answers(model: nn.Module, queries: Examples) -> np.ndarray:
    """Bool [q]: whether every labelled token of a query is the model's likeliest one."""
    task, right = LanguageModelling(), []
    with torch.no_grad():
        for row in range(len(queries)):
            batch = queries.batch([row])
            targets, counted = task.targets(batch)
            best = task.logits(model, batch)[:, :-1].argmax(-1)
            right.append(bool(((best == targets) | ~counted).all()))
    return np.array(right)
