"""Influence on each output token, and of each input token, of a training sequence (Grosse et al. 2023, Appendix B.1).

With v = (1/N) (G + damping)^-1 grad f, the influence of a sequence on the query is v^T grad log p(sequence): the rate
at which the sequence becomes likelier when the parameters move along v. That rate splits in two ways that a layer's
own positions do not give:

- by output token: log p is a sum over the tokens that are predicted, and so is its rate; one pass at theta and one
  pushed along v (a Jacobian-vector product, or a finite difference) give every token's term at once;
- by input token: the rate's own gradient with respect to each token's embedding, times that embedding; two backward
  passes, at theta + alpha v and theta - alpha v.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import DataError, Examples, ModelError, Task, borrowed, named_parameters, parameters_of, progress
from whence.cache.model.batches import plan_batches
from whence.cache.model.bridge import to_torch
from whence.cache.model.sites import call_with

from .factors import Factors
from .method import FitOptions
from .queries import prepared_queries
from .scores import check_model, label

if TYPE_CHECKING:
    import xarray

STEP = 1e-3  # length of the finite step, relative to the length of the parameters it moves
POSITIONS = 4096  # positions in a batch


@dataclass(frozen=True)
class Directions:
    """v of every query as parameter-shaped tensors: one mapping a query, by the model's own parameter names."""

    vectors: tuple[Mapping[str, Tensor], ...]

    @staticmethod
    def of(
        factors: Factors, model: nn.Module, task: Task, queries: Examples, size: int, options: FitOptions
    ) -> "Directions":
        whole = prepared_queries(factors, model, task, queries, options)
        dtype = {name: p.dtype for name, p in named_parameters(model).items()}
        found = []
        for q in range(len(queries)):
            one = {name: to_torch(value[q], copy=True) / size for name, value in whole.items()}
            found.append({n: v.to(dtype[n]) for n, v in parameters_of(model, factors.sites, one).items()})
        return Directions(tuple(found))


def output_token_scores(
    factors: Factors,
    model: nn.Module,
    task: Any,
    queries: Examples,
    train: Examples,
    *,
    how: Literal["jvp", "difference"] = "jvp",
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Influence of the training sequences' tokens as they are predicted, [query, train, position], in nats: position t
    holds token t's own term (the first is 0, nothing predicts it; NaN past the end). The sum is the influence.

    "jvp" is exact; "difference" needs no forward-mode derivative and only inference memory.
    Raises DataError for a task without tokens, ModelError where the model has no forward-mode derivative.
    """
    check_model(factors, model)
    _check_tokens(task)
    size = factors.count if train_size is None else train_size
    directions = Directions.of(factors, model, task, queries, size, options)
    out = np.full((len(queries), len(train), int(train.lengths.max())), np.nan, np.float32)
    theta = _theta(model, directions)
    with borrowed(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for rows, batch in _batches(model, train, "output tokens", options):
            for q, v in enumerate(directions.vectors):
                pushed = _pushed(model, task, batch, theta, v, how)
                for place, row in enumerate(rows):
                    length = int(train.lengths[row])
                    out[q, row, :length] = 0.0
                    out[q, row, 1:length] = pushed[place, : length - 1].cpu().numpy()
    return label(out, queries, train, factors, task, last="position").assign_attrs(position="token")


def _pushed(
    model: nn.Module,
    task: Any,
    batch: dict[str, Tensor],
    theta: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
    how: str,
) -> Tensor:
    """Rate of each target's log-probability along v, [b t]."""

    def each(theta: dict[str, Tensor]) -> Tensor:
        return logprobs_at(model, task, batch, theta)

    if how == "difference":
        alpha = step_size(theta, v)
        ahead, behind = (each({n: p + sign * alpha * v[n] for n, p in theta.items()}) for sign in (1.0, -1.0))
        return (ahead - behind) / (2 * alpha)
    try:
        return jvp(each, (dict(theta),), ({n: v[n] for n in theta},))[1]
    except NotImplementedError as error:
        raise ModelError(
            f"A layer of this model has no forward-mode derivative: {str(error).splitlines()[0]}",
            'Use how="difference".',
        ) from error


class _Logprobs(nn.Module):
    """log p of every target token, 0 where it is not counted, [b t]."""

    def __init__(self, model: nn.Module, task: Any):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        targets, counted = self.task.targets(batch)
        logits = self.task.logits(self.model, batch)[:, :-1]
        return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1) * counted


