"""The others in the benchmark do what they are said to do."""

import numpy as np
import torch

from benchmarks import decomposition, decomposition_shown
from tests.decomp import reference


def test_the_published_loop_is_its_plain_transcription():
    x, atoms = reference.problem(0)
    codes = decomposition.published_loop(torch.from_numpy(x), torch.from_numpy(atoms), 5)
    np.testing.assert_allclose(codes, reference.paper_loop(x, atoms, 5), atol=1e-5)


def test_the_saelens_style_loop_is_nonnegative_pursuit_until_its_support_stays():
    x, atoms = reference.problem(1, d=40)
    codes = decomposition.saelens_style(torch.from_numpy(x), torch.from_numpy(atoms), 4)
    expected = reference.paper_loop(x, atoms, 4, signed=False)
    same = (codes.numpy() != 0).sum(1) == 4
    assert same.sum() > len(x) / 2
    np.testing.assert_allclose(codes[same], expected[same], atol=1e-5)


def test_the_published_construction_appends_every_row_that_fails():
    x = decomposition.structured(600, 16, parts=40)
    atoms, read = decomposition.published_build(torch.from_numpy(x), 200, 4, 0.2, 100, 16)
    assert read <= len(x)
    assert 16 < len(atoms) <= 200
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(len(atoms)))
    unit = x[:16] / np.linalg.norm(x[:16], axis=1, keepdims=True)
    np.testing.assert_allclose(atoms[:16], unit, atol=1e-6)


def test_every_implementation_is_in_the_table_with_its_error():
    machine = decomposition.Machine(1e10, 1e11)
    rows = list(decomposition.encode_rows(32, 128, 16, 4, machine))
    assert len(rows) == 10
    error = {row.name: row.error for row in rows}
    signed = [e for name, e in error.items() if name.startswith("ours: matching, ") or "published" in name]
    np.testing.assert_allclose(signed, signed[0], rtol=1e-2)
    assert error["ours: orthogonal, Gram float32"] < error["ours: matching + refit, Gram float32"] < signed[0]


def test_a_verdict_is_undecided_where_its_interval_holds_zero():
    verdict = [
        decomposition_shown.sign(decomposition_shown.over_seeds(np.array(gains)))
        for gains in ([0.1, 0.2, 0.15, 0.12], [-0.1, -0.2, -0.15], [-0.1, 0.2, 0.05, -0.2])
    ]
    assert verdict == [True, False, None]
