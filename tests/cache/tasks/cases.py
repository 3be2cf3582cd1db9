"""A tiny model, data and queries for every task."""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tests.cache.model.architectures import clip, images
from whence.cache import Classification, Examples, LanguageModelling, Task, find_sites, tasks

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "dog",
    "ran",
    "far",
    "red",
    "blue",
    "one",
    "two",
    "<s>",
    "</s>",
    "<mask>",
]


class Case(NamedTuple):
    """queries and measured: the queries and the task that measures them; the training data and the task if None."""

    model: nn.Module
    train: Examples
    task: Task
    queries: Examples | None = None
    measured: Task | None = None

    @property
    def sites(self) -> list[str]:
        """A layer of every side of the model."""
        names = find_sites(self.model, quiet=True).names
        wanted = (
            "*mlp.c_proj",
            "visual_projection",
            "text_projection",
            "*attention.output.dense",
            "*EncDecAttention.k",
            "*EncDecAttention.o",
        )
        return [name for name in names if any(fnmatch(name, each) for each in wanted)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<mask>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return own


def texts(count: int, seed: int, longest: int = 9) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[:20], n)) for n in rng.integers(3, longest, count)]


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, n_positions=32, vocab_size=len(WORDS), bos_token_id=20, eos_token_id=21,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def bert(kind: str) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=len(WORDS),
        max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=len(WORDS), dropout_rate=0.0,
        decoder_start_token_id=20,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def language(**columns: Any) -> Examples:
    encode = tokenizer().encode
    return Examples.of({"input_ids": [np.array(encode(text).ids) for text in texts(8, 0)]})


def questions(**more: Any) -> Examples:
    prompts = texts(5, 1, 6)
    options = [
        [" cat", " dog ran far", " mat one two b"],
        [" red", " blue a"],
        [" a b", " c"],
        [" f g h", " d"],
        [" e", " h"],
    ]
    return tasks.choices(prompts, options, [1, 0, 1, 0, 1], tokenizer(), **more)


def pairs() -> Examples:
    prompts = texts(6, 2, 6)
    answers = [
        [" cat sat", " dog"],
        [" red", " blue one two a b c d e f"],
        [" a", " b"],
        [" c d e", " f"],
        [" g", " h"],
        [" one", " two"],
    ]
    torch.manual_seed(5)
    return tasks.with_reference(tasks.choices(prompts, answers, None, tokenizer()), gpt2().double())


def _samples() -> Examples:
    drawn = [[" cat", " dog far", " mat"], [" red b c", " blue"]]
    return tasks.samples(texts(2, 3, 6), drawn, [[1.0, 0.0, 0.5], [2.0, -1.0]], tokenizer())


def _whole(queries: Examples) -> Examples:
    return tasks.one_token_each(queries.select([0, 1]))


CASES: dict[str, Callable[[], Case]] = {
    "chats": lambda: Case(gpt2(), _chats(), LanguageModelling()),
    "prompt and completion": lambda: Case(
        gpt2(),
        tasks.prompted(texts(6, 1), [" cat", " dog ran", " a", " b c d", " red", " mat"], tokenizer()),
        LanguageModelling(),
    ),
    "sequence classification": lambda: Case(
        bert("BertForSequenceClassification"),
        tasks.classified(texts(6, 2), [0, 1, 2, 0, 1, 2], tokenizer()),
        Classification(),
    ),
    "masked language": lambda: Case(
        bert("BertForMaskedLM"),
        tasks.masked(language(), mask=22, share=0.3, vocabulary=20),
        tasks.MaskedLanguageModelling(),
    ),
    "encoder and decoder": lambda: Case(
        t5(), tasks.sequence_pairs(texts(6, 4), texts(6, 5, 14), tokenizer()), tasks.EncoderDecoder()
    ),
    "choice": lambda: Case(gpt2(), language(), LanguageModelling(), questions(), tasks.Choice()),
    "dpo": lambda: Case(gpt2(), pairs(), tasks.DPO(beta=0.5)),
    "dpo, measured by a completion": lambda: Case(
        gpt2(),
        pairs(),
        tasks.DPO(),
        tasks.prompted(["a b", "c"], [" cat", " dog ran"], tokenizer()),
        tasks.Measured(tasks.DPO(), LanguageModelling()),
    ),
    "reward": lambda: Case(gpt2(), language(), LanguageModelling(), _samples(), tasks.Reward()),
    "pooled mean": lambda: Case(gpt2(), language(), LanguageModelling(), language(), tasks.Pooled()),
    "pooled min": lambda: Case(gpt2(), language(), LanguageModelling(), language(), tasks.Pooled("min")),
    "one token": lambda: Case(gpt2(), language(), LanguageModelling(), _whole(language()), LanguageModelling()),
    "zero-shot": lambda: Case(
        clip(),
        images(),
        tasks.ZeroShot.of(["the cat", "the dog ran", "mat"], tokenizer()),
    ),
    "packed": lambda: Case(gpt2(), tasks.packed(language(), 16), LanguageModelling()),
}


def build(name: str) -> Case:
    torch.manual_seed(0)
    case = CASES[name]()
    return case._replace(model=case.model.double())


TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['role'][0] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> a ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<s> ' + m['role'][0] + ' ' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + ' </s>' }}{% endgeneration %}{{ ' ' }}{% else %}"
    "{{ m['content'] + ' </s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> a ' }}{% endif %}"
)


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), unk_token="<mask>")
    found.chat_template = template
    return found


CONVERSATIONS = [
    [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat on"},
        {"role": "user", "content": "dog"},
        {"role": "assistant", "content": "ran far"},
    ],
    [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}],
    [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "a b c"}],
]


def _chats() -> Examples:
    return tasks.chats(CONVERSATIONS, chat_tokenizer())
