"""Activations of every size, type and repetition: the right code, or an error that names cause and cure."""

import numpy as np
import pytest
import torch
from torch import nn

from whence.cache import Classification, DataError, Examples, LanguageModelling, ModelError, TrainedModel, UsageError
from whence.decomp import (
    ITDA,
    SAE,
    Activations,
    Coefficient,
    KMeans,
    Partition,
    Random,
    evaluate,
    features,
    observe,
    spliced,
)
from whence.decomp.dictionary import PURSUITS
from whence.decomp.splice import constant, steered, through

ROWS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
EQUAL = np.repeat(ROWS[:1], 12, 0)


@pytest.fixture(scope="module")
def dictionary():
    return ITDA(size=8, k=2).build(ROWS)


@pytest.mark.parametrize("size", [1e25, 1e19, 1e-25])
def test_signals_that_float32_cannot_square_are_refused(dictionary, size: float) -> None:
    signals = (ROWS * size).astype(np.float32)
    with pytest.raises(DataError, match="squared norm outside"):
        dictionary.encode(signals)
    for build in (ITDA(size=8, k=2), Random(8, k=2), KMeans(8, k=2)):
        with pytest.raises(DataError, match=r"too large for float32.*too small"):
            build.build(signals)
    with pytest.raises(DataError, match=r"too large for float32.*too small"):
        evaluate(dictionary, signals)


@pytest.mark.parametrize("size", [2.0**50, 2.0**-40])
def test_a_code_scales_with_its_signal(dictionary, size: float) -> None:
    signals = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)
    one, other = dictionary.encode(signals), dictionary.encode(signals * np.float32(size))
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.values, other.values / size, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.unexplained, other.unexplained, rtol=1e-3, atol=1e-6)


def test_rows_that_cannot_be_used_are_counted(dictionary) -> None:
    rows = ROWS.copy()
    rows[3], rows[5], rows[7], rows[9], rows[11] = 0, np.nan, np.inf, 1e25, 1e-25
    settings = ITDA(size=8, k=2).build(rows).settings
    assert (settings["rows_not_finite"], settings["rows_zero"]) == (3, 2)
    found = evaluate(dictionary, rows)
    assert (found.rows_not_finite, found.rows_zero) == (3, 2)


def test_a_zero_signal_has_a_zero_code_and_no_signal_has_none(dictionary) -> None:
    code = dictionary.encode(np.zeros((1, 8)))
    assert not np.any(code.values)
    assert code.unexplained.tolist() == [0]
    assert dictionary.encode(ROWS[:0]).values.shape == (0, 2)
    assert features(dictionary, ROWS[:0]).density.tolist() == [0] * len(dictionary)


@pytest.mark.parametrize("rows", [np.repeat(ROWS[:1], 5, 0), ROWS[:1]], ids=["equal", "one"])
def test_no_variance_leaves_no_share_of_it(dictionary, rows: np.ndarray) -> None:
    found = evaluate(dictionary, rows).value
    assert np.isnan(found.sel(metric="fvu"))
    assert np.isfinite(found.sel(metric=["cosine_error", "l0", "dead", "rare"])).all()


@pytest.mark.parametrize("given", [
    ROWS.astype(np.float16), ROWS.astype(np.float64), (ROWS * 9).astype(int), torch.tensor(ROWS).bfloat16(),
    ROWS.tolist(),
], ids=["float16", "float64", "integers", "bfloat16 tensor", "lists"])  # fmt: skip
def test_every_type_of_number_is_read(dictionary, given: object) -> None:
    wide = given.float().numpy() if isinstance(given, torch.Tensor) else np.asarray(given, np.float32)
    np.testing.assert_array_equal(ITDA(size=8, k=2).build(given).atoms, ITDA(size=8, k=2).build(wide).atoms)
    np.testing.assert_array_equal(dictionary.encode(given).values, dictionary.encode(wide).values)


def test_what_is_no_table_of_numbers_is_refused(dictionary) -> None:
    with pytest.raises(DataError, match="Signals of shape"):
        dictionary.encode(ROWS[0])
    with pytest.raises(DataError, match="type <U1"):
        Activations.of(np.array([["a", "b"]]))
    with pytest.raises(DataError, match="type object"):
        Activations.of(np.array([[1, None]], object))


