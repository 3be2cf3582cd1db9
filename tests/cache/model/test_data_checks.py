"""Data that a task and a model cannot be run on are refused with their ids before anything is computed."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from whence import attrib
from whence.cache import Classification, DataError, Examples, LanguageModelling, ModelError, Regression, TrainedModel
from whence.cache.model.data_checks import check_data

IDS = [11, 12, 13, 14]
X = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
TEXTS = [[1, 2, 3], [4, 5, 6, 7], [8, 9], [1, 5, 9, 3, 7]]
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=12)).eval()


def texts(**columns):
    return Examples.of({"input_ids": TEXTS, **columns}, ids=IDS)


LABELS = {
    "too large": ([0, 1, 3, 2], r"y has 3 for a model with 3 outputs, ids \[13\]"),
    "negative": ([0, -1, 1, 1], r"y has -1 .*ids \[12\]"),
    "-100": ([0, -100, 1, 1], r"y has -100"),
    "one-hot": (np.eye(3)[[0, 1, 2, 0]], "argmax"),
    "column": (np.zeros((4, 1), int), r"shape \(4, 1\).*\n.*reshape"),
    "fractions": ([0.0, 0.5, 1.0, 2.0], r"no whole numbers, ids \[12\]"),
    "NaN": ([0.0, np.nan, 1.0, 2.0], r"not finite, ids \[12\]"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_a_classifier(case):
    y, what = LABELS[case]
    with pytest.raises(DataError, match=what):
        check_data(Examples.of((X, y), ids=IDS), Classification(), nn.Linear(4, 3))


@pytest.mark.parametrize("y", [[0, 1, 2, 2], [0.0, 1.0, 2.0, 2.0], [True, False, True, True]])
def test_sound_labels_are_taken(y):
    check_data(Examples.of((X, y), ids=IDS), Classification(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (np.arange(16).reshape(4, 4), r"(?s)x \[1, 4\] of torch.int64.*numbers as floats"),
        (np.zeros((4, 5), np.float32), r"x \[1, 5\] of torch.float32.*multiplied"),
    ],
)
def test_inputs_that_the_model_cannot_be_run_on(x, what):
    with pytest.raises(DataError, match=what):
        check_data(Examples.of((x, [0, 1, 2, 2]), ids=IDS), Classification(), nn.Linear(4, 3))


def test_labels_of_a_regression():
    check_data(Examples.of((X, X[:, :2])), Regression(), nn.Linear(4, 2))
    with pytest.raises(DataError, match="3 numbers for 2 outputs"):
        check_data(Examples.of((X, X[:, :3])), Regression(), nn.Linear(4, 2))


TOKENS = {
    "token beyond the table": ({"input_ids": [[1, 2], [3, 30]]}, r"Token 30 is beyond .* of 11, ids \[1\]"),
    "negative token": ({"input_ids": [[1, 2], [3, -1]]}, r"Token -1 .*ids \[1\]"),
    "too many positions": ({"input_ids": [[1, 2], [3] * 20]}, r"id \[1\] has 20 positions, and .* at most 12"),
    "label beyond the outputs": ({"input_ids": [[1, 2]], "labels": [[1, 30]]}, "labels has 30 .* 11 outputs"),
    "-1 as mask": ({"input_ids": [[1, 2]], "labels": [[-1, 2]]}, "labels has -1"),
    "labels shorter": ({"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3]]}, r"ids \[1\].*1 labels for 2 tokens"),
    "no tokens": ({"x": X}, "no column 'input_ids'"),
    "floats": ({"input_ids": [[1.0, 2.5]]}, "no whole numbers"),
    "an empty text": ({"input_ids": [[1, 2], []]}, r"without a single token, ids \[1\]"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_of_a_language_model(case):
    columns, what = TOKENS[case]
    with pytest.raises(DataError, match=what):
        check_data(Examples.of(columns), LanguageModelling(), gpt2())


def test_data_are_checked_for_training_data_and_queries_before_anything_is_fitted():
    good, long = texts(), Examples.of({"input_ids": [[1] * 20]}, ids=["long text"])
    with pytest.raises(DataError, match="long text"):
        attrib.Identity().fit(TrainedModel(gpt2(), long, LanguageModelling(), sites="*.mlp.*", quiet=True))
    factors = attrib.Identity().fit(TrainedModel(gpt2(), good, LanguageModelling(), sites="*.mlp.*", quiet=True))
    with pytest.raises(DataError, match="long text"):
        factors.score(long)


class Positions(nn.Module):
    """Twelve learned positions, without a layer that says so."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.places = nn.Parameter(torch.zeros(12, 8))

    def forward(self, input_ids):
        return self.head(self.embed(input_ids) + self.places[: input_ids.shape[1]])


