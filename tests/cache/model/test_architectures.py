"""Every architecture that people bring equals autograd at every site, example by example, and has a row a position at
each of its blocks; what is left out of it is what the documents say."""

import copy
import math
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import cases, reference
from tests.cache.model.architectures import TABLE, TEXT, Pairs, pictures_and_texts, tokens
from tests.cache.model.test_checks import FlatSequenceFirst, bound, network
from tests.cache.model.test_quantised import FourBit
from whence.cache import (
    Classification,
    Examples,
    LanguageModelling,
    ModelError,
    Store,
    TrainedModel,
    activations,
    find_sites,
)
from whence.cache.model.capture import capture

EXPERTS = ("Mixtral", "Qwen 2 MoE", "Qwen 3 MoE", "gpt-oss")
KINDS = ("linear", "conv", "embedding", "norm")


@cache
def trained(name: str) -> TrainedModel:
    torch.manual_seed(0)
    build = TABLE[name]
    model = build.model().double()
    sites = find_sites(model, kinds=KINDS, quiet=True)
    return TrainedModel(model, build.data(), build.task, sites=sites, quiet=True)


@pytest.mark.parametrize("name", TABLE)
def test_every_site_equals_autograd_example_by_example(name: str) -> None:
    one = trained(name)
    sites, examples = one.find(), one.train
    seen = capture(one.model, sites, one.batch(examples, range(len(examples))), one.task.loss)
    plain = copy.deepcopy(one.model).eval().requires_grad_(True)  # the reference needs gradients of a frozen base too
    if name in EXPERTS:  # torch multiplies them all at once in single precision only
        plain.set_experts_implementation("eager")
    wanted = reference.site_gradients(plain, sites, examples, one.task.loss)
    for site in sites:
        found = torch.einsum("bso,bsi->boi", seen.grads[site.name], seen.inputs[site.name]).numpy()
        scale = np.abs(wanted[site.name]).max()  # norm layers of transformers compute in float32
        np.testing.assert_allclose(found, wanted[site.name], rtol=1e-4, atol=1e-6 * scale, err_msg=site.name)


@pytest.mark.parametrize("name", TABLE)
def test_blocks_give_a_row_a_position(name: str, store: Store) -> None:
    one = trained(name)
    for block, each in TABLE[name].blocks.items():
        rows = activations(one, block, store=store).read(block)
        assert len(rows) == (one.train.real_positions.sum() if each is None else each * len(one.train))


def row(name: str) -> str:
    """The line of an architecture in the documents."""
    one = trained(name)
    sites = one.find()
    frozen = any(not p.requires_grad for p in one.model.parameters())
    parts = {re.sub(r"\[\d+\]|\.(weight|bias)$", "", part).rpartition(".")[2] for part, _ in sites.left_out}
    left = "the frozen base" if frozen else ", ".join(f"`{part}`" for part in sorted(parts)) or "–"
    why = {True: "experts", False: "tables of relative positions"}[any(site.routed for site in sites)]
    note = f"examples run one at a time: {why}" if sites.alone else ""
    return f"| {name} | {math.floor(1000 * sites.coverage) / 10:.1f} % | {left} | {note} |"


def section() -> str:
    return (Path(__file__).parents[3] / "docs" / "cache.md").read_text().split("## Models\n")[1].split("\n## ")[0]


def test_the_documents_say_what_is_covered_of_each_architecture() -> None:
    stated = [line for line in section().splitlines() if line.startswith("| ") and " % | " in line]
    assert stated == [row(name) for name in TABLE]


class Contrastive(Pairs):
    """CLIP's own loss: each text against all pictures of the batch."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), pixel_values=batch["pixels"]
        )
        return -out.logits_per_text.log_softmax(1).diagonal()


class Functional(nn.Module):
    """Multiplies by a layer's weight beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + (x**2) @ self.layer.weight.T


def masked_language_model() -> TrainedModel:
    from transformers import BertConfig, BertForMaskedLM

    return bound(BertForMaskedLM(BertConfig(**TEXT)), tokens(), LanguageModelling())


class Vectorised(nn.Module):
    """Calls its layer row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.layer)(x)


def compiled() -> TrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: it is deprecated
        return TrainedModel(torch.jit.script(network()), cases.vectors(), Classification(), quiet=True)


def without_graph() -> TrainedModel:
    model = network()
    model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
    return bound(model, cases.vectors())


REFUSED: dict[str, tuple[Callable[[], TrainedModel], str]] = {
    "a loss over the whole batch": (
        lambda: bound(trained("CLIP").model, pictures_and_texts(), Contrastive(), sites="*"), "change each other",
    ),
    "a bidirectional model under `LanguageModelling`": (masked_language_model, "masked language model"),
    "positions and examples on one axis, positions first ([s*b d])": (
        lambda: bound(FlatSequenceFirst(), vectors_in_rows()), "order of rows",
    ),
    "a layer whose weight is also used outside it": (lambda: bound(Functional(), cases.vectors()), "outside the layer"),
    "a computed weight (parametrisation, pruning)": (
        lambda: bound(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), cases.vectors(), sites="*"), "computed",
    ),
    "quantised layers without adapters": (
        lambda: bound(nn.Sequential(FourBit(nn.Linear(4, 4))), cases.vectors(), sites="*"), "quantised",
    ),
    "a forward pass without a graph": (without_graph, "without a graph"),
    "a layer inside `torch.vmap`": (
        lambda: bound(Vectorised(), cases.vectors(), Classification()), "transformed function"
    ),
    "a model compiled by `torch.jit`": (compiled, r"torch\.jit"),
}  # fmt: skip


def vectors_in_rows() -> Examples:
    return Examples.of((np.random.default_rng(0).normal(size=(4, 5, 8)), np.arange(4) % 3))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_attributed_is_refused_with_why(what: str) -> None:
    build, cause = REFUSED[what]
    with pytest.raises(ModelError, match=cause):
        build().check()


def test_the_documents_say_what_cannot_be_attributed() -> None:
    lines = section().split("| refused |")[1].splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")] == list(REFUSED)