@pytest.mark.parametrize("k", [0, 9])
def test_steps_beyond_the_dictionary_are_refused(dictionary, k: int) -> None:
    with pytest.raises(UsageError, match="Choose k from 1 to 8"):
        dictionary.encode(ROWS, k=k)
    with pytest.raises(UsageError, match="Choose k from 1 to 8"):
        SAE(size=8, k=2, batch=8, tokens=64).build(ROWS).encode(ROWS, k=k)


@pytest.mark.parametrize("ids", [np.array([2**63 + 5], np.uint64), [0.2], [float("nan")], ["a17"]])
def test_ids_are_kept_exactly_or_refused(ids: object) -> None:
    with pytest.raises(DataError, match="document column has the type"):
        Activations.of(ROWS[:1], document=np.asarray(ids))
    large = np.array([2**63 - 1, -5])
    assert Activations.of(ROWS[:2], document=large).document.tolist() == large.tolist()


def test_activations_that_repeat_are_said_to_repeat() -> None:
    for build, message in (
        (ITDA(size=4, k=2), "the activations repeat"),
        (ITDA(size=4, k=2, seeds=2), "1 distinct ones"),
        (KMeans(4, k=2), "hold 1 different ones"),
        (KMeans(4, k=2, snap=False), "hold 1 different ones"),
        (Partition(), "equal their mean"),
        (SAE(size=4, k=2, batch=4), "All activations are the same"),
    ):
        with pytest.raises(DataError, match=message):
            build.build(EQUAL)


def test_a_threshold_that_adds_nothing_names_the_share_that_would() -> None:
    near = EQUAL + 0.05 * np.random.default_rng(0).normal(size=EQUAL.shape).astype(np.float32)
    with pytest.raises(UsageError, match=r"the largest share was 0.0.*(?s:.)*Lower the threshold below"):
        ITDA(size=4, k=1, unexplained=0.5).build(near)


@pytest.mark.parametrize("pursuit", list(PURSUITS))
def test_equal_atoms_leave_every_pursuit_finite(pursuit: str) -> None:
    equal = Random(4, k=4).build(EQUAL)
    found = equal.encode(ROWS, pursuit=pursuit)
    assert np.isfinite(equal.decode(found)).all()
    assert (found.unexplained <= 1 + 1e-5).all()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.z, self.h = nn.Embedding(11, 8), nn.Identity(), nn.Linear(8, 11)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.h(self.z(self.e(input_ids).unflatten(-1, (2, 4))).flatten(-2))


@pytest.fixture(scope="module")
def heads() -> TrainedModel:
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 11, (6, 5))
    return TrainedModel(Heads(), Examples.of({"input_ids": tokens}), LanguageModelling(), quiet=True)


def test_heads_are_decomposed_together_and_spliced_back(heads: TrainedModel) -> None:
    seen = observe(heads, at="z")
    assert seen.width == 8
    built = ITDA(size=8, k=8, unexplained=0.01, seeding="none").build(seen)
    tokens = heads.batch(heads.train, [0, 1])["input_ids"]
    plain = heads.model(tokens)
    with spliced(heads, "z", through(built), skip=[0]) as model:
        changed = model(tokens)
    left = torch.tensor(built.reconstruct(seen.whole().x[:10], k=8)).reshape(2, 5, 8)
    torch.testing.assert_close(changed[:, 1:], heads.model.h(left)[:, 1:])
    torch.testing.assert_close(changed[:, 0], plain[:, 0])
    for change in (steered(built, 0, 2.0), constant(np.zeros(8))):
        with spliced(heads, "z", change) as model:
            assert model(tokens).shape == plain.shape
    wrong = ITDA(size=8, k=2).build(np.pad(ROWS, ((0, 0), (0, 3))))
    with pytest.raises(ModelError, match="does not end in rows of width 11"), spliced(heads, "z", through(wrong)):
        heads.model(tokens)


