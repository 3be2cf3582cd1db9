"""Activations are the model's own outputs, in the order of the examples, with where each row came from."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import cases
from whence.cache import (
    Classification,
    DataError,
    Examples,
    LanguageModelling,
    ModelError,
    NumericalError,
    Store,
    TrainedModel,
    activations,
)
from whence.cache.errors import WhenceError
from whence.cache.model.readers import torch_batches


def plain(case: cases.Case, name: str) -> np.ndarray:
    rows = []
    for row in range(len(case.examples)):
        seen = []
        handle = case.model.get_submodule(name).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        case.task.logits(case.model, case.examples.batch([row]))
        handle.remove()
        rows.append(seen[0][0].detach().numpy())
    return np.concatenate(rows)


def test_rows_and_where_they_came_from(tmp_path) -> None:
    case = cases.build("attention")
    entry = activations(case.trained(), ["up", "out"], store=Store(tmp_path))
    for name in ("up", "out"):
        np.testing.assert_allclose(entry.read(name), plain(case, name), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(entry.read("token"), np.concatenate(case.examples.columns["input_ids"]))
    np.testing.assert_array_equal(entry.read("example"), np.repeat(case.examples.ids, case.examples.lengths))
    assert entry.read("position")[: case.examples.lengths[0]].tolist() == list(range(case.examples.lengths[0]))


def test_shards_resume_and_are_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.cache.model.activations.SHARD_BYTES", 7 * 16 * 4)  # seven rows of `up`
    case = cases.build("attention")
    one = activations(case.trained(), "up", store=Store(tmp_path / "a"))

    class Killed(Exception):
        pass

    calls = 0
    forward = type(case.model).forward

    def dying(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 10:  # the check of the rows runs eight
            raise Killed
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(case.model), "forward", dying)
    with pytest.raises(WhenceError, match=r"Partition \d .*Killed"):
        activations(case.trained(), "up", store=Store(tmp_path / "b"))
    monkeypatch.setattr(type(case.model), "forward", forward)
    other = activations(case.trained(), "up", store=Store(tmp_path / "b"))
    np.testing.assert_array_equal(one.read("up"), other.read("up"))


def test_bfloat16(tmp_path) -> None:
    case = cases.build("attention")
    entry = activations(case.trained(), "up", store=Store(tmp_path), dtype="bfloat16")
    np.testing.assert_allclose(entry.read("up").astype(np.float32), plain(case, "up"), rtol=1e-2, atol=1e-3)


def test_vectors(tmp_path) -> None:
    case = cases.build("mlp")
    entry = activations(case.trained(), "1", store=Store(tmp_path))
    np.testing.assert_allclose(entry.read("1").reshape(12, -1), plain(case, "1").reshape(12, -1), rtol=1e-6)


def test_errors(tmp_path) -> None:
    case = cases.build("attention")
    with pytest.raises(ModelError, match="Near names: up"):
        activations(case.trained(), "upp", store=Store(tmp_path))
    with torch.no_grad():
        case.model.up.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        activations(case.trained(), "up", store=Store(tmp_path))


class Shapes(nn.Module):
    """A causal model with outputs of many shapes, each a module of its own."""

    def __init__(self, context: int = 40) -> None:
        super().__init__()
        self.e, self.p, self.h = nn.Embedding(11, 6), nn.Embedding(context, 6), nn.Linear(6, 11)
        for name in (
            "z",
            "pattern",
            "first",
            "joined",
            "pooled",
            "latents",
            "scalar",
            "pair",
            "table",
            "dict",
            "twice",
        ):
            setattr(self, name, nn.Identity())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        b, s = input_ids.shape
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place = self.table(self.p(torch.arange(s)))
        x = self.e(input_ids) + self.p((mask.cumsum(1) - 1).clamp(min=0)) + 0 * place
        self.z(x.reshape(b, s, 2, 3))
        self.pattern(x[:, None] @ x[:, None].mT * torch.ones(2, 1, 1))
        self.first(x.transpose(0, 1))
        self.joined(x.reshape(-1, 6))
        self.pooled((x * mask[..., None]).sum(1))
        self.latents((x * mask[..., None]).sum(1)[:, None] * torch.arange(1.0, 4)[:, None])
        self.scalar(x.mean())
        self.pair((x, None))
        self.dict({"x": x})
        self.twice(x)
        self.twice(2 * x)
        return self.h(x)


def texts(*lengths: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(1, 11, length) for n, length in enumerate(lengths)]


def of(data: object, model: nn.Module | None = None, **more: object) -> TrainedModel:
    torch.manual_seed(0)
    examples = Examples.of(data if isinstance(data, dict) else {"input_ids": data})
    return TrainedModel(model or Shapes(), examples, LanguageModelling(), quiet=True, **more)  # type: ignore[arg-type]


def padded(rows: list[np.ndarray], left: bool) -> dict[str, np.ndarray]:
    width = max(map(len, rows))
    tokens, mask = np.zeros((2, len(rows), width), int)
    for n, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[n, at], mask[n, at] = row, 1
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padded_tokens_with_a_mask_give_the_rows_of_their_real_tokens(tmp_path, left: bool) -> None:
    rows = texts(3, 5, 4)
    wanted = activations(of(rows), "pair", store=Store(tmp_path / "a"))
    found = activations(of(padded(rows, left)), "pair", store=Store(tmp_path / "b"))
    assert found.read("pair").shape == (12, 6)
    for name in ("pair", "example", "position", "token"):
        np.testing.assert_allclose(found.read(name), wanted.read(name), atol=1e-6)


def test_heads_are_flattened_and_a_row_is_a_position(tmp_path) -> None:
    trained = of(texts(4, 2, 6))
    entry = activations(trained, ["pair", "z", "joined"], store=Store(tmp_path))
    for name in ("z", "joined"):
        np.testing.assert_array_equal(entry.read(name), entry.read("pair"))


def test_vectors_and_latents_give_rows_per_example(tmp_path) -> None:
    trained, store = of(texts(4, 2, 6)), Store(tmp_path)
    pooled, latents = (activations(trained, name, store=store) for name in ("pooled", "latents"))
    assert pooled.read("pooled").shape == (3, 6)
    assert latents.read("latents").shape == (9, 6)
    assert latents.read("position").tolist() == [0, 1, 2] * 3
    assert latents.read("example").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(latents.read("latents")[1::3], 2 * pooled.read("pooled"), rtol=1e-5)
    with pytest.raises(ModelError, match="one at a time"):
        activations(trained, ["pair", "pooled"], store=store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pattern", r"pattern has shape \[\d, 2, \d, \d\].*per pair of positions"),
        ("first", "first axis is the position"),
        ("table", "is the same for every batch"),
        ("scalar", r"scalar has shape \[\]"),
        ("dict", "returns a dict"),
        ("twice", "called 2 times"),
    ],
)
def test_an_output_without_a_row_per_position_is_named_with_its_shape(tmp_path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        activations(of(texts(4, 2, 6)), name, store=Store(tmp_path))


@pytest.mark.parametrize("name", ["first", "pattern"])
def test_axes_of_equal_size_are_not_confused(tmp_path, name: str) -> None:
    """As many texts as positions, and as many heads as positions: every shape looks like [b s d]."""
    with pytest.raises(ModelError, match=r"first axis is|per pair of positions"):
        activations(of(np.stack(texts(2, 2))), name, store=Store(tmp_path))


class Both(nn.Module):
    """Looks at both sides, with or without regard to padding."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.e, self.mix, self.h, self.masked = nn.Embedding(11, 6), nn.Identity(), nn.Linear(6, 11), masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.e(input_ids)
        weight = torch.ones_like(x) if attention_mask is None or not self.masked else attention_mask[..., None] + 0 * x
        return self.h(self.mix(x + (x * weight).sum(1, keepdim=True)))


