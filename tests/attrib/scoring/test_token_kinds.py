"""Token scores add up to the influence for layers of every kind, in every precision."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import cases
from whence.attrib import EKFAC, Identity
from whence.cache import Examples, LanguageModelling, ModelError, TrainedModel, find_sites


class Shared(nn.Module):
    """One layer called `times` times, layer normalisation, and a head of its own."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.times, self.embed, self.norm = times, nn.Embedding(11, 8), nn.LayerNorm(8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for _ in range(self.times):
            x = x + torch.tanh(self.mix(self.norm(x)))
        return self.head(x)


class Pooled(Shared):
    """Its `mix` sees one vector per sequence."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        return self.head(x + torch.tanh(self.mix(x[:, 0]))[:, None])


class Heads(Shared):
    """Its `mix` is called on [b s heads d] or, transposed, on [b heads s d]."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed, self.mix = transposed, nn.Linear(4, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids).unflatten(-1, (2, 4))
        y = torch.tanh(self.mix(x.transpose(1, 2)).transpose(1, 2)) if self.transposed else torch.tanh(self.mix(x))
        return self.head((x + y).flatten(2))


TEXTS = [np.random.default_rng(0).integers(0, 11, n) for n in (4, 8, 6, 7)]
TRAIN = Examples.of({"input_ids": TEXTS})


def trained(model: nn.Module, *kinds: str, pattern: str = "*", train: Examples = TRAIN) -> TrainedModel:
    sites = find_sites(model, pattern, kinds=kinds or ("linear",), quiet=True)
    return TrainedModel(model, train, LanguageModelling(), sites=sites, quiet=True)


def check_sums(subject: TrainedModel, by: str, tolerance: float = 1e-4, **options: str) -> None:
    factors = Identity().fit(subject)
    whole = factors.score(TRAIN).values
    found = factors.token_scores(TRAIN, by=by, **options)
    np.testing.assert_allclose(np.nansum(found.values, -1), whole, atol=tolerance * np.abs(whole).max())
    assert (np.isnan(found.values).sum(-1) == 8 - subject.train.lengths).all()


@pytest.mark.parametrize("by", ["layer", "output"])
@pytest.mark.parametrize("pattern", ["*", "mix"])
def test_calls_of_a_shared_layer_are_folded_onto_their_positions(pattern: str, by: str) -> None:
    check_sums(trained(Shared(), pattern=pattern), by)


@pytest.mark.parametrize("kinds", [("norm",), ("linear", "norm"), ("embedding", "linear", "norm")])
def test_normalisations_and_embeddings_are_split_by_position(kinds: tuple[str, ...]) -> None:
    check_sums(trained(Shared(), *kinds), "layer")
    check_sums(trained(cases.build("attention").model.float(), *kinds), "layer")
    check_sums(trained(cases.Attention(tied=True), *kinds), "layer")


def test_a_position_s_share_is_its_own_gradient() -> None:
    """A shared layer's share at t is the gradient of the loss when the layer's parameters move at t alone."""
    subject = trained(Shared(), "norm", pattern="norm")
    factors = Identity().fit(subject)
    found = factors.token_scores(TRAIN, by="layer").values[:, 1]
    model, task, batch = subject.model, subject.task, TRAIN.batch([1])
    step = torch.zeros(8, 8, requires_grad=True)  # of the scale and of the shift, at every position
    other = torch.zeros(8, 8, requires_grad=True)

    def norm(x: Tensor) -> Tensor:
        unit = nn.functional.layer_norm(x, (8,), eps=1e-5)
        return unit * (model.norm.weight + step) + model.norm.bias + other

    moved = copy.deepcopy(model)
    moved.norm = type("Moved", (nn.Module,), {"forward": lambda _, x: norm(x)})()
    moved.norm.weight = None
    grads = torch.autograd.grad(task.loss(moved, batch).sum(), [step, other])
    for q in range(4):
        own = torch.autograd.grad(task.measurement(model, TRAIN.batch([q])).sum(), [model.norm.weight, model.norm.bias])
        damped = 1 + factors.damping.at("norm", np.ones(1))
        wanted = -sum((g * v).sum(1) for g, v in zip(grads, own)) / damped / 4
        np.testing.assert_allclose(found[q], wanted, atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("transposed", [False, True])
def test_layers_on_heads_are_summed_over_heads(transposed: bool) -> None:
    check_sums(trained(Heads(transposed)), "layer")
    found = Identity().fit(trained(Heads(transposed), pattern="mix")).token_scores(TRAIN)
    other = Identity().fit(trained(Heads(not transposed), pattern="mix")).token_scores(TRAIN)
    np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-6)


def test_a_layer_without_positions_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mix gives vectors of shape .* no axis"):
        Identity().fit(trained(Pooled())).token_scores(TRAIN)


def test_left_padding_changes_no_position() -> None:
    padded, mask = np.zeros((4, 8), np.int64), np.zeros((4, 8), np.int64)
    for row, text in enumerate(TEXTS):
        padded[row, 8 - len(text) :], mask[row, 8 - len(text) :] = text, 1
    left = Examples.of({"input_ids": padded, "attention_mask": mask})
    factors = Identity().fit(trained(Shared()))
    for by in ("layer", "output", "input"):
        np.testing.assert_allclose(
            factors.token_scores(TRAIN, left, by=by), factors.token_scores(TRAIN, by=by), rtol=1e-3, atol=1e-5
        )


def gpt2(layers: int = 2) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": layers, "n_head": 2, "vocab_size": 11, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()


def test_layers_shared_by_hugging_face() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AlbertForMaskedLM(AlbertConfig(**sizes, intermediate_size=16, max_position_embeddings=12)).eval()
    with pytest.raises(ModelError, match="masked language model"):
        Identity().fit(trained(model, pattern="*albert_layers*"))

    class Predicting(nn.Module):
        """Its outputs as those of a causal model, which they are not: the layers are what is tried."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            return self.inner(input_ids, attention_mask=attention_mask).logits

    check_sums(trained(Predicting(), pattern="*albert_layers*"), "layer")


@pytest.mark.parametrize("how", [{"by": "layer"}, {"by": "output"}, {"by": "output", "how": "difference"}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_of_half_precision_add_up(how: dict[str, str], dtype: torch.dtype) -> None:
    exact = trained(gpt2().to(dtype).float(), pattern="*.mlp.*")
    half = trained(gpt2().to(dtype), pattern="*.mlp.*")
    check_sums(half, **how, tolerance=0.05)
    wanted, found = (EKFAC().fit(each).token_scores(TRAIN, **how).values for each in (exact, half))
    real = ~np.isnan(wanted)
    assert np.corrcoef(wanted[real], found[real])[0, 1] > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_input_tokens_of_half_precision(dtype: torch.dtype) -> None:
    exact, half = (trained(m, pattern="*.mlp.*") for m in (gpt2().to(dtype).float(), gpt2().to(dtype)))
    wanted, found = (EKFAC().fit(each).token_scores(TRAIN, by="input").values for each in (exact, half))
    real = ~np.isnan(wanted)
    assert np.corrcoef(wanted[real], found[real])[0, 1] > 0.99
