"""Every task: the checks pass, and EK-FAC's scores equal those of autograd's gradients, one example at a time."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.cache.tasks import cases
from whence.attrib import EKFAC, KFAC
from whence.cache import DataError, Examples, LanguageModelling, ModelError, Store, TrainedModel, UsageError, tasks
from whence.cache.model.capture import capture


@pytest.mark.parametrize("name", cases.CASES)
def test_scores_are_those_of_gradients_of_single_examples(name: str) -> None:
    case = cases.build(name)
    trained = TrainedModel(case.model, case.train, case.task, sites=case.sites, quiet=True)
    measured, queries = case.measured or case.task, case.queries or case.train
    fitted = EKFAC(redraw=False).fit(trained).measuring(measured)
    assert fitted.trained.check(queries).count("gradients are autograd's") == 3
    found = fitted.score(queries).values
    case.model.eval().requires_grad_(True)
    q = reference.site_gradients(case.model, fitted.sites, queries, measured.measurement)
    g = reference.site_gradients(case.model, fitted.sites, case.train, measured.loss)
    wanted = np.zeros(found.shape)
    for site in fitted.sites.names:
        qa, qs, _ = fitted.per_site[site]
        rotated = [qs.T @ each @ qa for each in (q[site], g[site])]
        wanted -= np.einsum("qoi,oi,noi->qn", rotated[0], fitted.inverse(site), rotated[1]) / len(case.train)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["encoder and decoder", "dpo", "packed"])
def test_curvature_does_not_depend_on_padding(name: str) -> None:
    case = cases.build(name)
    trained = TrainedModel(case.model, case.train, case.task, sites=case.sites, quiet=True)
    together, alone = (
        KFAC().fit(trained.replace(positions=positions)).score(case.train).values for positions in (10**6, 1)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max())


def test_chats_count_what_the_assistant_says_and_its_end_of_turn() -> None:
    found = tasks.chats(cases.CONVERSATIONS, cases.chat_tokenizer())
    marked = tasks.chats(cases.CONVERSATIONS, cases.chat_tokenizer(cases.MARKED))
    words = [[cases.WORDS[t] for t in row if t != -100] for row in found.columns["labels"]]
    assert words[0] == ["sat", "on", "</s>", "ran", "far", "</s>"]
    assert found.fingerprint == marked.fingerprint
    shorter = tasks.chats(cases.CONVERSATIONS, cases.chat_tokenizer(), length=8, ids=["x", "y", "z"])
    assert shorter.lengths.max() == 8
    assert list(shorter.about["id"]) == ["x", "y", "z"]


def test_chats_that_cannot_be_written_are_refused() -> None:
    tokenizer = cases.chat_tokenizer()
    with pytest.raises(DataError, match="no assistant's turn"):
        tasks.chats([cases.CONVERSATIONS[0][:1]], tokenizer)
    with pytest.raises(UsageError, match="no chat template"):
        tasks.chats(cases.CONVERSATIONS, cases.tokenizer())
    with pytest.raises(DataError, match="cannot write conversation 0"):
        tasks.chats([[{"role": "assistant"}]], tokenizer)
    tokenizer.chat_template = "{{ messages | length }}" + cases.TEMPLATE  # what is written changes with what follows
    with pytest.raises(DataError, match=r"message 1 of conversation 0"):
        tasks.chats(cases.CONVERSATIONS, tokenizer)


def test_a_choice_of_two_is_the_difference_of_their_log_probabilities() -> None:
    case, tokenizer = cases.build("choice"), cases.tokenizer()
    pair = tasks.choices(["the cat", "dog"], [[" sat", " ran far"], [" a", " b c"]], [1, 0], tokenizer)
    value = tasks.Choice().measurement(case.model, pair.batch([0, 1])).detach()
    each = [
        LanguageModelling()
        .measurement(case.model, tasks.prompted(["the cat", "dog"], c, tokenizer).batch([0, 1]))
        .detach()
        for c in ([" ran far", " a"], [" sat", " b c"])
    ]
    torch.testing.assert_close(value, each[0] - each[1])


def test_a_missing_option_changes_nothing() -> None:
    """Questions of two options beside one of three: their log-odds are those of two."""
    case, tokenizer = cases.build("choice"), cases.tokenizer()
    together = tasks.choices(["a", "b"], [[" c", " d"], [" e", " f", " g"]], None, tokenizer)
    alone = tasks.choices(["a"], [[" c", " d"]], None, tokenizer)
    found = tasks.Choice().measurement(case.model, together.batch([0, 1]))[0]
    torch.testing.assert_close(found, tasks.Choice().measurement(case.model, alone.batch([0]))[0])


def test_options_of_other_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="Question 0 has 1 options"):
        tasks.choices(["a"], [[" c"]], None, cases.tokenizer())
    with pytest.raises(DataError, match="one completion each"):
        tasks.Choice().measurement(cases.gpt2(), cases.language().batch([0]))


def test_dpo_of_the_reference_model_is_undecided() -> None:
    torch.manual_seed(5)
    reference_model = cases.gpt2().double()
    pairs = cases.pairs()
    batch = pairs.batch(range(len(pairs)))
    loss = tasks.DPO().loss(reference_model, batch).detach()
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-9)


def test_sampled_preferences_have_the_models_probability() -> None:
    case = cases.build("dpo")
    batch = case.train.batch([0])
    task = tasks.DPO(beta=20.0)
    p = task.logits(case.model, batch).detach().sigmoid().item()
    true = task.loss(case.model, batch).item()
    kept = np.mean([np.isclose(task.sampled_loss(case.model, batch, seed).item(), true) for seed in range(300)])
    assert 0.05 < p < 0.95
    assert abs(kept - p) < 0.1


def test_dpo_without_reference_is_refused() -> None:
    pairs = tasks.choices(["a"], [[" c", " d"]], None, cases.tokenizer())
    with pytest.raises(DataError, match=r"needs the column reference[\s\S]*with_reference"):
        tasks.DPO().loss(cases.gpt2(), pairs.batch([0]))


def test_rewards_are_centred_by_the_other_samples() -> None:
    found = tasks.samples(["a"], [[" b", " c", " d"]], [[3.0, 0.0, 0.0]], cases.tokenizer())
    np.testing.assert_allclose(found.columns["reward"], [1.0, -0.5, -0.5])
    with pytest.raises(DataError, match="Prompt 0"):
        tasks.samples(["a"], [[" b"]], [[float("nan")]], cases.tokenizer())


def test_the_policy_gradient_is_that_of_the_expected_reward() -> None:
    """Over all completions of one token, weighted by their probability, it is the mean reward's gradient."""
    torch.manual_seed(0)
    model, tokenizer = cases.gpt2().double(), cases.tokenizer()
    r = torch.linspace(-1, 1, 20, dtype=torch.float64)
    found = tasks.samples(["cat"], [[f" {w}" for w in cases.WORDS[:20]]], [r.tolist()], tokenizer, baseline=False)
    batch = found.batch(range(20))
    logits = model(batch["input_ids"][:1, :1]).logits[0, -1]
    p = logits.softmax(-1)[:20]
    mean = torch.autograd.grad((p * r).sum(), model.transformer.wte.weight, retain_graph=True)[0]
    each = tasks.Reward().measurement(model, batch) * 20
    estimated = torch.autograd.grad((p.detach() * each).sum(), model.transformer.wte.weight)[0]
    torch.testing.assert_close(estimated, mean)