def test_rows_that_depend_on_the_padding_are_refused(tmp_path) -> None:
    assert activations(of(texts(4, 2, 6), Both(True)), "mix", store=Store(tmp_path / "a")).read("mix").shape == (12, 6)
    with pytest.raises(ModelError, match=r"alone than in a batch.*(?s:.)*padding mask"):
        activations(of(texts(4, 2, 6), Both(False)), "mix", store=Store(tmp_path / "b"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_model_is_observed_and_read(tmp_path, dtype: str) -> None:
    trained = of(texts(4, 2, 6), dtype=torch.bfloat16)
    entry = activations(trained, "pair", store=Store(tmp_path), dtype=dtype)
    (batch,) = torch_batches(entry, ["pair"], batch=100)
    assert batch["pair"].dtype == getattr(torch, dtype)
    wanted = trained.model.e.weight[torch.as_tensor(np.concatenate(texts(4, 2, 6)))]
    assert batch["pair"].shape == wanted.shape


def test_images_give_one_row_each(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    rng = np.random.default_rng(0)
    examples = Examples.of({"x": rng.normal(size=(5, 1, 4, 4)).astype(np.float32), "y": np.zeros(5, int)})
    trained = TrainedModel(model, examples, Classification(), quiet=True)
    assert activations(trained, "0", store=Store(tmp_path)).read("0").shape == (5, 8)
    with pytest.raises(ModelError, match="no module or hook point"):
        activations(trained, "9", store=Store(tmp_path))


@pytest.mark.parametrize(("text", "size"), [([1, 30], 2), ([1] * 41, 41)], ids=["token", "length"])
def test_an_example_that_the_model_cannot_run_is_named(tmp_path, text: list[int], size: int) -> None:
    examples = Examples.of({"input_ids": [*texts(4, 2, 6, 3, 5, 7, 3, 2, 4), np.array(text)]}, ids=range(20, 30))
    trained = TrainedModel(Shapes(), examples, LanguageModelling(), quiet=True)
    with pytest.raises(DataError, match=rf"example 29 of {size} positions: IndexError"):
        activations(trained, "pair", store=Store(tmp_path))


def test_a_value_that_is_not_finite_names_its_example(tmp_path) -> None:
    trained = of([np.array(row) for row in ([1, 2, 3, 4], [5, 6], [1, 2, 3, 4, 7, 8])])
    with torch.no_grad():
        trained.model.e.weight[5] = float("inf")
    with pytest.raises(NumericalError, match=r"ids \[1\]"):
        activations(trained, "pair", store=Store(tmp_path))
