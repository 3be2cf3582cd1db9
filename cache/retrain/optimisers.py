"""SGD, AdamW and Muon as pure functions, as optax's pairs of `init` and `update`: what torch.optim's compute.

Parameters, gradients and averages are trees of one form: a matrix [e P], whose rows are the parameters of e models
that are trained side by side, or a dict of tensors by name, the parameters of one model. Nothing is written in place,
so every point of a run may be kept, and a step can be differentiated in parameters, averages and gradient.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import UsageError

Tree: TypeAlias = Tensor | Mapping[str, Tensor]
Rate: TypeAlias = Tensor | float  # [e 1] for a matrix, one number for a dict


class Moments(NamedTuple):
    """An optimiser's state: averages of the gradients so far (SGD: momentum; AdamW: first and second moment), and the
    number of steps taken ([e 1] for a matrix)."""

    averages: tuple[Tree, ...]
    taken: Tensor | int


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with (heavy-ball or Nesterov) momentum, as torch.optim.SGD."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_settings(self, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def init(self, parameters: Tree) -> Moments:
        return Moments((_zeros(parameters),), _none_taken(parameters))

    def update(self, gradient: Tree, moments: Moments, parameters: Tree, rate: Rate) -> tuple[Tree, Moments]:
        """Parameters and state after one step at this rate."""

        def one(p: Tensor, g: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
            g = g.add(p, alpha=self.weight_decay) if self.weight_decay else g
            average = average * self.momentum + g
            step = g.add(average, alpha=self.momentum) if self.nesterov else average
            rates = torch.as_tensor(rate, dtype=p.dtype, device=p.device).expand_as(step)
            return p.addcmul(step, rates, value=-1), average

        parameters, average = _for_each(one, parameters, gradient, *moments.averages)
        return parameters, Moments((average,), moments.taken + 1)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_settings(self, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas of AdamW are {self.betas}.", "Give two numbers from 0 to below 1.")

    def init(self, parameters: Tree) -> Moments:
        return Moments((_zeros(parameters), _zeros(parameters)), _none_taken(parameters))

    def update(self, gradient: Tree, moments: Moments, parameters: Tree, rate: Rate) -> tuple[Tree, Moments]:
        """Parameters and state after one step at this rate."""
        a, b = self.betas
        count = moments.taken + 1
        scale = (1 - b**count) ** 0.5
        factor = -rate * scale / (1 - a**count)

        def one(p: Tensor, g: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            first = first.lerp(g, 1 - a)
            second = (second * b).addcmul_(g, g, value=1 - b)
            p = p * (1 - rate * self.weight_decay) if self.weight_decay else p
            # clamped, because the root's derivative is infinite at 0, where a parameter never had a gradient
            root = second.clamp(min=torch.finfo(second.dtype).tiny)
            if second.requires_grad or p.requires_grad:
                return p.addcdiv(first * factor, root.sqrt() + self.eps * scale), first, second
            step = first * factor  # the same operations, without new memory for each
            return torch.addcdiv(p, step, root.sqrt_().add_(self.eps * scale), out=step), first, second

        parameters, *averages = _for_each(one, parameters, gradient, *moments.averages)
        return parameters, Moments(tuple(averages), count)


@dataclass(frozen=True)
class Muon:
    """Momentum whose step on a matrix is made orthogonal by five Newton-Schulz iterations (Jordan et al. 2024), as
    torch.optim.Muon, for the hidden layers' matrices; AdamW for every other parameter. For one model, as a dict.

    Args:
        lr: the rate of AdamW's parameters.
        ratio: the rate of the hidden matrices over `lr`.
        momentum: of the hidden matrices (Nesterov).
        weight_decay: of the hidden matrices.
        hidden: the beginning of the names of hidden layers' parameters; their matrices take orthogonal steps.
        rest: the optimiser of the others.
    """

    lr: float = 1e-2
    ratio: float = 4.0
    momentum: float = 0.95
    weight_decay: float = 0.01
    hidden: str = "blocks."
    rest: AdamW = field(default_factory=lambda: AdamW(betas=(0.9, 0.98), weight_decay=0.1))

    def __post_init__(self) -> None:
        _check_settings(
            self, lr=self.lr, ratio=self.ratio, momentum=self.momentum, weight_decay=self.weight_decay
        )  # fmt: skip

    def init(self, parameters: Tree) -> Moments:
        if isinstance(parameters, Tensor):
            raise UsageError("Muon trains one model, whose parameters have names.", "Use AdamW for a bank.")
        return self.rest.init(parameters)

    def update(self, gradient: Tree, moments: Moments, parameters: Tree, rate: Rate) -> tuple[Tree, Moments]:
        """Parameters and state after one step: `rate` for AdamW's parameters, `ratio` times it for the matrices."""
        own = cast(Mapping[str, Tensor], parameters)
        matrices = [name for name, p in own.items() if p.ndim == 2 and name.startswith(self.hidden)]
        fast = torch.as_tensor(rate * self.ratio)

        def one(p: Tensor, g: Tensor, average: Tensor, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            average = average.lerp(g, 1 - self.momentum)
            step = orthogonalised(g.lerp(average, self.momentum)) * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            return p * (1 - fast * self.weight_decay) - step * fast, average, unused

        def part(tree: Tree, chosen: bool) -> Tree:
            named = cast(Mapping[str, Tensor], tree)
            return {name: named[name] for name in own if (name in matrices) == chosen}

        averages = [part(tree, False) for tree in moments.averages]
        others, state = self.rest.update(
            part(gradient, False), Moments(tuple(averages), moments.taken), part(parameters, False), rate
        )
        hidden = _for_each(
            one, part(parameters, True), part(gradient, True), *(part(tree, True) for tree in moments.averages)
        ) if matrices else ({}, {}, {})  # fmt: skip
        merged = [
            {name: cast(Mapping[str, Tensor], tree)[name] for name in own for tree in pair if name in tree}
            for pair in zip((others, *state.averages), hidden)
        ]
        return merged[0], Moments(tuple(merged[1:]), state.taken)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of this one and singular values near 1 (0.7 to 1.2), by five iterations of
    a X + b (X X^T) X + c (X X^T)^2 X (Jordan et al. 2024)."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


Optimiser: TypeAlias = SGD | AdamW | Muon


def clipped(gradient: Tree, limit: float) -> Tree:
    """The gradient of every model scaled down to norm `limit` if it is longer."""
    if isinstance(gradient, Tensor):
        norms = gradient.norm(dim=1, keepdim=True)
        return gradient * (limit / norms.clamp(min=1e-12)).clamp(max=1.0)
    # the square is clamped before the root for the root's derivative at 0
    norm = torch.stack([(g * g).sum() for g in gradient.values()]).sum().clamp(min=1e-24).sqrt()
    return {name: g * (limit / norm).clamp(max=1.0) for name, g in gradient.items()}


def _check_settings(optimiser: Optimiser, **settings: float) -> None:
    """Raise UsageError for a number that is negative or not finite."""
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise UsageError(
                f"{name} of {type(optimiser).__name__} is {value}.", "Give a finite number that is not negative."
            )


def _zeros(parameters: Tree) -> Tree:
    return tree_map(torch.zeros_like, parameters)


def _none_taken(parameters: Tree) -> Tensor | int:
    return parameters.new_zeros(len(parameters), 1) if isinstance(parameters, Tensor) else 0


def _for_each(function: Callable[..., tuple[Tensor, ...]], parameters: Tree, *trees: Tree) -> tuple[Tree, ...]:
    """`function` of every leaf of the trees, as a tuple of trees."""
    if isinstance(parameters, Tensor):
        return function(parameters, *trees)
    named = cast(tuple[Mapping[str, Tensor], ...], trees)
    found = {name: function(p, *(tree[name] for tree in named)) for name, p in parameters.items()}
    return tuple(dict(zip(found, parts)) for parts in zip(*found.values()))
