"""Text to token ids and back, the same for a tokenizer trained here and for one from the hub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer: of the `tokenizers` library, or a Hugging Face one. Nothing is added to what it is given."""

    tokenizer: Any

    @staticmethod
    def byte_pairs(texts: Iterable[str], size: int = 2048) -> "Vocabulary":
        """Byte-pair encoding trained on `texts`; any text can be encoded, and decodes to itself."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(texts, trainer)
        return Vocabulary(tokenizer)

    @staticmethod
    def words(texts: Iterable[str]) -> "Vocabulary":
        """One token a word, split at white space, numbered in order of appearance."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        seen = dict.fromkeys(word for text in texts for word in text.split())
        tokenizer = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(["<unknown>", *seen])}, unk_token="<unknown>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return Vocabulary(tokenizer)

    def __len__(self) -> int:
        fast = not hasattr(self.tokenizer, "get_vocab_size")
        return len(self.tokenizer) if fast else self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> Int64[np.ndarray, " s"]:
        out = self.tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(out.ids if hasattr(out, "ids") else out, np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.tokenizer.decode([int(i) for i in ids])

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text that each token adds, so that they join to the whole: a letter of several tokens stands at
        the last of them."""
        out, done = [], ""
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[:end])
            whole = text.rstrip("\ufffd") if end < len(ids) else text
            out.append(whole[len(done) :])
            done = whole if len(whole) > len(done) else done
        return out

    def to_json(self) -> str:
        """The tokenizer as one string; `Vocabulary.from_json` reads it. Only for those trained here."""
        return self.tokenizer.to_str()

    @staticmethod
    def from_json(text: str) -> "Vocabulary":
        from tokenizers import Tokenizer

        return Vocabulary(Tokenizer.from_str(text))
