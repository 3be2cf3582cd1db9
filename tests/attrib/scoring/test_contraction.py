"""The form of <P_q, G_b> that is chosen, against costs by hand."""

import torch

from whence.attrib.scoring import contraction
from whence.cache import find_sites


def test_form_follows_cost_and_bytes() -> None:
    site = find_sites(torch.nn.Linear(1024, 1024, bias=False), quiet=True)

    def form(queries: int, rank: int | None, limit: float) -> str:
        return contraction.choose(site, queries, 512, 16, rank, int(limit), 4)[site[0].name].form

    assert form(4, 32, 1e12) == "positions"
    assert form(512, 32, 1e12) == "tiles"
    assert form(512, 32, 1e8) == "rank"
    assert form(512, None, 1e8) == "tiles"
    works = {w.form: w for w in contraction.options(64, 512, 16, 1024, 1024, 32)}
    assert works["tiles"].operations == 2 * 512 * 1024**2 + 2 * 64 * 1024**2
    assert works["tiles"].nbytes == 64 * 1024**2 * 4
    assert works["rank"].nbytes == 64 * 32 * 2048 * 4
    assert [w.form for w in contraction.options(4, 512, 16, 20, 20, 32)] == ["tiles"]  # no smaller factors
