"""Scores of heads against those of the maps that they are parts of."""

import numpy as np
import pytest
import torch

from tests import reference
from whence.attrib.scoring.heads import Head, find_heads
from whence.attrib.scoring.queries import exact_queries
from whence.cache import ModelError, find_sites


def test_heads_add_up_to_their_maps(fitted) -> None:
    trained, factors, queries = fitted.trained, fitted.factors, fitted.queries
    heads = find_heads(factors.sites.only(["qkv"]), 2)
    assert [h.name for h in heads] == [f"qkv/{p}{n}" for p in "qkv" for n in range(2)]
    reads = [Head("out", "o", n, "in", 4 * n, 4 * n + 4) for n in range(2)]
    found = factors.head_scores(queries, [*heads, *reads])
    by_site = factors.score(queries, per_site=True)
    np.testing.assert_allclose(
        found.values[..., :6].sum(-1), by_site.sel(site="qkv").values, atol=1e-5 * np.abs(by_site.values).max()
    )
    # the output map's bias belongs to no head
    prepared = exact_queries(factors, queries)["out"]
    own = reference.site_gradients(trained.model, factors.sites, trained.train, trained.task.loss)["out"]
    wanted = -np.einsum("qoi,noi->qn", np.asarray(prepared)[:, :, :8], own[:, :, :8]) / 30
    np.testing.assert_allclose(found.values[..., 6:].sum(-1), wanted, atol=1e-5 * np.abs(wanted).max())
    with pytest.raises(ModelError, match="no site 'up'"):
        factors.head_scores(queries, [Head("up", "q", 0, "out", 0, 4)])


def test_heads_are_found_by_the_names_in_use() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = torch.nn.ModuleDict(
                {"q_proj": torch.nn.Linear(8, 8), "k_proj": torch.nn.Linear(8, 4), "o_proj": torch.nn.Linear(8, 8)}
            )
            self.mlp = torch.nn.Linear(8, 8)

    found = find_heads(find_sites(Block(), quiet=True), 4, 2)
    assert [(h.name, h.axis, h.start) for h in found if h.number == 1] == [
        ("self_attn.q_proj/q1", "out", 2), ("self_attn.k_proj/k1", "out", 2), ("self_attn.o_proj/o1", "in", 2),
    ]  # fmt: skip
    with pytest.raises(ModelError, match="does not divide into 3 heads"):
        find_heads(find_sites(Block(), quiet=True), 3, 3)
    with pytest.raises(ModelError, match="None of these sites is an attention map"):
        find_heads(find_sites(Block(), "mlp", quiet=True), 4)
