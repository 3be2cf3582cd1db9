"""Influence on each output token, and of each input token, of a training sequence (Grosse et al. 2023, Appendix B.1).

With v = (1/N) (G + damping)^-1 grad f, the influence of a sequence on the query is v^T grad log p(sequence): the rate
at which the sequence becomes likelier when the parameters move along v. Beside the split by the positions of a layer's
rows, that rate splits in two ways:

- by output token: log p is a sum over the tokens that are predicted, and so is its rate; one pass at theta with the
  tangent v (a Jacobian-vector product), or two passes (a finite difference), give every token's term at once;
- by input token: the rate's own gradient with respect to each token's embedding, times that embedding; two backward
  passes, at theta + alpha v and theta - alpha v.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import DataError, Examples, ModelError, TrainedModel
from whence.cache.model.batches import check_examples
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy, to_torch
from whence.cache.model.calls import Call
from whence.cache.model.capture import layer_calls
from whence.cache.model.layer_names import layer_at
from whence.cache.model.layers import with_ones
from whence.cache.model.names import clean_name
from whence.cache.model.sites import parameters_of
from whence.cache.model.stateless import named_parameters, stateless, wide, widened

from ..curvature import Curvature
from .queries import exact_queries

if TYPE_CHECKING:
    import xarray

STEP = 1e-3  # length of the finite step, relative to the length of the parameters it moves
POSITIONS = 4096  # positions in a batch


def layer_token_scores(factors: Curvature, queries: Examples, train: Examples) -> "xarray.DataArray":
    """By the positions at which layers are called: position t has the part of the gradient at layer inputs t, which is
    mostly the prediction of token t + 1 (Grosse et al. 2023, Section 5.3). The sum over positions is the influence.

    Along v a layer's output moves by its value with v in place of its parameters (less that with zeros), so position t
    of a call has the part -grad L[t] . output(v)[t], for layers of every kind; the calls of a shared layer add up.

    Raises ModelError for sites whose calls have no axis of the sequence's positions.
    """
    factors.check_model()
    trained, vectors, out = factors.trained, directions(factors, queries), _empty(queries, train)
    run = trained.run("loss", factors.sites, train)
    for planned in run.walk(None, "token scores"):
        batch = trained.batch(train, planned.rows, pad_to=planned.width)
        total = torch.zeros(len(vectors), len(planned.rows), _width(batch, planned.width), device=trained.device)
        with torch.no_grad():
            for call in layer_calls(trained.model, factors.sites, batch, trained.task.loss):
                total -= _call_products(trained.model, call, vectors, *total.shape[1:]).to(total.device)
        _fill(out, planned.rows, batch, train, to_numpy(total))
    return factors.labelled(out, queries, train, last="position")


def _call_products(
    model: nn.Module, call: Call, vectors: Sequence[Mapping[str, Tensor]], size: int, width: int
) -> Float[Tensor, "q b s"]:
    """grad . output(v) of one call of a layer, for every direction, example and position."""
    module, layer = layer_at(model, call.module)
    places = {id(p): n for n, p in named_parameters(model).items()}
    parameters = dict(_layer_parameters(module))
    own = {n: places[id(p)] for n, p in parameters.items() if places.get(id(p)) in vectors[0]}
    x, g = widened(call.x), widened(cast(Tensor, call.g))

    def at(values: Mapping[str, Tensor]) -> Tensor:
        given = {n: widened(p.detach()) for n, p in parameters.items()} | dict(values)
        if isinstance(module, nn.Module):
            return stateless(lambda layer, x: layer.forward(x), module)(given, x)  # forward: nobody else's hooks run
        matrix = layer.matrix(module, given, call.group or 0)
        return with_ones(x, layer.bias_columns(module) > 0) @ matrix.T

    zeros = at({n: torch.zeros_like(vectors[0][place]) for n, place in own.items()})
    padding = getattr(module, "padding_idx", None)
    found = []
    for v in vectors:
        values = {n: v[place] for n, place in own.items()}
        if padding is not None:  # autograd gives the padding row no gradient
            values["weight"] = values["weight"].index_fill(0, torch.tensor([padding], device=x.device), 0.0)
        moved = g * (at(values) - zeros)
        if layer.kind == "conv":
            each = moved.sum(1)
        else:
            features = module.weight.ndim if layer.kind == "norm" else 1
            each = moved.flatten(-features).sum(-1)
        found.append(_by_position(each, size, width, clean_name(call.module)))
    return torch.stack(found)


def _layer_parameters(module: Any) -> Iterable[tuple[str, Tensor]]:
    """Weight and bias of a layer that is a module, or stands for a parameter that is multiplied by."""
    if isinstance(module, nn.Module):
        return module.named_parameters(recurse=False)
    return [(name, p) for name in ("weight", "bias") if (p := getattr(module, name)) is not None]


def _by_position(each: Tensor, size: int, width: int, name: str) -> Float[Tensor, "b s"]:
    """Values of a layer's output vectors [b ...] or [b*s], summed over every axis but the examples' and positions'."""
    if each.ndim == 1 and len(each) != size and len(each) % size == 0:
        each = each.reshape(size, -1)
    axes = [axis for axis, length in enumerate(each.shape) if axis and length == width]
    if width == 1 and len(each) == size:
        return each.reshape(size, -1).sum(1, keepdim=True)
    if len(each) != size or len(axes) != 1:
        raise ModelError(
            f"{name} gives vectors of shape {list(each.shape)} for {size} sequences of {width} positions: "
            f"{'more than one axis' if len(axes) > 1 else 'no axis'} can be that of the positions.",
            "Fit without this site to score tokens.",
        )
    others = [axis for axis in range(1, each.ndim) if axis != axes[0]]
    return each.sum(others) if others else each