def test_an_atom_is_measured_in_bfloat16(dictionary) -> None:
    x = torch.tensor(ROWS[:10], dtype=torch.bfloat16, requires_grad=True)
    found = Coefficient(dictionary, 0)(x)
    assert found.dtype == torch.bfloat16
    wanted = Coefficient(dictionary, 0)(x.detach().float())
    np.testing.assert_allclose(found.detach().float(), wanted, rtol=1e-2, atol=1e-3)
    found.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_text_around_an_atom_of_a_padded_example_is_its_real_text() -> None:
    rows = [np.array([3, 4, 5]), np.array([6, 7, 8, 9])]
    ragged = Examples.of({"input_ids": rows}, ids=[-1, 7])
    tokens, mask = np.zeros((2, 2, 4), int)
    for n, row in enumerate(rows):
        tokens[n, 4 - len(row) :], mask[n, 4 - len(row) :] = row, 1
    left = Examples.of({"input_ids": tokens, "attention_mask": mask}, ids=[-1, 7])
    texts = []
    for examples in (ragged, left):
        torch.manual_seed(0)
        seen = observe(TrainedModel(Heads(), examples, LanguageModelling(), quiet=True), at="e")
        built = Random(7, k=2).build(seen)
        texts.append(built.with_text(examples, lambda ids: " ".join(map(str, ids))).text)
    assert texts[0] == texts[1]
    assert texts[0][0].token == "3"


class Convolved(nn.Module):
    """Tokens, or signals [b 4 l], through a convolution over positions."""

    def __init__(self, words: int = 0):
        super().__init__()
        self.embed = nn.Embedding(words, 4) if words else nn.Identity()
        self.words, self.conv, self.head = words, nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, max(words, 2))

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        x = x * attention_mask[..., None] if self.words and attention_mask is not None else x
        h = self.conv(x.transpose(1, 2) if self.words else x)
        return self.head(h.transpose(1, 2) if self.words else h.mean(2))


@pytest.mark.parametrize("length", [5, 6])  # 6: as long as it is wide
def test_rows_of_a_convolution_over_one_dimension_are_its_positions(length: int) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(12, 4, length)).astype(np.float32)
    trained = TrainedModel(Convolved(), Examples.of({"x": x, "y": np.arange(12) % 2}), Classification(), quiet=True)
    seen = observe(trained, "conv")
    with torch.no_grad():
        expected = trained.model.conv(torch.from_numpy(x))
    assert (len(seen), seen.width) == (12 * length, 6)
    np.testing.assert_allclose(seen.whole().x, expected.transpose(1, 2).reshape(-1, 6), atol=1e-6)
    with spliced(trained, "conv", lambda rows: rows * torch.arange(6.0)), torch.no_grad():
        out = trained.model(torch.from_numpy(x))
        scaled = expected * torch.arange(6.0)[:, None]
        np.testing.assert_allclose(out, trained.model.head(scaled.mean(2)), atol=1e-5)
    whole = Random(len(seen), k=1).build(seen)
    with spliced(trained, "conv", through(whole)), torch.no_grad():
        np.testing.assert_allclose(trained.model(torch.from_numpy(x)), trained.model.head(expected.mean(2)), atol=1e-4)


def test_rows_of_a_convolution_over_text_are_its_tokens() -> None:
    torch.manual_seed(0)
    tokens = [np.arange(n) % 9 for n in (5, 7, 3, 4, 6)]
    trained = TrainedModel(Convolved(9), Examples.of({"input_ids": tokens}), LanguageModelling(), quiet=True)
    seen = observe(trained, "conv")
    assert (len(seen), seen.width) == (25, 6)
    assert seen.position.tolist()[:7] == [0, 1, 2, 3, 4, 0, 1]


def test_documents_with_ids_that_are_texts_are_deleted_by_them() -> None:
    texts = ["a17", "b", "300"]
    ids = Examples.of({"x": np.zeros((3, 1))}, ids=texts).ids
    built = ITDA(size=8, k=2).build(Activations.of(ROWS[:9], np.repeat(ids, 3)))
    left = built.delete_documents(["a17", 300])
    assert set(left.provenance.document.tolist()) == {int(ids[1])}
