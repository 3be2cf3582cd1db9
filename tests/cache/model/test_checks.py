"""Every model is equal to autograd example by example, or is refused by the check before the first use, with its cause;
and each way of breaking capture, masks, padding or row order is caught when it is planted."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests import cases, reference
from whence.attrib import Identity
from whence.cache import Classification, Examples, LanguageModelling, ModelError, Store, TrainedModel, find_sites
from whence.cache.model import calls
from whence.cache.model import capture as capturing
from whence.cache.model.batches import position_mask
from whence.cache.model.layers import Embedding, Linear, Normalisation


def bound(model: nn.Module, examples: Examples, task: Any = None, **options: Any) -> TrainedModel:
    given = {"quiet": True, "sites": find_sites(model, quiet=True)} | options
    return TrainedModel(model.double(), examples, task or Classification(), **given)


def check_equals_autograd(trained: TrainedModel, reference_model: nn.Module | None = None) -> None:
    """Identity's scores are (1/N) of the products of autograd's gradients at the covered parameters."""
    fitted = Identity().fit(trained)
    model = trained.model if reference_model is None else reference_model.double()
    model.eval().requires_grad_(True)
    names = sorted({name for site in fitted.sites for _, name in site.parameters})
    rows = reference.gradients(model, trained.train, trained.task.loss)
    g = np.stack([np.concatenate([row[name].numpy().ravel() for name in names]) for row in rows])
    wanted = g @ g.T / len(g)
    scores = fitted.score(trained.train).values
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def images(count: int, length: int, width: int = 8) -> Examples:
    rng = np.random.default_rng(0)
    return Examples.of((rng.normal(size=(count, length, width)), rng.integers(0, 3, count)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x.transpose(0, 1))).mean(0))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x.reshape(-1, 2, 8))).view_as(x).mean(1))


class Prototypes(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.protos = nn.Parameter(torch.randn(count, 5))
        self.project, self.encode = nn.Linear(5, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x)) @ torch.tanh(self.project(self.protos)).T


class Positions(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.wte, self.wpe = nn.Embedding(11, 8), nn.Embedding(9, 8)
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 11, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1])
        rows = {
            "t": lambda: self.wpe(places),
            "1t": lambda: self.wpe(places[None]),
            "flat": lambda: self.wpe(places.repeat(len(input_ids))).view(*input_ids.shape, -1),
            "one": lambda: self.wpe(torch.tensor(3)),
            "unsqueezed": lambda: self.wpe(places).unsqueeze(0),
        }[self.form]()
        x = self.wte(input_ids) + rows
        return self.head(x + torch.tanh(self.fc(x)))


class Pairs(nn.Module):
    """Layers called on [b] and [b k] in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bd,bkd->bk", self.p(self.e(x[:, 0])), self.p(self.e(x[:, 1:])))


class Heads(nn.Module):
    """A layer on [b h s d] or on [b s h d]."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.embed, self.mix, self.head = first, nn.Embedding(11, 8), nn.Linear(2, 2), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids).unflatten(-1, (4, 2))
        x = self.mix(x.transpose(1, 2)).transpose(1, 2) if self.first else self.mix(x)
        return self.head(torch.tanh(x.flatten(2)))


@pytest.mark.parametrize(("count", "length"), [(12, 5), (6, 6), (4, 4), (8, 8)])
def test_sequence_first_equals_autograd_whatever_the_batch(count: int, length: int) -> None:
    check_equals_autograd(bound(SequenceFirst(), images(count, length)))


def test_sequence_first_transformer_layers_equal_autograd() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.transpose(0, 1)).mean(0))

    model = Encoder()
    sites = find_sites(model, kinds=("linear", "norm"), quiet=True)
    trained = bound(model, images(6, 5), sites=sites)
    assert trained.find().alone == ()  # its second axis is the batch
    check_equals_autograd(trained)


class FlatSequenceFirst(SequenceFirst):
    """Positions before examples on one axis, which no shape shows; and a second layer of that kind."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).flatten(0, 1)
        return self.head(torch.tanh(self.more(torch.tanh(self.mix(flat)))).unflatten(0, (x.shape[1], -1)).mean(0))


def test_every_site_whose_gradients_are_wrong_is_named_with_what_leaves_it_out() -> None:
    trained = bound(FlatSequenceFirst(), images(6, 5))
    with pytest.raises(ModelError, match=r"(?s)2 sites \(mix, more\).*exclude=\['mix', 'more'\]") as error:
        trained.check()
    sites = eval(error.value.cure.split("sites=")[1].rstrip("."), {"model": trained.model, "find_sites": find_sites})
    check_equals_autograd(trained.replace(sites=sites))


