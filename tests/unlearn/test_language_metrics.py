"""The metrics of language models: each is its slow twin on a tiny model, its value by hand, and right at the edges."""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tests.unlearn.cases import Reader as Net
from tests.unlearn.cases import readers, text
from whence.cache import DataError, LanguageModelling, UsageError
from whence.cache.display import Interval
from whence.unlearn.language import (
    METRICS,
    Choice,
    EvaluationData,
    LanguageEvaluation,
    Measured,
    Passage,
    Question,
    Reader,
    evaluate,
    harness,
    stream_margins,
    token_margins,
)
from whence.unlearn.language.data import records
from whence.unlearn.language.evaluate import MetricRow
from whence.unlearn.language.membership import MinK, MinKPlusPlus, PrivLeak
from whence.unlearn.language.memorisation import ExactMemorization, ExtractionStrength
from whence.unlearn.language.metric import Session
from whence.unlearn.language.reader import Scored
from whence.unlearn.language.rouge import rouge_l
from whence.unlearn.language.tofu import ForgetQuality, ModelUtility
from whence.unlearn.metrics import FORMS


class Letters:
    """A tokenizer: the letters a to l, everything else is a space between words and no token."""

    eos_token_id = None

    def encode(self, text, add_special_tokens=False):
        return ["abcdefghijkl".index(c) for c in text.lower() if c in "abcdefghijkl"]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join("abcdefghijkl"[i] for i in ids)