def logprobs_at(model: nn.Module, task: Any, batch: dict[str, Tensor], theta: Mapping[str, Tensor]) -> Tensor:
    """Log-probabilities of the target tokens, [b t], with these parameters in place of the model's own."""
    moved = {f"model.{name}": value for name, value in theta.items()}
    return call_with(_Logprobs(model, task), moved, (batch,))


def input_token_scores(
    factors: Factors,
    model: nn.Module,
    task: Any,
    queries: Examples,
    train: Examples,
    *,
    embedding: str | None = None,
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Influence of the training sequences' tokens as they are read, [query, train, position], in nats: the gradient of
    the sequence's influence with respect to each token's embedding, times the embedding; NaN past the end.

    embedding: name of the token embedding, found when not given. A first-order share, so the sum is not the influence.
    Raises ModelError where there is no token embedding.
    """
    check_model(factors, model)
    _check_tokens(task)
    size = factors.count if train_size is None else train_size
    table = token_embedding(model, embedding)
    directions = Directions.of(factors, model, task, queries, size, options)
    out = np.full((len(queries), len(train), int(train.lengths.max())), np.nan, np.float32)
    theta = _theta(model, directions)
    with borrowed(model):
        for rows, batch in _batches(model, train, "input tokens", options):
            for q, v in enumerate(directions.vectors):
                alpha = step_size(theta, v)
                (ahead, read), (behind, _) = (
                    _embedding_gradient(model, task, batch, table, {n: p + s * alpha * v[n] for n, p in theta.items()})
                    for s in (1.0, -1.0)
                )
                values = (((ahead - behind) / (2 * alpha)) * read).sum(-1)
                for place, row in enumerate(rows):
                    length = int(train.lengths[row])
                    out[q, row, :length] = values[place, :length].cpu().numpy()
    return label(out, queries, train, factors, task, last="position").assign_attrs(position="token")


def _embedding_gradient(
    model: nn.Module, task: Any, batch: dict[str, Tensor], table: nn.Module, theta: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of log p(sequence) at theta with respect to the embedded tokens, and these, both [b s d]."""
    read: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        read.append(out.detach().requires_grad_())
        return read[-1] if len(read) == 1 else out

    handle = table.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            value = logprobs_at(model, task, batch, theta).sum()
            (gradient,) = torch.autograd.grad(value, read[:1])
    finally:
        handle.remove()
    return gradient, read[0].detach()


def token_embedding(model: nn.Module, name: str | None = None) -> nn.Module:
    """The module that turns token ids into vectors: by name, or the embedding with the longest table."""
    from whence.cache import clean_name

    tables = {clean_name(n): m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if name is not None and name in tables:
        return tables[name]
    if name is not None or not tables:
        raise ModelError(
            "The model has no token embedding" + (f" called {name!r}." if name else "."),
            f"Its embeddings are {', '.join(tables)}." if tables else "Use output_token_scores.",
        )
    return max(tables.values(), key=lambda m: m.num_embeddings)


def step_size(theta: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> float:
    """alpha with |alpha v| = STEP |theta|: small for the model, large for float32."""
    length = float(sum(x.double().square().sum() for x in v.values())) ** 0.5
    return STEP * float(sum(p.double().square().sum() for p in theta.values())) ** 0.5 / max(length, 1e-30)


def _theta(model: nn.Module, directions: Directions) -> dict[str, Tensor]:
    moved = directions.vectors[0]
    return {name: p.detach() for name, p in named_parameters(model).items() if name in moved}


def _batches(
    model: nn.Module, train: Examples, desc: str, options: FitOptions
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    device = options.device or next((p.device for p in model.parameters()), torch.device("cpu"))
    plan = plan_batches(train.lengths, np.arange(len(train)), options.positions or POSITIONS)
    for batch in progress(plan, desc=desc, unit="batch", quiet=options.quiet):
        yield batch.rows, train.batch(batch.rows, pad_to=batch.width, device=device)


def _check_tokens(task: Task) -> None:
    if not hasattr(task, "targets"):
        raise DataError(f"{type(task).__name__} predicts no tokens.", "Use it for language modelling.")
