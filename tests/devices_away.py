"""A device that is not the host: every golden artefact, computed with every model there, equals the frozen one, and
what is newer than them, or only looks at a model, gives what the host gives. A tensor on the wrong side raises in
tests/away.py.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attrib.methods.test_contract import Problem
from tests.away import NAME, Away
from tests.cache.model.architectures import GROUPED, causal, tokens
from tests.golden import frozen
from tests.golden import models as given
from tests.golden.artefacts import ARTEFACTS, NEWER, REDEFINED
from tests.golden.unlearning import SMALL, UNLEARNING, UNLEARNING_TEXT, forgot, text_deletion
from whence import attrib, decomp, unlearn
from whence.cache import Bank, Classification, DataError, Examples, LanguageModelling, ModelError, Store, TrainedModel
from whence.cache.retrain import traced
from whence.cache.retrain.replicas import Replicas
from whence.decomp.evaluate import losses
from whence.decomp.splice import steered, through, without_atoms

FROZEN = frozen.load()
SCORED = {name.removesuffix("/scores") for name in FROZEN if name.endswith("/scores")}  # scores are of a fit made there
CASES = [name for name in ARTEFACTS if name in FROZEN and name.removesuffix("/fit") not in SCORED]
NEWER_UNLEARNING = [unlearn.methods.UNDIAL(**SMALL)]  # type: ignore[arg-type]


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
    if name in REDEFINED:
        assert {part: frozen.shape_of(value) for part, value in made.values.items()} == FROZEN[name].shapes
    else:
        frozen.compare(made.values, FROZEN[name], made_anew=True)


@pytest.mark.parametrize("name", sorted(NEWER & set(attrib.METHODS)))
def test_a_method_that_is_newer_gives_what_the_host_gives(name: str) -> None:
    problem = Problem.of("classification")
    queries = problem.trained.train.select([1, 0, 4])
    there, here = (problem.fit(name, device=device).score(queries).values for device in (f"{NAME}:0", "cpu"))
    np.testing.assert_allclose(there, here, atol=2e-3 * np.abs(here).max())


@pytest.mark.parametrize("method", NEWER_UNLEARNING, ids=lambda method: method.title)
def test_an_unlearning_method_that_is_newer_runs_there(method: Any, tmp_path) -> None:
    made = forgot(method, text_deletion(Store(tmp_path)), given.texts().select(range(5)))
    assert np.isfinite(made.values["losses"]).all()


def test_every_unlearning_method_is_among_the_artefacts(tmp_path) -> None:
    """As tests/golden counts builders, and methods of attribution and condensation."""
    store = Store(tmp_path)
    texts = [*UNLEARNING_TEXT.values(), *NEWER_UNLEARNING]
    built = {type(build(store)) for build in UNLEARNING.values()} | {type(method) for method in texts}
    assert {method if isinstance(method, type) else type(method) for method in unlearn.METHODS.values()} <= built


LOOKS: dict[str, Callable[[TrainedModel], Any]] = {
    "observe": lambda trained: decomp.observe(trained, "0").whole().x,
    "finite examples": lambda trained: attrib.finite.finite_examples(trained).ids,
    "plan": lambda trained: attrib.plan.make_plan(trained, 2, measure=False).memory > 0,
    "loss recovered": lambda trained: recovered(trained),
    "spliced": lambda trained: losses(trained, at="0", change=through(dictionary())),
    "steered": lambda trained: losses(trained, at="0", change=steered(dictionary(), 1, 2.0)),
    "without atoms": lambda trained: losses(trained, at="0", change=without_atoms(dictionary(), [1])),
    "check": lambda trained: len(trained.check(given.held_out(2))) > 0,
}


def recovered(trained: TrainedModel) -> np.ndarray:
    return decomp.loss_recovered(trained, dictionary(), at="0", mean=np.zeros(6, np.float32)).value.values


def dictionary() -> decomp.Dictionary:
    return decomp.Random(size=8, k=2).build(given.rows()[:, :6])


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_at_a_model_sees_it_there(name: str) -> None:
    trained = TrainedModel(given.net(0), given.train(8), Classification(), sites=["0", "2"], quiet=True)
    there, here = (LOOKS[name](trained.replace(device=device)) for device in (f"{NAME}:0", "cpu"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


class Split(nn.Module):
    """Its layers are on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x.to(self.first.weight.device)))
        return self.second(h.to(self.second.weight.device)).to(x.device)


def split(on: str) -> TrainedModel:
    torch.manual_seed(0)
    model, rng = Split(), np.random.default_rng(0)
    model.second.to(on)
    train = Examples.of((rng.normal(size=(12, 5)).astype(np.float32), rng.integers(0, 3, 12)))
    return TrainedModel(model, train, Classification(), quiet=True, device="cpu")


@pytest.mark.parametrize("name", ["ekfac", "cg", "datainf", "tracin", "trak", "representation"])
def test_a_model_on_two_devices_gives_what_it_gives_on_one(name: str) -> None:
    there, here = split(f"{NAME}:0"), split("cpu")
    assert there.fingerprint() == here.fingerprint()
    assert "gradients are autograd's" in there.check()
    scores = [attrib.METHODS[name]().fit(one).score(one.train.select([1, 0, 4])).values for one in (there, here)]
    np.testing.assert_allclose(*scores, atol=2e-3 * np.abs(scores[1]).max())


def test_a_model_that_accelerate_spreads_is_the_same_model() -> None:
    accelerate = pytest.importorskip("accelerate")

    def llama() -> nn.Module:
        torch.manual_seed(0)
        return causal("llama", **GROUPED)()

    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.rotary_emb"), "cpu")
    places |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), f"{NAME}:0")
    spread = accelerate.dispatch_model(llama(), places, main_device="cpu", force_hooks=True)
    found = []
    for model in (spread, llama()):
        trained = TrainedModel(model, tokens(6), LanguageModelling(), sites="*.mlp.*", quiet=True, device="cpu")
        moved = trained.at({name: 0.9 * value for name, value in model.state_dict().items()})
        assert {p.device for p in moved.model.parameters()} == {p.device for p in model.parameters()}
        factors, queries = attrib.EKFAC().fit(trained), trained.train.select([0, 2])
        found.append((
            trained.fingerprint(), moved.fingerprint(), factors.score(queries).values,
            factors.token_scores(queries).values, decomp.observe(moved, "blocks.1.hook_out").whole().x,
        ))  # fmt: skip
    assert found[0][:2] == found[1][:2]
    for there, here in zip(found[0][2:], found[1][2:]):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4 * np.nanmax(np.abs(here)))


def test_a_model_on_two_devices_is_neither_moved_nor_trained_again() -> None:
    trained = split(f"{NAME}:0")
    for change in ({"device": f"{NAME}:0"}, {"dtype": torch.float64}):
        with pytest.raises(ModelError, match=f"on several devices: cpu, {NAME}:0. It is not moved"):
            trained.replace(**change)
    with pytest.raises(ModelError, match="where it is not trained again"):
        Replicas.of([trained.model])


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