def test_tokens_one_by_one_sum_to_the_whole() -> None:
    case = cases.build("prompt and completion")
    parts = tasks.one_token_each(case.train)
    values = LanguageModelling().measurement(case.model, parts.batch(range(len(parts)))).detach().numpy()
    whole = LanguageModelling().measurement(case.model, case.train.batch(range(6))).detach().numpy()
    summed = [values[[of == i for of in parts.about["of"]]].sum() for i in case.train.ids]
    np.testing.assert_allclose(summed, whole)


def test_masking_is_keyed_by_example_and_position() -> None:
    data = cases.language()
    found = tasks.masked(data, mask=22, share=0.3)
    other = tasks.masked(data.select([5, 2]), mask=22, share=0.3)
    for at, row in enumerate((5, 2)):
        np.testing.assert_array_equal(other.columns["labels"][at], found.columns["labels"][row])
    for tokens, labels, own in zip(found.columns["input_ids"], found.columns["labels"], data.columns["input_ids"]):
        assert (labels != -100).any()
        np.testing.assert_array_equal(tokens == 22, labels != -100)
        np.testing.assert_array_equal(np.where(labels == -100, tokens, labels), own)


def test_a_packed_row_is_the_sum_of_its_texts() -> None:
    case = cases.build("packed")
    texts = cases.language()
    assert len(case.train) < len(texts)
    rows = case.task.loss(case.model, case.train.batch(range(len(case.train)))).detach()
    each = dict(zip(texts.ids.tolist(), case.task.loss(case.model, texts.batch(range(len(texts)))).tolist()))
    wanted = [sum(each[i] for i in documents) for documents in case.train.about["documents"]]
    np.testing.assert_allclose(rows, wanted, rtol=1e-9)


