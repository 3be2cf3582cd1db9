import jax.numpy as jnp
import numpy as np
import pytest

from tests.decomp import reference
from whence.decomp import kernels as K

PURSUITS = {
    "matching": (K.matching_pursuit, lambda x, d, k: reference.paper_loop(x, d, k)),
    "nonnegative": (K.nonnegative_matching_pursuit, lambda x, d, k: reference.paper_loop(x, d, k, False)),
    "refitted": (K.refitted_matching_pursuit, reference.refitted),
    "orthogonal": (K.orthogonal_matching_pursuit, reference.orthogonal),
    "gradient": (K.gradient_pursuit, reference.gradient),
}


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("name", PURSUITS)
def test_a_pursuit_is_its_plain_transcription(name, gram):
    x, atoms = reference.problem(0)
    make, oracle = PURSUITS[name]
    code = K.encode(make(5), jnp.asarray(x), K.basis_of(jnp.asarray(atoms), gram), chunk=5)
    np.testing.assert_allclose(K.densify(code, len(atoms)), oracle(x, atoms, 5), atol=2e-5)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", PURSUITS)
def test_the_certificate_is_the_residual(name, gram, seed):
    """The norm carried along equals ‖x − decode‖², also where atoms repeat (k beyond the width)."""
    x, atoms = reference.problem(seed, d=10)
    code = K.encode(PURSUITS[name][0](14), jnp.asarray(x), K.basis_of(jnp.asarray(atoms), gram))
    left = jnp.sum((x - K.decode(code, jnp.asarray(atoms))) ** 2, axis=1)
    np.testing.assert_allclose(code.residual, left, atol=1e-5 * float(code.energy.max()))


@pytest.mark.parametrize("name", ["matching", "nonnegative"])
def test_matching_pursuit_conserves_energy(name):
    """‖x‖² − Σ c² = ‖r‖² for unit atoms."""
    x, atoms = reference.problem(1)
    code = K.encode(PURSUITS[name][0](9), jnp.asarray(x), K.basis_of(jnp.asarray(atoms)))
    np.testing.assert_allclose(code.energy - jnp.sum(code.values**2, axis=1), code.residual, atol=1e-5)


@pytest.mark.parametrize("name", ["orthogonal", "refitted"])
def test_the_residual_of_a_projection_is_orthogonal_to_the_support(name):
    x, atoms = reference.problem(2)
    code = K.encode(PURSUITS[name][0](6), jnp.asarray(x), K.basis_of(jnp.asarray(atoms)))
    left = x - K.decode(code, jnp.asarray(atoms))
    on_support = jnp.einsum("bd,bkd->bk", left, jnp.asarray(atoms)[code.indices])
    assert float(jnp.abs(jnp.where(code.values != 0, on_support, 0)).max()) < 1e-5


def test_orthogonal_pursuit_is_scikit_learns():
    from sklearn.linear_model import orthogonal_mp_gram

    x, atoms = reference.problem(3)
    wide = atoms.astype(np.float64)
    theirs = orthogonal_mp_gram(wide @ wide.T, wide @ x.T.astype(np.float64), n_nonzero_coefs=5).T
    code = K.encode(K.orthogonal_matching_pursuit(5), jnp.asarray(x), K.basis_of(jnp.asarray(atoms)))
    np.testing.assert_allclose(K.densify(code, len(atoms)), theirs, atol=2e-5)


def test_quality_is_ordered():
    """On one support size: projection ≤ refit ≤ matching, and non-negative is the worst."""
    x, atoms = reference.problem(4, b=200)
    basis = K.basis_of(jnp.asarray(atoms))
    left = {n: float(K.encode(p[0](6), jnp.asarray(x), basis).residual.sum()) for n, p in PURSUITS.items()}
    assert left["orthogonal"] < left["refitted"] < left["matching"] < left["nonnegative"]
    assert left["gradient"] < left["matching"]