def directions(factors: Curvature, queries: Examples) -> list[dict[str, Tensor]]:
    """v of every query as parameter-shaped tensors, by the model's own parameter names, in float32 or wider."""
    model, whole = factors.trained.model, exact_queries(factors, queries)
    own = named_parameters(model)
    found = []
    for q in range(len(queries)):
        one = {name: to_torch(value[q], copy=True) / factors.train_size for name, value in whole.items()}
        matrices = parameters_of(model, factors.sites, one)
        found.append({n: v.to(own[n].device, wide(own[n].dtype)) for n, v in matrices.items()})
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
    trained, logprobs = factors.trained, _logprobs(factors.trained)
    vectors, out = directions(factors, queries), _empty(queries, train)
    theta, rest = _parameters(trained.model, vectors)
    with borrowed(trained.model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for planned, tensors in trained.planned(train, "output tokens", POSITIONS):
            batch = _widened(tensors)

            def each(theta: dict[str, Tensor], batch: dict[str, Tensor] = batch) -> Tensor:
                return logprobs({**rest, **theta}, batch)

            rates = torch.stack([_rates(each, theta, v, how) for v in vectors])
            _fill(out, planned.rows, batch, train, to_numpy(torch.nn.functional.pad(rates, (1, 0))))
    return factors.labelled(out, queries, train, last="position").assign_attrs(position="token")


def _rates(
    each: Callable[[dict[str, Tensor]], Tensor], theta: dict[str, Tensor], v: Mapping[str, Tensor], how: str
) -> Tensor:
    """Rate along v of each target's log-probability, [b t], which `each` computes at parameters."""
    if how == "difference":
        alpha = step_size(theta, v)
        ahead, behind = (each({n: p + sign * alpha * v[n] for n, p in theta.items()}) for sign in (1.0, -1.0))
        return (ahead - behind) / (2 * alpha)
    try:
        return jvp(each, (theta,), ({n: v[n] for n in theta},))[1]
    except NotImplementedError as error:
        raise ModelError(
            f"A layer of this model has no forward-mode derivative: {str(error).splitlines()[0]}",
            'Use how="difference".',
        ) from error


def input_token_scores(
    factors: Curvature, queries: Examples, train: Examples, *, embedding: str | None = None
) -> "xarray.DataArray":
    """By input token: the gradient of the sequence's influence with respect to each token's embedding, times the
    embedding. A first-order share, so the sum is not the influence.

    Args:
        embedding: name of the token embedding; by default the embedding that is called on the tokens.

    Raises DataError for a task without tokens, ModelError if there is no such embedding.
    """
    factors.check_model()
    trained, logprobs = factors.trained, _logprobs(factors.trained)
    table = token_embedding(trained, train, embedding)
    vectors, out = directions(factors, queries), _empty(queries, train)
    theta, rest = _parameters(trained.model, vectors)
    with borrowed(trained.model):
        for planned, tensors in trained.planned(train, "input tokens", POSITIONS):
            batch = _widened(tensors)
            found = []
            for v in vectors:
                alpha = step_size(theta, v)
                (ahead, embedded), (behind, _) = (
                    _embedding_gradient(logprobs, {**rest, **{n: p + a * v[n] for n, p in theta.items()}}, batch, table)
                    for a in (alpha, -alpha)
                )
                each = (((ahead - behind) / (2 * alpha)) * embedded).sum(-1)
                found.append(_by_position(each, len(planned.rows), _width(batch, planned.width), "The token embedding"))
            _fill(out, planned.rows, batch, train, to_numpy(torch.stack(found)))
    return factors.labelled(out, queries, train, last="position").assign_attrs(position="token")


def _embedding_gradient(
    logprobs: Callable[..., Tensor], theta: Mapping[str, Tensor], batch: dict[str, Tensor], table: nn.Module
) -> tuple[Tensor, Tensor]:
    """Gradient of log p(sequence) at theta with respect to the embedded tokens, and these, both [b s d]."""
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        embedded.append(out.detach().requires_grad_())
        return embedded[-1] if len(embedded) == 1 else out

    handle = table.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            value = logprobs(theta, batch).sum()
            (gradient,) = torch.autograd.grad(value, embedded[:1])
    finally:
        handle.remove()
    return gradient, embedded[0].detach()


def token_embedding(trained: TrainedModel, train: Examples, name: str | None = None) -> nn.Module:
    """The module that turns token ids into vectors: by name, or the embedding that is called on the tokens."""
    tables = {clean_name(n): m for n, m in trained.model.named_modules() if isinstance(m, nn.Embedding)}
    if name is not None and name in tables:
        return tables[name]
    if name is not None or not tables:
        raise ModelError(
            "The model has no token embedding" + (f" called {name!r}." if name else "."),
            f"Its embeddings are {', '.join(tables)}." if tables else 'Use by="output".',
        )
    batch, found = trained.batch(train, [0]), list[nn.Module]()

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and torch.equal(args[0].flatten(), batch["input_ids"].flatten()):
            found.append(module)

    with ExitStack() as hooks, borrowed(trained.model), torch.no_grad():
        for table in tables.values():
            hooks.callback(table.register_forward_pre_hook(keep).remove)
        trained.task.logits(trained.model, batch)
    return found[0] if found else max(tables.values(), key=lambda m: m.num_embeddings)


def step_size(theta: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> float:
    """alpha with |alpha v| = STEP |theta|: small for the model, large for float32."""
    length = float(sum(x.double().square().sum() for x in v.values())) ** 0.5
    return STEP * float(sum(p.double().square().sum() for p in theta.values())) ** 0.5 / max(length, 1e-30)


def _parameters(
    model: nn.Module, vectors: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters that the directions move, and what else must be given beside them. A model in half precision runs
    in float32, all of it: a finite step of its parameters would be lost in rounding."""
    own: dict[str, Tensor] = {n: p.detach() for n, p in named_parameters(model).items()}
    theta = {n: widened(own[n]) for n in vectors[0]}
    every = own | dict(nn.Module.named_buffers(model))
    if all(t.dtype == wide(t.dtype) for t in every.values()):
        return theta, {}
    return theta, {n: t for n, t in _widened(every).items() if n not in theta}


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: widened(tensor) for name, tensor in tensors.items()}


def _width(batch: Mapping[str, Tensor], planned: int) -> int:
    """Positions of a batch, padding included."""
    return batch["input_ids"].shape[1] if "input_ids" in batch else planned


def _fill(
    out: np.ndarray, rows: np.ndarray, batch: Mapping[str, Tensor], train: Examples, values: Float[np.ndarray, "q b s"]
) -> None:
    """Write a batch's values at its real positions, from the left, whichever side is padded."""
    mask = batch.get("attention_mask")
    for place, row in enumerate(rows):
        if mask is not None and mask.shape == values.shape[1:]:
            own = values[:, place, to_numpy(mask[place]).astype(bool)]
        else:
            own = values[:, place, : int(train.lengths[row])]
        out[:, row, : own.shape[1]] = own


def _empty(queries: Examples, train: Examples) -> np.ndarray:
    """[q n s], NaN past an example's end. Raises DataError if there is no training example."""
    check_examples(train, "set of training examples")
    return np.full((len(queries), len(train), int(train.lengths.max())), np.nan, np.float32)


def _logprobs(trained: TrainedModel) -> Callable[..., Tensor]:
    """(tensors, batch) -> log-probabilities of the target tokens, 0 where they are not counted, [b t], with these
    parameters and buffers in place of the model's own. Raises DataError for a task without next tokens."""
    task: Any = trained.task
    if not (hasattr(task, "targets") and hasattr(task, "token_logprobs")):
        raise DataError(f"{type(task).__name__} predicts no tokens.", "Use it for language modelling.")
    return stateless(task.token_logprobs, trained.model)
