"""Every architecture that people bring equals autograd at every site, example by example, and has a row a position at
each of its blocks; what is left out of it is what the documents say."""

from functools import cache

import numpy as np
import pytest
import torch

from tests import reference
from tests.cache.model.architectures import TABLE
from whence.cache import Store, TrainedModel, activations, find_sites
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
    one.model.eval().requires_grad_(True)  # adapters too: reference gradients are of every parameter
    if name in EXPERTS:  # torch multiplies them all at once in single precision only
        one.model.set_experts_implementation("eager")
    wanted = reference.site_gradients(one.model, sites, examples, one.task.loss)
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