@pytest.mark.parametrize("count", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("prototypes", [3, 4, 6, 8])
def test_layers_on_learned_vectors_equal_autograd(count: int, prototypes: int) -> None:
    check_equals_autograd(bound(Prototypes(prototypes), cases.vectors(count, classes=prototypes), store=None))


def test_windows_equal_autograd() -> None:
    check_equals_autograd(bound(Windows(), images(6, 6)))


def test_a_weight_that_is_used_outside_its_layer_is_refused() -> None:
    model = network()
    model.forward = lambda x: model[2](torch.tanh(model[0](x))) * model[2].weight.norm()  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"(?s)At 2,.*used outside"):
        bound(model, cases.vectors(4, classes=3)).check()


@pytest.mark.parametrize("form", ["t", "1t", "flat"])
@pytest.mark.parametrize("positions", [24, 36, None])
def test_position_tables_looked_up_once_equal_autograd(form: str, positions: int | None) -> None:
    tokens = np.random.default_rng(0).integers(0, 11, (12, 6))
    model = Positions(form)
    sites = find_sites(model, kinds=("linear", "embedding"), quiet=True)
    trained = bound(model, Examples.of({"input_ids": tokens}), LanguageModelling(), sites=sites, positions=positions)
    check_equals_autograd(trained)


@pytest.mark.parametrize("form", ["one", "unsqueezed"])
@pytest.mark.parametrize("length", [5, 6])
def test_tables_that_cannot_be_spread_over_the_batch_equal_autograd(form: str, length: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 11, (5, length))
    model = Positions(form)
    sites = find_sites(model, kinds=("linear", "embedding"), quiet=True)
    check_equals_autograd(bound(model, Examples.of({"input_ids": tokens}), LanguageModelling(), sites=sites))


class Scaled(nn.Embedding):
    """A table as in transformers' Gemma and BART."""

    embed_scale = 2.5

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


def test_a_scaled_table_equals_autograd_alone_and_tied() -> None:
    for tied in (False, True):
        model = Positions("t")
        model.wte = Scaled(11, 8, padding_idx=0)
        if tied:
            model.head.weight = model.wte.weight
        sites = find_sites(model, kinds=("linear", "embedding"), quiet=True)
        check_equals_autograd(bound(model, cases.sequences(), LanguageModelling(), sites=sites))


def test_a_table_that_scales_gradients_by_frequency_is_named_with_the_cause() -> None:
    tokens = np.random.default_rng(0).integers(0, 11, (5, 6))
    model = Positions("t")
    model.wte.scale_grad_by_freq = True
    sites = find_sites(model, kinds=("linear", "embedding"), quiet=True)
    with pytest.raises(ModelError, match="scale_grad_by_freq"):
        Identity().fit(bound(model, Examples.of({"input_ids": tokens}), LanguageModelling(), sites=sites))


def test_a_forward_without_a_graph_is_named() -> None:
    model = network()
    model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="without a graph"):
        Identity().fit(bound(model, cases.vectors(4, classes=3)))