def test_positions_that_no_table_states():
    with pytest.raises(DataError, match="cannot be run on 20 positions"):
        check_data(Examples.of({"input_ids": [[1, 2], [3] * 20]}), LanguageModelling(), Positions())


def test_models_that_are_no_causal_language_models():
    t5 = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=11, decoder_start_token_id=0)
    for model, what in (
        (T5ForConditionalGeneration(t5), "is an encoder-decoder"),
        (BertForMaskedLM(BertConfig(**BERT)), "is a masked language model"),
    ):
        with pytest.raises(ModelError, match=f"{what}.*\n.*whence.cache.tasks"):
            check_data(texts(), LanguageModelling(), model)
    torch.manual_seed(0)
    seeing = BertLMHeadModel(BertConfig(**BERT, initializer_range=0.3))
    with pytest.raises(ModelError, match="sees the tokens"):
        check_data(texts(), LanguageModelling(), seeing)
    check_data(texts(), LanguageModelling(), BertLMHeadModel(BertConfig(**BERT, is_decoder=True)))


class Mean(nn.Module):
    """A classifier of token sequences by their mean."""

    def __init__(self, masked):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.masked = nn.Embedding(11, 8), nn.Linear(8, 3), masked

    def forward(self, tokens):
        real = (tokens != 0).unsqueeze(-1) if self.masked else torch.ones_like(tokens).unsqueeze(-1)
        return self.head((self.embed(tokens) * real).sum(1) / real.sum(1))


def test_a_classifier_that_padding_changes_is_refused():
    data = Examples.of({"x": TEXTS, "y": [0, 1, 2, 0]}, ids=IDS)
    with pytest.raises(ModelError, match=r"id \[13\] has other outputs when it is padded"):
        check_data(data, Classification(), Mean(masked=False))
    check_data(data, Classification(), Mean(masked=True))


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=3, initializer_range=0.3)).eval()