def test_the_scores_of_a_packed_row_s_texts_sum_to_its_own() -> None:
    case, texts = cases.build("packed"), cases.language()
    trained = TrainedModel(case.model, case.train, case.task, sites=case.sites, quiet=True)
    factors, queries = EKFAC().fit(trained), texts.select([0, 1])
    each, rows = factors.score(queries, texts), factors.score(queries)
    wanted = [each.sel(train=documents).sum("train").values for documents in case.train.about["documents"]]
    np.testing.assert_allclose(rows.values.T, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


def test_models_that_let_packed_texts_see_each_other_are_refused() -> None:
    class Sees(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = cases.gpt2()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids).logits

    for model in (Sees(), TwoAxes()):
        trained = TrainedModel(model, tasks.packed(cases.language(), 16), LanguageModelling(), quiet=True)
        with pytest.raises(ModelError, match=r"does not keep the packed texts"):
            trained.find()


class TwoAxes(torch.nn.Module):
    """Reads a mask of two axes only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(23, 4), torch.nn.Linear(4, 23)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids) * attention_mask[..., None]
        return self.head(x.cumsum(1))


def test_a_text_longer_than_a_row_is_not_packed() -> None:
    with pytest.raises(DataError, match="more than a row of 4"):
        tasks.packed(cases.language(), 4)


def test_every_setting_of_a_measurement_is_in_its_key() -> None:
    found = [
        tasks.Choice(),
        tasks.Pooled(),
        tasks.Pooled("min"),
        tasks.Reward(),
        tasks.Measured(tasks.DPO(), LanguageModelling()),
    ]
    found += [tasks.Choice(by=LanguageModelling("margin")), tasks.Measured(tasks.DPO(0.3), LanguageModelling())]
    assert len({str(task.settings) for task in found}) == len(found)


def test_a_stored_fit_serves_every_measurement(store: Store) -> None:
    case = cases.build("choice")
    trained = TrainedModel(case.model.float(), case.train, case.task, sites=case.sites, store=store, quiet=True)
    scores = EKFAC(redraw=False).fit(trained).measuring(tasks.Choice()).score(Examples.of(cases.questions()))
    assert scores.shape == (5, 8)
    assert scores.attrs["units"] == "nats"


def test_fixed_texts_are_those_of_the_pair_and_both_sides_have_gradients() -> None:
    case = cases.build("zero-shot")
    texts = tasks.ZeroShot.of(["the cat", "mat red"], cases.tokenizer())
    batch = case.train.batch([0, 1], dtype=torch.float64)
    own = case.model(input_ids=torch.tensor(texts.texts), pixel_values=batch["x"]).logits_per_image
    torch.testing.assert_close(texts.logits(case.model, batch), own)
    train, names = case.train.select([0, 1]), ["text_projection", "visual_projection"]
    trained = TrainedModel(case.model, train, texts, sites=names, quiet=True)
    sites, batch = trained.find(), trained.batch(train, [0, 1])
    seen = capture(trained.model, sites, batch, texts.loss)
    wanted = reference.site_gradients(trained.model, sites, train, texts.loss)
    for site in sites:
        found = torch.einsum("bso,bsi->boi", seen.grads[site.name], seen.inputs[site.name]).numpy()
        np.testing.assert_allclose(found, wanted[site.name], rtol=1e-6, atol=1e-9)
        assert np.abs(found).max() > 0
    with pytest.raises(DataError, match="There are 1 texts"):
        tasks.ZeroShot.of(["the cat"], cases.tokenizer()).logits(case.model, batch)
