"""A device that is not the host: golden artefacts, computed with every model there, equal the frozen ones.

Covered are activations, gradients, one bank and the fits of attribution methods that the golden registry has; a tensor
on the wrong side raises in tests/away.py.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch

from tests.away import NAME, Away
from tests.golden import frozen
from tests.golden import models as given
from tests.golden.artefacts import ARTEFACTS
from whence.cache import Bank, DataError, Store, TrainedModel
from whence.cache.retrain import traced

FROZEN = frozen.load()
CASES = [name for name in ARTEFACTS if name in FROZEN]


def forget_models() -> None:
    """The golden files compute each model once: on this device, it is another."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tests.golden."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def away() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for bound in (TrainedModel, Bank):
        patch.setattr(bound, "__init__", elsewhere(bound.__init__))
    jax.config.update("jax_disable_most_optimizations", True)  # arrays are small here: compiling takes the time
    patch.setattr(traced, "_record", lambda function, inputs: None)  # a record names the host: its tensors lie there
    patch.setattr(given.Reader, "forward", reader)
    patch.setattr(given.Transformer, "forward", transformer)
    patch.setattr(given.Attention, "forward", attention)
    forget_models()
    with Away():
        yield
    patch.undo()
    forget_models()


# the golden models, whose source is frozen, make tensors on the host in their forward passes


def reader(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
    x = self.embed(input_ids)
    past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
    return self.head(torch.tanh(self.mix(x + past)))


def transformer(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
    x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1], device=input_ids.device)[None])
    return self.head(x + self.attn(self.norm(x)))


def attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    b, s, d = x.shape
    q, k, v = (part.view(b, s, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
    seen = torch.ones(s, s, dtype=torch.bool, device=x.device).tril()
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1)
    return self.o((weights @ v).transpose(1, 2).reshape(b, s, d))


def elsewhere(init: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, with the other device by default."""

    def construct(self: Any, *arguments: Any, **options: Any) -> None:
        options["device"] = options.get("device") or f"{NAME}:0"
        if isinstance(self, TrainedModel):
            options["check"] = False  # the emulation gives parameters other gradients
        init(self, *arguments, **options)

    return construct


@pytest.mark.parametrize("name", CASES)
def test_on_another_device(name: str, tmp_path) -> None:
    made = ARTEFACTS[name](Store(tmp_path))
    frozen.compare(made.values, FROZEN[name], made_anew=True)


def test_batches_left_on_the_host_are_found(tmp_path, monkeypatch) -> None:
    """The fault that `decomp.observe` once had."""

    def on_the_host(self: TrainedModel, examples: Any, rows: Any, pad_to: int | None = None) -> Any:
        return examples.batch(rows, pad_to=pad_to)

    monkeypatch.setattr(TrainedModel, "batch", on_the_host)
    with pytest.raises(DataError, match="is on the host, others are on away"):
        ARTEFACTS["activations/one"](Store(tmp_path))


def test_numpy_cannot_read_the_other_device() -> None:
    there = torch.ones(3).to(f"{NAME}:0")
    for read in (lambda: there.numpy(), lambda: np.asarray(there), lambda: there + torch.ones(3)):
        with pytest.raises(RuntimeError):
            read()
    assert there.device.type == NAME
    assert (2 * there).cpu().numpy().tolist() == [2.0, 2.0, 2.0]
