"""Influence on each output token, and of each input token, of a training sequence (Grosse et al. 2023, Appendix B.1).

With v = (1/N) (G + damping)^-1 grad f, the influence of a sequence on the query is v^T grad log p(sequence): the rate
at which the sequence becomes likelier when the parameters move along v. Beside the split by the positions of a layer's
rows, that rate splits in two ways:

- by output token: log p is a sum over the tokens that are predicted, and so is its rate; one pass at theta with the
  tangent v (a Jacobian-vector product), or two passes (a finite difference), give every token's term at once;
- by input token: the rate's own gradient with respect to each token's embedding, times that embedding; two backward
  passes, at theta + alpha v and theta - alpha v.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import DataError, Examples, ModelError, Task
from whence.cache.model.bridge import to_numpy, to_torch
from whence.cache.model.capture import borrowed
from whence.cache.model.sites import clean_name, parameters_of
from whence.cache.model.stateless import call_with, named_parameters

from .. import kernels
from ..curvature import Curvature
from .queries import exact_queries

if TYPE_CHECKING:
    import xarray

STEP = 1e-3  # length of the finite step, relative to the length of the parameters it moves
POSITIONS = 4096  # positions in a batch


def layer_token_scores(factors: Curvature, queries: Examples, train: Examples) -> "xarray.DataArray":
    """By the positions of the layers' own rows: position t has the part of the gradient at layer inputs t, which is
    mostly the prediction of token t + 1 (Grosse et al. 2023, Section 5.3). The sum over positions is the influence.

    Raises ModelError for sites whose rows are not the sequence's positions.
    """
    factors.check_model()
    prepared = exact_queries(factors, queries)
    run = factors.trained.run("loss", factors.sites, train)
    out, width = _empty(queries, train), int(train.lengths.max())
    for batch in run.batches(desc="token scores"):
        total: Any = 0.0
        for site in run.sites:
            rows = batch.weights[site.name].shape[1]
            if rows % width and rows > width:
                raise ModelError(
                    f"{site.name} has {rows} rows per example for sequences of {width} positions.",
                    "Fit without this site to score tokens.",
                )
            a, g = batch.inputs[site.name], batch.grads[site.name]
            total = total + kernels.position_products(prepared[site.name], a, g)
        values = -np.asarray(total, np.float32)[:, : len(batch.rows)] / factors.train_size
        for place, row in enumerate(batch.rows):
            length = int(train.lengths[row])
            out[:, row, :length] = values[:, place, :length]
    return factors.labelled(out, queries, train, last="position")


def directions(factors: Curvature, queries: Examples) -> list[dict[str, Tensor]]:
    """v of every query as parameter-shaped tensors, by the model's own parameter names."""
    model, whole = factors.trained.model, exact_queries(factors, queries)
    own = named_parameters(model)
    found = []
    for q in range(len(queries)):
        one = {name: to_torch(value[q], copy=True) / factors.train_size for name, value in whole.items()}
        found.append({n: v.to(own[n]) for n, v in parameters_of(model, factors.sites, one).items()})
    return found


def output_token_scores(
    factors: Curvature, queries: Examples, train: Examples, *, how: Literal["jvp", "difference"] = "jvp"
) -> "xarray.DataArray":
    """By output token: position t has token t's own term; the first is 0. The sum is the influence.

    Args:
        how: "jvp" is exact; "difference" needs no forward-mode derivative and only the memory of inference.

    Raises DataError for a task without tokens, ModelError if the model has no forward-mode derivative.
    """
    factors.check_model()
    trained = factors.trained
    _check_tokens(trained.task)
    vectors, out = directions(factors, queries), _empty(queries, train)
    theta = _theta(trained.model, vectors)
    with borrowed(trained.model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for planned in trained.planned(train, "output tokens", POSITIONS):
            batch = trained.batch(train, planned.rows, pad_to=planned.width)
            for q, v in enumerate(vectors):
                rates = to_numpy(_rates(trained.model, trained.task, batch, theta, v, how))
                for place, row in enumerate(planned.rows):
                    length = int(train.lengths[row])
                    out[q, row, :length] = 0.0
                    out[q, row, 1:length] = rates[place, : length - 1]
    return factors.labelled(out, queries, train, last="position").assign_attrs(position="token")


def _rates(
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
    factors: Curvature, queries: Examples, train: Examples, *, embedding: str | None = None
) -> "xarray.DataArray":
    """By input token: the gradient of the sequence's influence with respect to each token's embedding, times the
    embedding. A first-order share, so the sum is not the influence.

    Args:
        embedding: name of the token embedding; by default the embedding with the longest table.

    Raises DataError for a task without tokens, ModelError if there is no such embedding.
    """
    factors.check_model()
    trained = factors.trained
    _check_tokens(trained.task)
    table = token_embedding(trained.model, embedding)
    vectors, out = directions(factors, queries), _empty(queries, train)
    theta = _theta(trained.model, vectors)
    with borrowed(trained.model):
        for planned in trained.planned(train, "input tokens", POSITIONS):
            batch = trained.batch(train, planned.rows, pad_to=planned.width)
            for q, v in enumerate(vectors):
                alpha = step_size(theta, v)
                (ahead, embedded), (behind, _) = (
                    _embedding_gradient(
                        trained.model, trained.task, batch, table, {n: p + s * alpha * v[n] for n, p in theta.items()}
                    )
                    for s in (1.0, -1.0)
                )
                values = to_numpy((((ahead - behind) / (2 * alpha)) * embedded).sum(-1))
                for place, row in enumerate(planned.rows):
                    length = int(train.lengths[row])
                    out[q, row, :length] = values[place, :length]
    return factors.labelled(out, queries, train, last="position").assign_attrs(position="token")


def _embedding_gradient(
    model: nn.Module, task: Any, batch: dict[str, Tensor], table: nn.Module, theta: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of log p(sequence) at theta with respect to the embedded tokens, and these, both [b s d]."""
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        embedded.append(out.detach().requires_grad_())
        return embedded[-1] if len(embedded) == 1 else out

    handle = table.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            value = logprobs_at(model, task, batch, theta).sum()
            (gradient,) = torch.autograd.grad(value, embedded[:1])
    finally:
        handle.remove()
    return gradient, embedded[0].detach()


def token_embedding(model: nn.Module, name: str | None = None) -> nn.Module:
    """The module that turns token ids into vectors: by name, or the embedding with the longest table."""
    tables = {clean_name(n): m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if name is not None and name in tables:
        return tables[name]
    if name is not None or not tables:
        raise ModelError(
            "The model has no token embedding" + (f" called {name!r}." if name else "."),
            f"Its embeddings are {', '.join(tables)}." if tables else 'Use by="output".',
        )
    return max(tables.values(), key=lambda m: m.num_embeddings)


def step_size(theta: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> float:
    """alpha with |alpha v| = STEP |theta|: small for the model, large for float32."""
    length = float(sum(x.double().square().sum() for x in v.values())) ** 0.5
    return STEP * float(sum(p.double().square().sum() for p in theta.values())) ** 0.5 / max(length, 1e-30)


def _theta(model: nn.Module, vectors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in named_parameters(model).items() if name in vectors[0]}


def _empty(queries: Examples, train: Examples) -> np.ndarray:
    """[q n s], NaN past an example's end."""
    return np.full((len(queries), len(train), int(train.lengths.max())), np.nan, np.float32)


def _check_tokens(task: Task) -> None:
    if not hasattr(task, "targets"):
        raise DataError(f"{type(task).__name__} predicts no tokens.", "Use it for language modelling.")