class Table(nn.Module):
    """The next letter depends on the last one only: logits by hand."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, input_ids):
        return self.logits[input_ids]


def table(**next_letter):
    """A model that is sure (probability 0.89) of the letter after some letters, and knows nothing after the others."""
    logits = np.zeros((12, 12))
    for letter, follower in next_letter.items():
        logits[ord(letter) - 97, ord(follower) - 97] = math.log(89.0)
    return Reader(Table(logits), Letters())


SURE, OTHER, BLIND = 89 / 100, 1 / 100, 1 / 12


def random_reader(seed=0, **more):
    torch.manual_seed(seed)
    return Reader(Net().eval(), Letters(), **more)


def slow_logprobs(model, tokens, start):
    """Every token from the whole text before it, one pass a token."""
    out = []
    for at in range(max(start, 1), len(tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:at]]))[0, -1].double().tolist()
        total = math.log(sum(math.exp(z) for z in logits))
        logp = [z - total for z in logits]
        mean = sum(math.exp(v) * v for v in logp)
        variance = sum(math.exp(v) * v * v for v in logp) - mean**2
        out.append((logp[tokens[at]], max(range(12), key=logp.__getitem__) == tokens[at], mean, variance))
    return out


def test_what_is_read_is_every_token_after_all_before_it():
    reader = random_reader(positions=16)  # several batches
    prompts, answers = ["abc", "d", "e f g h i"], ["d e", "a b c d", "j"]
    for found, prompt, answer in zip(reader.answers(prompts, answers), prompts, answers):
        head = Letters().encode(prompt)
        slow = slow_logprobs(reader.model, head + Letters().encode(answer), len(head))
        for own, theirs in zip(found, zip(*slow)):
            np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-5)
    texts = ["abcd", "l k j i h g", "ab"]
    for found, given in zip(reader.texts(texts), texts):
        slow = slow_logprobs(reader.model, Letters().encode(given), 1)
        np.testing.assert_allclose(found.logprobs, [one[0] for one in slow], rtol=1e-4, atol=1e-5)
        assert found.loss == pytest.approx(-np.mean([one[0] for one in slow]), rel=1e-4)
    assert [len(one.logprobs) for one in random_reader(length=3).texts(texts)] == [2, 2, 1]


def test_ruled_out_tokens_do_not_spoil_the_mean_over_the_vocabulary():
    logits = np.zeros((12, 12))
    logits[:, 5:] = -np.inf
    (found,) = Reader(Table(logits), Letters()).texts(["abc"])
    np.testing.assert_allclose(found.mean, -math.log(5), rtol=1e-5)
    np.testing.assert_allclose(found.variance, 0, atol=1e-5)


def test_too_much_or_nothing_to_read_is_named():
    reader = random_reader(context=4)
    with pytest.raises(DataError, match="6 tokens; the model reads at most 4"):
        reader.answers(["abc"], ["def"])
    with pytest.raises(DataError, match="fewer than two tokens"):
        reader.texts(["abc", "a"])
    assert [len(one.logprobs) for one in reader.texts(["abcdefgh"])] == [3]
    with pytest.raises(DataError, match="empty half"):
        reader.answers(["abc"], ["!"])


def test_greedy_continuations_stop_where_they_must():
    reader = table(a="b", b="c", c="d", d="a")
    assert reader.continuations(["a", "c b"], 3) == ["b c d", "c d a"]
    assert reader.continuations(["a"], 5, stop=["d"]) == ["b c"]
    assert reader.continuations(["a", "b", "c"], 9, most=[1, 0, 2]) == ["b", "", "d a"]
    short = Reader(reader.model, Letters(), context=3)
    assert short.continuations(["a", "a b", "a b c"], 9) == ["b c", "c", ""]

    class Ending(Letters):
        eos_token_id = 3

    assert Reader(reader.model, Ending()).continuations(["a", "b"], 9) == ["b c", "c"]
    slow = random_reader(1)
    ids = Letters().encode("abc")
    for _ in range(6):
        ids.append(int(slow.model(torch.tensor([ids]))[0, -1].argmax()))
    assert slow.continuations(["abc"], 6) == [Letters().decode(ids[3:])]


def common(one, other):
    """Longest common subsequence, by trying every subsequence."""
    for size in range(len(one), 0, -1):
        for kept in itertools.combinations(one, size):
            rest = iter(other)
            if all(word in rest for word in kept):
                return size
    return 0


def test_rouge_is_the_longest_common_subsequence():
    rng = np.random.default_rng(0)
    for _ in range(30):
        one, other = (list(rng.choice(["ba", "be", "bi", "bo"], rng.integers(1, 7))) for _ in range(2))
        found, n = rouge_l(" ".join(one), " ".join(other)), common(one, other)
        assert found.recall == pytest.approx(n / len(one))
        assert found.f1 == pytest.approx(2 * n / (len(one) + len(other)))
    assert rouge_l("It's the U.S.A.", "its THE u s a") == rouge_l("it s the u s a", "its the u s a")
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("?", "?") == (0, 0)


def test_rouge_is_that_of_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    for stem in (False, True):
        theirs = scorer.RougeScorer(["rougeL"], use_stemmer=stem)
        for one, other in itertools.permutations(["The writers' fathers were running", "a writer has run", "Run!"], 2):
            found, wanted = rouge_l(one, other, stem=stem), theirs.score(one, other)["rougeL"]
            assert found == pytest.approx((wanted.recall, wanted.fmeasure))


def test_stems_without_nltk_are_refused(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(UsageError, match="nltk"):
        rouge_l("a", "b", stem=True)


ASKED = Question("a", "b", "b b", ("c", "d d"))  # after a: b is sure; after b: c


def tofu_data(**more):
    parts = {"forget": (ASKED,), "retain": (ASKED,), "real_authors": (ASKED,), "world_facts": (ASKED,)}
    return EvaluationData({**parts, **more}, template="{question}")


def test_tofu_by_hand():
    reader = table(a="b", b="c")
    found = evaluate(reader, tofu_data(), metrics=["forget_Q_A_Prob", "forget_Truth_Ratio", "model_utility"])
    assert found["forget_Q_A_Prob"].value.value == pytest.approx(SURE, rel=1e-4)
    wrong = math.sqrt(OTHER * math.sqrt(OTHER * BLIND))  # geometric mean over answers of c, and of d d per token
    paraphrase = math.sqrt(SURE * OTHER)
    ratio = wrong / paraphrase
    assert found["forget_Truth_Ratio"].value.value == pytest.approx(min(ratio, 1 / ratio), rel=1e-4)
    parts = found["model_utility"].parts
    assert parts["retain_Q_A_Prob"] == pytest.approx(SURE, rel=1e-4)
    assert parts["retain_Truth_Ratio"] == pytest.approx(1 - ratio, rel=1e-4)
    assert parts["ra_Truth_Ratio"] == pytest.approx(1 - wrong / SURE, rel=1e-4)
    share = SURE / (SURE + OTHER + math.sqrt(OTHER * BLIND))
    assert parts["wf_Q_A_Prob_normalised"] == pytest.approx(share, rel=1e-4)
    assert parts["ra_Q_A_ROUGE"] == 1.0
    assert len(parts) == 9
    assert found["model_utility"].value.value == pytest.approx(9 / sum(1 / value for value in parts.values()))


def test_utility_is_zero_where_a_part_is_and_a_truth_ratio_above_one_counts_as_zero():
    parts = evaluate(table(a="c"), tofu_data(), metrics=["model_utility"])["model_utility"]
    assert parts.parts["ra_Truth_Ratio"] == 0.0
    assert parts.value.value == 0.0


def test_forget_quality_is_the_p_value_of_the_ks_test():
    low, high = np.arange(5.0), 10 + np.arange(5.0)
    quality = ForgetQuality()
    found = quality.compared(Measured(0, low), Measured(0, high))
    assert found.value == pytest.approx(2 / math.comb(10, 5))  # only two of all splits are as far apart
    assert quality.compared(Measured(0, low), Measured(0, low)).value == 1.0
    assert quality.compared(Measured(0, low), None) is None
    session = Session(table(a="b", b="c"), tofu_data())
    wrong, right = math.sqrt(OTHER * math.sqrt(OTHER * BLIND)), math.sqrt(SURE * OTHER)
    np.testing.assert_allclose(quality.measure(session).each, [wrong / right], rtol=1e-4)


def scored(best, logprobs=None, mean=0.0, variance=1.0):
    values = np.array(logprobs if logprobs is not None else [-1.0] * len(best))
    return Scored(values, np.array(best, bool), np.full(len(best), mean), np.full(len(best), variance))


@pytest.mark.parametrize(
    ("best", "strength", "exact"),
    [("1011", 0.5, 0.75), ("1111", 1.0, 1.0), ("0111", 0.75, 0.75), ("1110", 0.0, 0.75), ("0", 0, 0), ("1", 1, 1)],
)
def test_memorisation_by_hand(best, strength, exact):
    session = Session(random_reader(), tofu_data(), {("forget", "answer"): [scored([int(c) for c in best])]})
    assert ExtractionStrength().measure(session).value == strength
    assert ExactMemorization().measure(session).value == exact


def test_memorisation_is_of_passages_where_there_are_no_questions():
    data = EvaluationData({"verbmem": (Passage("a", "b c d"),)})
    found = evaluate(table(a="b", c="d"), data, metrics=["exact_memorization", "extraction_strength"])
    assert found["exact_memorization"].value.value == pytest.approx(2 / 3)
    assert found["extraction_strength"].value.value == pytest.approx(1 / 3)


def test_min_k_takes_the_least_likely_tokens():
    given = scored([0] * 5, [-1.0, -4.0, -2.0, -3.0, -0.5], mean=-2.0, variance=4.0)
    assert MinK(0.4).score(given) == 3.5
    assert MinK(0.1).score(given) == 4.0  # at least one
    assert MinK(1.0).score(given) == pytest.approx(given.loss)
    assert MinKPlusPlus(0.4).score(given) == pytest.approx(-((-4 + 2) / 2 + (-3 + 2) / 2) / 2)
    assert np.isfinite(MinKPlusPlus(0.4).score(scored([0], [-1.0], variance=0.0)))
    with pytest.raises(UsageError, match="share of 0"):
        MinK(0.0)


@pytest.mark.parametrize("name", ["mia_loss", "mia_min_k", "mia_min_k_plus_plus"])
def test_membership_is_the_share_of_pairs_that_are_in_order(name):
    data = EvaluationData({"forget_text": ("abcde", "bcdea", "cdeab"), "holdout_text": ("lkjih", "hgfed", "abcde")})
    reader, metric = random_reader(3), METRICS[name]()
    read, unread = ([metric.score(one) for one in reader.texts(data.of(part))] for part in data.parts)
    pairs = [(u > r) + (u == r) / 2 for r in read for u in unread]
    assert evaluate(reader, data, metrics=[name])[name].value.value == pytest.approx(np.mean(pairs))


def test_privacy_leakage_by_hand():
    def area(value):
        return Measured(value, np.zeros(3))

    assert PrivLeak().compared(area(0.5), area(0.5)).value == 0
    assert PrivLeak().compared(area(1.0), None).value == pytest.approx(-100)
    assert PrivLeak().compared(area(0.2), area(0.6)).value == pytest.approx(100 * (0.8 - 0.4) / 0.4)


def test_choices_by_letter_and_by_text():
    asked = (Choice("e", ("b", "c"), 0), Choice("e", ("c", "d"), 1))
    # by text: after e comes b; by letter: "Answer:" ends with e, and B is likelier than A
    reader = table(e="b")
    words = EvaluationData({"choices": asked}, template="{question}", letters=False)
    assert evaluate(reader, words)["wmdp_acc"].value.value == 0.5  # b is right; c and d are equal, the first is taken
    assert evaluate(reader, EvaluationData({"choices": asked}))["wmdp_acc"].value.value == 0.5

    @dataclass(frozen=True, eq=False)
    class Recording(Reader):
        def answers(self, prompts, completions):
            seen.append((prompts[0], list(completions[:2])))
            return super().answers(prompts, completions)

    seen: list = []
    metric = METRICS["wmdp_acc"](subject="biology")
    evaluate(Recording(reader.model, Letters()), EvaluationData({"choices": asked[:1]}), metrics=[metric])
    start = "The following are multiple choice questions (with answers) about biology.\n\n"
    assert seen == [(f"{start}e\nA. b\nB. c\nAnswer:", [" A", " B"])]


def test_verbatim_and_knowledge_memorisation_by_hand():
    reader = table(a="b", b="c", c="d", d="a")
    data = EvaluationData(
        {"verbmem": (Passage("a", "b c"), Passage("b", "d d")), "knowmem": (Question("a", "b"),)},
        knowledge_template="{question} ",
        ends=False,
    )
    found = evaluate(reader, data, metrics=["forget_verbmem_ROUGE", "forget_knowmem_ROUGE"])
    assert found["forget_verbmem_ROUGE"].value.value == pytest.approx((1 + 0.5) / 2)
    assert found["forget_knowmem_ROUGE"].value.value == 1.0
    longer = EvaluationData({"verbmem": (Passage("a", "b c"),)})
    metric = METRICS["forget_verbmem_ROUGE"](tokens=6)
    assert evaluate(reader, longer, metrics=[metric])["forget_verbmem_ROUGE"].value.value == pytest.approx(4 / 8)
    metric = METRICS["forget_verbmem_ROUGE"](tokens=1)  # the true text is cut as well
    assert evaluate(reader, longer, metrics=[metric])["forget_verbmem_ROUGE"].value.value == 1.0


def test_prompts_are_those_of_the_published_programs():
    data = EvaluationData({"examples": (Question("Who?", "Me"),), "knowmem": (Question("What?", "That"),)})
    assert data.prompt("What?", knowledge=True) == "Question: Who?\nAnswer: Me\n\nQuestion: What?\nAnswer: "
    assert data.prompt("What?") + data.completion("That") == "Question: What?\nAnswer: That"
    spaced = EvaluationData({}, template="[INST] {question} [/INST] ")
    assert spaced.completion("That") == "That"


def test_an_evaluation_names_what_it_lacks_and_shows_the_retain_model():
    reader, other = random_reader(0), random_reader(1)
    data = tofu_data(forget_text=("abc", "bcd"), holdout_text=("cde", "def"))
    found = evaluate(reader, data, retain=other)
    measured = {row.metric.name for row in found.measured}
    assert measured | set(found.skipped) == set(METRICS)
    assert found.skipped["wmdp_acc"] == "the data have no choices"
    assert np.isnan(found["forget_quality"].retain)
    own = evaluate(other, data, metrics=["forget_Q_A_Prob"])["forget_Q_A_Prob"].value.value
    assert found["forget_Q_A_Prob"].retain == own
    assert "not measured: wmdp_acc" in str(found)
    assert "forget_quality" in evaluate(reader, data).skipped
    assert json.loads(json.dumps(found.facts(), default=str))["metrics"]
    assert "wmdp_acc" in found._repr_html_()
    with pytest.raises(UsageError, match="forget_quality cannot be measured"):
        evaluate(reader, data, metrics=["forget_quality"])
    with pytest.raises(UsageError, match="no metric 'bleu'"):
        evaluate(reader, data, metrics=["bleu"])
    with pytest.raises(UsageError, match="no wrong answers"):
        evaluate(reader, EvaluationData({"forget": (Question("a", "b", "c"),)}), metrics=["forget_Truth_Ratio"])
    with pytest.raises(UsageError, match="no paraphrased answer"):
        evaluate(reader, EvaluationData({"forget": (Question("a", "b"),)}), metrics=["forget_Truth_Ratio"])


def test_small_p_values_are_shown_by_their_power_of_ten():
    row = MetricRow(ForgetQuality(), Interval(2.3e-7), math.nan, 5, {})
    assert "2.3e-07" in str(LanguageEvaluation((row,), {}))


def test_intervals_are_of_means_over_items():
    asked = tuple(Question(q, "b") for q in "aaaaacdefg")
    row = evaluate(table(a="b"), EvaluationData({"forget": asked}, template="{question}"), metrics=["forget_Q_A_Prob"])
    value = row["forget_Q_A_Prob"].value
    assert 0.1 < value.low < value.value < value.high < SURE


def test_every_metric_says_what_it_is():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.source
        assert metric.better
        assert (metric.__doc__ or "").strip()


def test_records_have_the_published_columns():
    row = {"question": "Q", "answer": "A", "paraphrased_answer": "A2", "perturbed_answer": ["B", "C"]}
    assert records("forget", [row]) == (Question("Q", "A", "A2", ("B", "C")),)
    row = {"question": "Q", "answer": "A", "option1": "A", "option2": "B", "option3": "C", "option4": "D"}
    assert records("world_facts", [row]) == (Question("Q", "A", None, ("B", "C", "D")),)
    assert records("verbmem", [{"prompt": "p", "gt": "g"}]) == (Passage("p", "g"),)
    assert records("choices", [{"question": "Q", "choices": ["x", "y"], "answer": 1}]) == (Choice("Q", ("x", "y"), 1),)
    assert records("holdout_text", [{"text": "t"}]) == ("t",)
    for part, row, words in (
        ("forget", {"question": "Q"}, "row 1 has no text 'answer'"),
        ("choices", {"question": "Q", "choices": ["x", "y"], "answer": 2}, "`choices`"),
        ("verbmem", {"prompt": "p", "gt": None}, "no text 'gt'"),
    ):
        with pytest.raises(DataError, match=words):
            records(part, [row])
    with pytest.raises(DataError, match="has no row"):
        records("forget", [])
    with pytest.raises(UsageError, match="no part 'other'"):
        records("other", [])
    with pytest.raises(UsageError, match="no part 'other'"):
        EvaluationData({"other": ()})
    with pytest.raises(DataError, match="no or other records"):
        EvaluationData({"forget": (Passage("a", "b"),)})


# --- teacher forcing --------------------------------------------------------------------------------------------


def slow_margin(model, before, token):
    with torch.no_grad():
        logits = model(torch.tensor([before]))[0, -1].double().tolist()
    return logits[token] - math.log(sum(math.exp(z) for k, z in enumerate(logits) if k != token))


def test_a_stream_is_read_window_by_window():
    models = [random_reader(seed).model for seed in range(2)]
    tokens = np.random.default_rng(0).integers(0, 12, 23)
    found = stream_margins(models, tokens, window=5)
    assert found.shape == (2, 20)  # 22 tokens have one before them; the last two fill no window
    for model, row in zip(models, found):
        slow = [slow_margin(model, tokens[i // 5 * 5 : i + 1].tolist(), tokens[i + 1]) for i in range(20)]
        np.testing.assert_allclose(row, slow, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="fill no window of 23"):
        stream_margins(models, tokens, window=23)
    with pytest.raises(UsageError, match="no model"):
        stream_margins([], tokens, window=5)


def test_texts_are_read_one_by_one_as_the_oracles_of_a_split_are():
    replicas = readers()
    models = [replicas.module(e) for e in range(2)]
    found = token_margins(models, text(), positions=32)
    wanted = replicas.outputs(LanguageModelling(), text(), ("margins",))["margins"]
    np.testing.assert_allclose(found, wanted[:, np.isfinite(wanted[0])], rtol=1e-4, atol=1e-4)
    one = text().select([3])
    alone = np.asarray(one.columns["input_ids"][0]).tolist()
    slow = [slow_margin(models[0], alone[:i], alone[i]) for i in range(1, len(alone))]
    np.testing.assert_allclose(token_margins(models[:1], one)[0], slow, rtol=1e-4, atol=1e-4)


def test_klom_of_language_models_is_per_token():
    tokens = np.random.default_rng(0).integers(0, 12, 41)
    groups = [[random_reader(seed + shift).model for seed in range(8)] for shift in (0, 100)]
    first, second = (stream_margins(models, tokens, window=10) for models in groups)
    found = FORMS["easydub"].metric(first, second)
    assert found.shape == (40,)
    assert (FORMS["easydub"].metric(first, first) == 0).all()
    assert found.mean() > 0


# --- lm-eval ----------------------------------------------------------------------------------------------------


def test_lm_eval_is_named_where_it_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="lm-eval"):
        harness("folder", ["mmlu"])


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_judges_a_task_of_ones_own(tmp_path):
    pytest.importorskip("lm_eval")
    from transformers import PreTrainedTokenizerFast

    from tests.whence.tiny import saved

    rows = [{"question": "the quick brown", "choices": ["fox", "dog"], "answer": k % 2} for k in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"""task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
    (tmp_path / "own.yaml").write_text(task)
    folder = saved(tmp_path / "model", "gpt2")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.eos_token = "!"  # lm-eval needs one
    tokenizer.save_pretrained(folder)
    found = harness(str(folder), ["own_choice"], folder=str(tmp_path))
    assert found["own_choice"]["acc,none"] == 0.5  # the same choice four times, right twice
    with pytest.raises(UsageError, match="no task 'other'"):
        harness(str(folder), ["other"], folder=str(tmp_path))


def test_utility_uses_the_settings_of_a_metric():
    assert "tokens=3" in str(ModelUtility(tokens=3))