@pytest.mark.parametrize("wrapped", [lambda m: m, lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_the_mask_reaches_a_text_classifier(wrapped):
    model, task = bert(), Classification()
    data = Examples.of({"x": TEXTS, "y": [0, 1, 2, 0]})
    check_data(data, task, model)
    together = task.loss(wrapped(model), data.batch(range(4)))
    for row in range(4):
        logits = model(torch.tensor(TEXTS[row])[None]).logits
        alone = nn.functional.cross_entropy(logits, torch.tensor([[0, 1, 2, 0][row]]))
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-6)


def test_columns_that_forward_names_reach_it():
    types = [[1, 1, 0], [0, 1, 0, 1], [1, 1], [0, 0, 1, 1, 1]]
    model, data = bert(), Examples.of({"x": TEXTS, "token_type_ids": types, "y": [0, 1, 2, 0]})
    found = Classification().logits(model, data.batch(range(4)))
    wanted = model(torch.tensor(TEXTS[1])[None], token_type_ids=torch.tensor(types[1])[None]).logits[0]
    torch.testing.assert_close(found[1], wanted, rtol=1e-5, atol=1e-6)


def test_one_output_is_a_sigmoid():
    model, y = nn.Linear(4, 1), torch.tensor([0, 1, 1, 0])
    data = Examples.of((X, y))
    check_data(data, Classification(), model)
    z = model(torch.tensor(X)).squeeze(1)
    wanted = nn.functional.binary_cross_entropy_with_logits(z, y.float(), reduction="none")
    torch.testing.assert_close(Classification().loss(model, data.batch(range(4))), wanted)
    margins = Classification(measure="margin").measurement(model, data.batch(range(4)))
    torch.testing.assert_close(margins, torch.where(y == 1, z, -z))
    with pytest.raises(DataError, match="y has 2 for a model with 2 outputs"):
        check_data(Examples.of((X, [0, 1, 2, 0])), Classification(), model)


class Spoiled(nn.Module):
    """A language model whose logits at padding are no numbers."""

    def __init__(self, value):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.value = nn.Embedding(11, 8), nn.Linear(8, 11), value

    def forward(self, input_ids, attention_mask=None):
        out = self.head(self.embed(input_ids))
        return out if self.value is None else out.masked_fill(attention_mask.unsqueeze(-1) == 0, self.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("objective", ["loss", "margin", "sampled"])
def test_what_is_not_counted_never_enters_a_loss(value, objective):
    def gradient(model):
        batch = texts().batch(range(4))
        task = LanguageModelling("margin" if objective == "margin" else "logprob")
        if objective == "sampled":
            each = task.sampled_loss(model, batch, 0)
        else:
            each = task.loss(model, batch) if objective == "loss" else task.measurement(model, batch)
        return torch.autograd.grad(each.sum(), list(model.parameters()))

    for found, wanted in zip(gradient(Spoiled(value)), gradient(Spoiled(None))):
        assert torch.equal(found, wanted)


def test_left_and_right_padding_give_the_scores_of_the_texts():
    model, task = gpt2(), LanguageModelling()

    def scores(examples):
        trained = TrainedModel(model, examples, task, sites="*.mlp.*", quiet=True)
        return attrib.Identity().fit(trained).score(examples).values

    def padded(left):
        tokens, mask = np.full((4, 6), 10), np.zeros((4, 6), int)
        for row, text in enumerate(TEXTS):
            at = slice(6 - len(text), 6) if left else slice(0, len(text))
            tokens[row, at], mask[row, at] = text, 1
        return Examples.of({"input_ids": tokens, "attention_mask": mask})

    wanted = scores(texts())
    for left in (False, True):
        np.testing.assert_allclose(scores(padded(left)), wanted, rtol=1e-5, atol=1e-7)


def mlp(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("x", "cause"),
    [(X[:, :3], r"id \[11\] \(x \[1, 3\] of torch.float32"), ((X * 9).astype(int), "x .* of torch.int64")],
    ids=["another width", "whole numbers"],
)
def test_columns_that_the_first_layer_does_not_take_are_named(x, cause):
    with pytest.raises(DataError, match=cause):
        check_data(Examples.of((x, [0, 1, 2, 0]), ids=IDS), Classification(), mlp())


def test_a_forward_that_refuses_long_texts_in_its_own_words_is_a_data_error():
    class Refusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 11)

        def forward(self, input_ids):
            if input_ids.shape[1] > 4:
                raise ValueError("too long")
            return self.h(self.e(input_ids))

    with pytest.raises(DataError, match=r"5 positions, ids \[14\]: ValueError: too long"):
        check_data(texts(), LanguageModelling(), Refusing())


def test_a_model_that_normalises_by_its_batch_is_refused_as_one():
    normalised = mlp(nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(ModelError, match="statistics of its batch"):
        check_data(Examples.of((X, [0, 1, 2, 0])), Classification(), normalised)


@pytest.mark.parametrize("shape", [(4, 1, 5), (4, 3)])
def test_a_mask_of_another_shape_than_the_tokens_is_refused(shape):
    padded = np.zeros((4, 5), int)
    mask = np.ones(shape, int)
    mask[0] = 0
    with pytest.raises(DataError, match="attention_mask has another shape"):
        check_data(Examples.of({"input_ids": padded, "attention_mask": mask}), LanguageModelling(), gpt2())


def test_a_small_leak_from_the_next_token_is_seen():
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="sees the tokens that it is to predict"):
        check_data(texts(), LanguageModelling(), BertLMHeadModel(BertConfig(**BERT)).eval())


def test_logits_may_be_in_a_dict():
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.Embedding(11, 8), nn.Linear(8, 11)

        def forward(self, input_ids):
            return {"logits": self.h(self.e(input_ids))}

    check_data(texts(), LanguageModelling(), Dict())
