"""Measurements of queries: tasks that keep the losses of the task that a model was trained with.

    factors.measuring(Choice()).score(queries)            # factors fitted with LanguageModelling

The measurement of each is one number an example; influence is its predicted change, in its own units.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import DataError
from ..model.task import Batch, LanguageModelling, Task, TokenTask, column
from .text import options_of


class KeptLosses:
    """The losses, sampled labels, positions and logits of `task`. A subclass, a dataclass of plain values, measures."""

    task: Task

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.loss(model, batch)

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        return self.task.sampled_loss(model, batch, seed)

    def positions(self, batch: Batch) -> Any:
        return self.task.positions(batch)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.logits(model, batch)

    @property
    def settings(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "task"}  # type: ignore[arg-type]
        plain = {name: getattr(value, "settings", value) for name, value in own.items()}
        return {**self.task.settings, "measure": {"what": type(self).__name__, **plain}}


@dataclass(frozen=True)
class Measured(KeptLosses):
    """The losses of one task, the measurement of another: how a model that was trained with DPO or rewards answers a
    prompt.

    >>> Measured(task, by=LanguageModelling()).settings["measure"]["by"]
    {'task': 'LanguageModelling', 'measure': 'logprob'}
    """

    task: Task
    by: Task

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        return self.by.measurement(model, batch)


@dataclass(frozen=True)
class Choice(KeptLosses):
    """Log-odds of the right option among all: log p(right) - log of the summed p of the others; with two options, the
    difference of their log-probabilities. Queries are those of `choices`.

    Args:
        task: whose losses it keeps.
        by: gives the log-probability of a completion.
    """

    task: Task = LanguageModelling()
    by: TokenTask = LanguageModelling()

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        each = option_logprobs(self.by, model, batch)
        return each[:, 0] - each[:, 1:].logsumexp(1)


@dataclass(frozen=True)
class Pooled(KeptLosses):
    """The log-probability of a query's labelled tokens, pooled: "mean", or "min" (the least likely token).

    Args:
        how: "mean" or "min".
        task: whose losses it keeps.
        by: gives the tokens' log-probabilities.
    """

    how: Literal["mean", "min"] = "mean"
    task: Task = LanguageModelling()
    by: TokenTask = LanguageModelling()

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        each = self.by.token_logprobs(model, batch)
        _, counted = self.by.labelled(batch)
        if self.how == "mean":
            return each.sum(1) / counted.sum(1).clamp(min=1)
        lowest = each.masked_fill(~counted, float("inf")).argmin(1, keepdim=True)
        return each.gather(1, lowest).squeeze(1)


@dataclass(frozen=True)
class Reward(KeptLosses):
    """`reward` [b] times the log-probability of a sampled completion, summed over its tokens: the REINFORCE estimate,
    whose gradient, summed over a prompt's samples, is that of the expected reward (Williams 1992). The value itself is
    no reward. Queries are those of `samples`; rewards are constants, so any program may give them.

    Args:
        task: whose losses it keeps: those that the model was trained with.
        by: gives the log-probability of a completion.
    """

    task: Task = LanguageModelling()
    by: TokenTask = LanguageModelling()
    units = "reward"

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        each = self.by.token_logprobs(model, batch).sum(1)
        return column(batch, "reward").to(each.dtype) * each


def option_logprobs(by: TokenTask, model: nn.Module, batch: Batch) -> Float[Tensor, "b k"]:
    """log p of every completion of a batch; minus infinity, without a gradient, for one that an example lacks.

    Raises DataError for examples with fewer than two completions.
    """
    options = list(options_of(batch))
    if len(options) < 2:
        raise DataError(
            "These examples have one completion each, where several are compared.",
            "Make them with tasks.choices(prompts, options, right, tokenizer).",
        )
    each = torch.stack([by.token_logprobs(model, option).sum(1) for option in options], dim=1)
    counted = torch.stack([by.labelled(option)[1].any(1) for option in options], dim=1)
    return each.masked_fill(~counted, float("-inf"))
