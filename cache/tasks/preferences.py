"""Direct preference optimisation: a model trained on pairs of answers, against a reference model."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import DataError
from ..model import rng
from ..model.batches import BATCH_POSITIONS, plan_batches
from ..model.borrowing import borrowed
from ..model.bridge import to_numpy
from ..model.examples import Examples
from ..model.task import Batch, LanguageModelling, Settings, column
from .measured import option_logprobs
from .text import options_of


@dataclass(frozen=True)
class DPO(Settings):
    """-log sigmoid(h), h = beta * (log p(preferred) - log p(other) - reference) (Rafailov et al. 2023, equation 7).

    Pairs are those of `choices` (two options, the preferred one first) with the column `reference` of
    `with_reference`. Sampled labels are which answer is preferred, drawn with the model's own probability sigmoid(h):
    the Fisher matrix of the Bradley-Terry model that DPO fits. The measurement is h, the log-odds, or log sigmoid(h).

    Args:
        beta: the inverse temperature of training.
        measure: "logit" (h) or "logprob".

    Its losses raise DataError for data without `reference`, or without two answers each.
    """

    beta: float = 0.1
    measure: Literal["logit", "logprob"] = "logit"

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b 1"]:
        if "reference" not in batch:
            raise DataError(
                "DPO needs the column reference: log p(preferred) - log p(other) under the reference model.",
                "Add it: tasks.with_reference(pairs, model_before_training).",
            )
        return (self.beta * (difference(model, batch) - column(batch, "reference"))).unsqueeze(1)

    def positions(self, batch: Batch) -> Bool[Tensor, "b r"]:
        """The real tokens of both answers, one after the other, as the layers see them."""
        return torch.cat([LanguageModelling().positions(option) for option in options_of(batch)], dim=1)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        return -F.logsigmoid(self.logits(model, batch)[:, 0])

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Float[Tensor, " b"]:
        h = self.logits(model, batch)[:, 0]
        ids = column(batch, "example_id").cpu().numpy()
        u = torch.as_tensor(rng.uniforms(seed, ids, np.zeros((len(ids), 1), np.int64))[:, 0], device=h.device)
        return -F.logsigmoid(torch.where(u < h.detach().double().sigmoid(), h, -h))

    def measurement(self, model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
        h = self.logits(model, batch)[:, 0]
        return h if self.measure == "logit" else F.logsigmoid(h)


def difference(model: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """log p of the first completion minus log p of the second."""
    each = option_logprobs(LanguageModelling(), model, batch)
    if each.shape[1] != 2:
        raise DataError(f"These examples have {each.shape[1]} answers each.", "Give the preferred one and one other.")
    return each[:, 0] - each[:, 1]


def with_reference(pairs: Examples, reference: nn.Module) -> Examples:
    """The pairs with the column `reference` [n]: log p(preferred) - log p(other) under the model before training.

    Args:
        pairs: of `choices`, with two options each.
        reference: the frozen model, on its own device; it is not needed afterwards.
    """
    values = np.zeros(len(pairs), np.float64)
    own = next(iter(reference.parameters()))
    lengths = pairs.lengths
    with borrowed(reference), torch.no_grad():
        for planned in plan_batches(lengths, np.arange(len(pairs)), BATCH_POSITIONS):
            batch = pairs.batch(planned.rows, planned.width, own.device, own.dtype)
            values[planned.rows] = to_numpy(difference(reference, batch).double())
    return Examples({**pairs.columns, "reference": values}, pairs.ids, pairs.about)