def test_layers_called_on_one_and_on_several_equal_autograd() -> None:
    rng = np.random.default_rng(0)
    examples = Examples.of((rng.integers(0, 9, (12, 5)), rng.integers(0, 4, 12)))
    model = Pairs()
    check_equals_autograd(bound(model, examples, sites=find_sites(model, kinds=("embedding", "linear"), quiet=True)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("lengths", [(4, 4, 3, 4), (7, 3, 5, 6)])
def test_moments_of_a_layer_on_heads_count_the_positions(first: bool, lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    examples = Examples.of({"input_ids": [rng.integers(0, 11, n) for n in lengths]})
    trained = bound(Heads(first), examples, LanguageModelling())
    check_equals_autograd(trained)

    def moment(rows: list[int]) -> Tensor:
        batch = trained.batch(examples, rows)
        a = capturing.capture(trained.model, trained.find("mix"), batch, trained.task.loss).inputs["mix"]
        weight = position_mask(trained.task.positions(batch), a.shape[1]).to(a)
        return torch.einsum("bs,bsi,bsj->ij", weight, a, a)

    torch.testing.assert_close(moment([0, 1, 2, 3]), sum(moment([row]) for row in range(4)))


@pytest.mark.parametrize("used", ["never", "trained", "evaluated"])
@pytest.mark.parametrize("inplace", [True, False])
def test_compiled_models_equal_autograd(used: str, inplace: bool) -> None:
    torch._dynamo.reset()
    model: Any = network().double()
    x = torch.zeros(3, 4).double()
    if inplace:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    if used == "trained":
        model(x).sum().backward()
        model.zero_grad()
    elif used == "evaluated":
        with torch.no_grad():
            model.eval()(x)
    trained = TrainedModel(model, cases.vectors(), Classification(), quiet=True)
    assert trained.find().names == ("0", "2")
    check_equals_autograd(trained, network())


def test_a_data_parallel_model_is_the_model_inside() -> None:
    model = network()
    trained = TrainedModel(nn.DataParallel(model), cases.vectors(), Classification(), quiet=True)
    assert trained.model is model
    assert find_sites(nn.DataParallel(model), quiet=True).names == ("0", "2")


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        plain = self.reentrant is None
        return self.head(h + (self.block(h) if plain else checkpoint(self.block, h, use_reentrant=self.reentrant)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pattern", ["*", "block.*"])
def test_checkpointed_blocks_equal_autograd(reentrant: bool, pattern: str) -> None:
    model = Checkpointed(reentrant)
    trained = bound(model, cases.vectors(), sites=find_sites(model, pattern, quiet=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's: no input of the block requires a gradient
        check_equals_autograd(trained, Checkpointed(None))


class Backbone(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.backbone, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode() if self.how == "inference" else torch.no_grad():
            h = self.backbone(x)
        return self.head(h.clone())


@pytest.mark.parametrize("how", ["no_grad", "inference"])
def test_a_backbone_without_a_graph_has_zero_gradients(how: str) -> None:
    trained = bound(Backbone(how), cases.vectors())
    batch = trained.batch(trained.train, [0, 1, 2])
    seen = capturing.capture(trained.model, trained.find(), batch, trained.task.loss)
    assert not seen.grads["backbone.0"].any()
    assert seen.grads["head"].any()
    trained.check()


def test_the_fused_path_of_transformer_layers_is_off_inside_and_on_again() -> None:
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.enc, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.enc(x).mean(1))

    trained = bound(Encoder(), images(6, 5))
    assert "enc.layers.1.linear2" in trained.find().names
    trained.check()
    assert torch.backends.mha.get_fastpath_enabled()


class TestFrozen:
    def test_only_trained_parameters_are_covered(self) -> None:
        model = network()
        model[0].requires_grad_(False)
        sites = find_sites(model, quiet=True)
        assert sites.names == ("2",)
        assert "2 of them frozen" in sites.summary
        assert find_sites(model, frozen=True, quiet=True).names == ("0", "2")

    @pytest.mark.parametrize("which", ["weight", "bias"])
    def test_a_site_is_the_trained_part_of_its_layer(self, which: str) -> None:
        model = network()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(which))
        trained = bound(model, cases.vectors())
        assert {name for site in trained.find() for _, name in site.parameters} == {f"0.{which}", f"2.{which}"}
        check_equals_autograd(trained)

    def test_a_copy_for_inference_is_covered_whole_and_says_so(self) -> None:
        sites = find_sites(network().requires_grad_(False), quiet=True)
        assert sites.coverage == 1.0
        assert "no parameter requires a gradient" in sites.summary

    def test_a_pattern_of_frozen_sites_alone_is_an_error(self) -> None:
        model = network()
        model[0].requires_grad_(False)
        with pytest.raises(ModelError, match=r"(?s)is frozen.*frozen=True"):
            find_sites(model, "0", quiet=True)


def test_a_computed_weight_is_named_as_such() -> None:
    model = network()
    nn.utils.parametrizations.spectral_norm(model[0])
    assert "the weight of 1 layers is computed: 0" in find_sites(model, quiet=True).summary
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(ModelError, match="weight is computed"):
        find_sites(model, quiet=True)


def test_what_layers_share_in_memory_counts_once() -> None:
    whole = nn.Linear(8, 24, bias=False)
    model = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in "qkv"})
    for number, name in enumerate("qkv"):
        model[name].weight = nn.Parameter(whole.weight.data[8 * number : 8 * number + 8])
    model["qkv"] = whole
    sites = find_sites(model, quiet=True)
    assert (sites.total, sites.covered) == (192, 192)
    assert sites.only(["q", "v"]).covered == 128
    assert find_sites(model, ["q", "k", "v"], quiet=True).left_out == ()


class Mixed(nn.Module):
    """What a padded batch does to a model; `how` says which fault it has."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.embed, self.mix, self.head = how, nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        if self.how == "average over padding":
            x = x + x.mean(1, keepdim=True)
        if self.how == "batch statistics":
            x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1)
        if self.how == "dropout":
            x = nn.functional.dropout(x, 0.5)
        if self.how == "noise":
            x = x + torch.randn_like(x)
        if self.how == "positions":
            x = x + torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        return self.head(torch.tanh(self.mix(x)))


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("average over padding", "depends on padding"),
        ("batch statistics", "depends on padding|change each other"),
        ("dropout", "changes from one forward pass"),
        ("noise", "changes from one forward pass"),
    ],
)
def test_a_model_that_a_padded_batch_changes_is_refused_with_its_cause(how: str, cause: str) -> None:
    with pytest.raises(ModelError, match=cause):
        Identity().fit(bound(Mixed(how), cases.sequences(), LanguageModelling()))


def test_padding_on_the_left_is_no_part_of_the_data() -> None:
    tokens, mask = np.full((4, 8), 10), np.zeros((4, 8), int)
    for row, length in enumerate((3, 5, 8, 4)):
        tokens[row, 8 - length :], mask[row, 8 - length :] = np.arange(length), 1
    examples = Examples.of({"input_ids": tokens, "attention_mask": mask})
    check_equals_autograd(bound(Mixed("positions"), examples, LanguageModelling()))


def test_queries_are_checked_when_they_are_first_scored() -> None:
    """The training examples have one length; the queries have not."""
    same = Examples.of({"input_ids": np.random.default_rng(0).integers(0, 11, (6, 5))})
    fitted = Identity().fit(bound(Mixed("average over padding"), same, LanguageModelling()))
    with pytest.raises(ModelError, match="The measurement of example"):
        fitted.score(cases.sequences())


def test_the_verdict_is_kept_once_per_model_data_and_sites(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kept = capturing.capture
    monkeypatch.setattr("whence.cache.model.checks.capture", lambda *a: calls.append(1) or kept(*a))
    trained = bound(network(), cases.vectors(), store=store)
    trained.check()
    trained.replace(quiet=True).check()
    bound(network(), cases.vectors(), store=store).check()
    assert len(calls) == 2  # the data's labels and sampled ones, once each
    trained.check(sites="0")
    assert len(calls) == 4


def test_a_model_that_was_checked_is_not_hashed_again_at_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = bound(network(), cases.vectors())
    sites = trained.find()
    trained.run("loss", sites)
    hashed = []
    monkeypatch.setattr("whence.cache.model.trained.model_fingerprint", hashed.append)
    trained.run("loss", sites)
    assert not hashed


def test_a_model_whose_forward_is_changed_is_checked_again() -> None:
    trained = bound(network(), cases.vectors())
    trained.check()
    plain = trained.model.forward
    trained.model.forward = lambda x: plain(x) * trained.model[2].weight.norm()  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="used outside"):
        trained.check()


def test_a_stored_verdict_of_other_losses_is_another_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fingerprint cannot see is found by the losses."""
    bound(network(), cases.vectors(), store=store).check()
    forward = Classification.logits
    monkeypatch.setattr(Classification, "logits", lambda self, model, batch: 2 * forward(self, model, batch))
    with pytest.raises(ModelError, match=r"was computed with.*\n.*the forward pass is not"):
        bound(network(), cases.vectors(), store=store).check()


def test_unchecked_results_say_so() -> None:
    trained = bound(network(), cases.vectors(), check=False)
    assert Identity().fit(trained).score(trained.train).attrs["checked"] == "no"
    assert trained.replace(quiet=True).verdicts == {}
    assert "checked" not in Identity().fit(trained.replace(check=True)).score(trained.train).attrs


def test_the_model_and_its_gradients_come_back() -> None:
    trained = bound(network().double().train(), cases.vectors())
    trained.model[0].weight.grad = torch.ones_like(trained.model[0].weight)
    trained.check()
    assert trained.model.training
    assert bool((trained.model[0].weight.grad == 1).all())
    assert trained.model[2].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_fails_no_sound_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = cases.Attention(d=64, context=128)
    examples = cases.sequences(longest=128)
    TrainedModel(model, examples, LanguageModelling(), dtype=dtype, quiet=True).check()


def wrap(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants `change(original, *args)` in place of a function."""
    original = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *args, **more: change(original, *args, **more))


def rows(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[pytest.MonkeyPatch], None]:
    return wrap(Linear, "rows", lambda original, *args: change(*original(*args)))


def seen(**parts: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    def change(original: Callable, *args: Any) -> Any:
        found = original(*args)
        for part, of in parts.items():
            values = getattr(found, part)
            values.update({name: of(value) for name, value in values.items()})
        return found

    return wrap(capturing, "_rows", change)


def batches(change: Callable[[dict[str, Tensor]], None]) -> Callable[[pytest.MonkeyPatch], None]:
    def planted(original: Callable, *args: Any, **more: Any) -> dict[str, Tensor]:
        out = original(*args, **more)
        change(out)
        return out

    return wrap(Examples, "batch", planted)


def swapped(t: Tensor) -> Tensor:
    return t.roll(1, 0)


def _mask(value: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda batch: batch.__setitem__("attention_mask", torch.full_like(batch["input_ids"], value))


def _shifted(batch: dict[str, Tensor]) -> None:
    """Padding before the tokens, the mask unchanged."""
    if len(batch["input_ids"]) > 1:
        batch["input_ids"] = batch["input_ids"].flip(1)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gradients of the next example": seen(grads=swapped),
    "inputs of the next example": seen(inputs=swapped),
    "gradients of the next position": seen(grads=lambda t: t.roll(1, 1)),
    "inputs of the next position": seen(inputs=lambda t: t.roll(1, 1)),
    "gradients averaged over examples": seen(grads=lambda t: t.mean(0, keepdim=True).expand_as(t)),
    "gradients divided by the batch": seen(grads=lambda t: t / len(t)),
    "the first position is lost": seen(grads=lambda t: torch.cat([0 * t[:, :1], t[:, 1:]], 1)),
    "the first call only": seen(grads=lambda t: torch.cat([t[:, :2], 0 * t[:, 2:]], 1)),
    "the sign is turned": seen(grads=lambda t: -t),
    "rows mixed along the sequence": wrap(
        capturing, "_by_example", lambda original, t, *rest: original(t, *rest).flip(0)
        if t.is_floating_point() and t.shape[-1] == 24
        else original(t, *rest)
    ),
    "no constant for the bias": rows(lambda a, g: (torch.cat([a[..., :-1], 0 * a[..., -1:]], -1), g)),
    "inputs after the layer": rows(lambda a, g: (torch.tanh(a), g)),
    "rows transposed": rows(lambda a, g: (a.flip(1), g)),
    "the embedding forgets a token": wrap(
        Embedding, "rows", lambda original, *args: (original(*args)[0].roll(1, -1), original(*args)[1])
    ),
    "the scale without its unit": wrap(
        Normalisation, "rows", lambda original, kind, m, x, g, n: original(kind, m, 2 * x + 1 + x.square(), g, n)
    ),
    "one table counted at the next position": wrap(
        calls, "_spread", lambda original, *args: (original(*args)[0].roll(1, -1), original(*args)[1])
    ),
    "dropped gradient": wrap(
        calls, "_tap", lambda original, seen, name, certain: (
            lambda *args: original(seen, name, certain)(*args).detach().clone()
        ) if name == "up" else original(seen, name, certain)
    ),
    "padding is counted": batches(_mask(1)),
    "padding and tokens change places": batches(_shifted),
    "labels follow the wrong tokens": batches(
        lambda batch: batch.__setitem__("input_ids", batch["input_ids"].roll(len(batch["input_ids"]), 1))
    ),
    "the batch in another order than its ids": batches(
        lambda batch: batch.__setitem__("input_ids", batch["input_ids"].roll(1, 0))
    ),
    "tokens cut by the batch": batches(
        lambda batch: batch.__setitem__("attention_mask", batch["attention_mask"] * 1).__class__
        if len(batch["input_ids"]) == 1 else batch["attention_mask"].__setitem__((slice(None), slice(3, None)), 0)
    ),
}  # fmt: skip


def problem() -> TrainedModel:
    case = cases.build("attention")
    return case.trained(train=cases.sequences(12, seed=3))


def test_the_sound_problem_passes() -> None:
    problem().check()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(ModelError):
        problem().check()


class Autocast(nn.Module):
    """Weights in float32, computed with in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up = nn.Embedding(31, 16), nn.Linear(16, 64)
        self.down, self.head = nn.Linear(64, 16), nn.Linear(16, 31)

    def forward(self, input_ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.embed(input_ids)
            return self.head(x + self.down(torch.tanh(self.up(x.cumsum(1) / 4))))


def test_a_model_under_autocast_is_checked_at_the_type_that_it_computes_in(tmp_path) -> None:
    rng = np.random.default_rng(0)
    texts = Examples.of({"input_ids": [rng.integers(0, 31, n) for n in rng.integers(5, 13, 20)]})
    for _ in range(2):  # the second time with a stored verdict
        trained = TrainedModel(Autocast(), texts, LanguageModelling(), sites=["up", "down"], store=Store(tmp_path))
        assert "gradients are autograd's at 2 sites" in trained.check()