@pytest.mark.parametrize("name", PURSUITS)
def test_a_target_stops_each_signal_as_soon_as_it_is_met(name):
    x, atoms = reference.problem(5)
    basis = K.basis_of(jnp.asarray(atoms))
    full = K.encode(PURSUITS[name][0](8), jnp.asarray(x), basis)
    short = K.encode(PURSUITS[name][0](8, target=0.2), jnp.asarray(x), basis)
    met = np.asarray(short.unexplained) <= 0.2
    steps = np.count_nonzero(short.values, axis=1)
    assert met.any()
    assert (steps[~met] == np.count_nonzero(full.values, axis=1)[~met]).all()
    if name in ("matching", "nonnegative"):
        before = 1 - np.cumsum(np.asarray(full.values) ** 2, axis=1) / np.asarray(full.energy)[:, None]
        assert (steps[met] == 1 + np.argmax(before <= 0.2, axis=1)[met]).all()


def test_a_bfloat16_gram_keeps_the_error_and_most_of_the_support():
    x, atoms = reference.problem(6, b=100)
    exact = K.encode(K.matching_pursuit(5), jnp.asarray(x), K.basis_of(jnp.asarray(atoms)))
    half = K.encode(K.matching_pursuit(5), jnp.asarray(x), K.basis_of(jnp.asarray(atoms), gram_dtype=jnp.bfloat16))
    left = jnp.sum((x - K.decode(half, jnp.asarray(atoms))) ** 2, axis=1)
    np.testing.assert_allclose(half.residual, left, rtol=1e-4)  # measured, as what is carried along is rounded
    assert float(left.sum()) < 1.02 * float(exact.residual.sum())
    assert np.mean(np.asarray(exact.indices) == np.asarray(half.indices)) > 0.8


def test_zero_signals_and_padding_rows_take_no_atom():
    _, atoms = reference.problem(8)
    code = K.encode(K.matching_pursuit(3), jnp.zeros((3, 24)), K.basis_of(jnp.asarray(atoms)))
    assert not np.any(code.values)
    assert (np.asarray(code.unexplained) == 0).all()


@pytest.mark.parametrize("gram", [True, False])
def test_appending_is_building_at_once(gram):
    _, atoms = reference.problem(9, a=100)
    grown = K.basis_of(jnp.asarray(atoms[:60]), gram, capacity=128)
    grown = K.append(grown, jnp.asarray(atoms[60:]), jnp.int32(60))
    whole = K.basis_of(jnp.asarray(atoms), gram, capacity=128)
    np.testing.assert_array_equal(grown.atoms, whole.atoms)
    if gram:
        np.testing.assert_allclose(grown.gram, whole.gram, atol=1e-6)


@pytest.mark.parametrize("name", PURSUITS)
def test_searching_a_tile_of_atoms_at_a_time_is_searching_them_all(name, monkeypatch):
    """The last tile overlaps the one before; nothing as wide as all atoms is kept."""
    monkeypatch.setattr(K.forms, "TILE", 192)
    x, atoms = reference.problem(10, b=13, a=310)
    make = PURSUITS[name][0]
    tiled = K.encode(make(4), jnp.asarray(x), K.basis_of(jnp.asarray(atoms), gram=False), chunk=7)
    whole = K.encode(make(4), jnp.asarray(x), K.basis_of(jnp.asarray(atoms)), chunk=7)
    np.testing.assert_array_equal(tiled.indices, whole.indices)
    np.testing.assert_allclose(tiled.values, whole.values, atol=1e-5)


def test_a_hundred_thousand_atoms_need_no_array_of_signals_by_atoms():
    x, basis = jnp.zeros((64, 32)), K.Basis(jnp.zeros((100_032, 32)), None)
    memory = K.encode.lower(K.matching_pursuit(2), x, basis, 64).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 100_032 * 4 / 2


def test_ties_go_to_the_first_atom():
    atoms = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    code = K.encode(K.matching_pursuit(1), jnp.eye(3), K.basis_of(jnp.asarray(atoms)))
    assert code.indices[:, 0].tolist() == [0, 50, 100]


def test_the_form_goes_by_what_fits():
    """float32 up to 32,768 atoms, bfloat16 up to 46,336, none beyond."""
    assert K.gram_pays(32768)
    assert not K.gram_pays(40000)
    assert K.gram_pays(40000, itemsize=2)
    assert not K.gram_pays(50000, itemsize=2)
