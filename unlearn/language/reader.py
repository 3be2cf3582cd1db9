"""A language model as it is read here: log-probabilities of given tokens, and greedy continuations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from whence.cache import DataError, Examples, LanguageModelling, Task
from whence.cache.jobs.progress import progress
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy
from whence.cache.tasks import prompted
from whence.cache.tasks.text import encoded

from .teacher_forcing import predicted_tokens


class Scored(NamedTuple):
    """The predicted tokens of one text: log-probability in nats, whether it is the likeliest, and mean and variance of
    the log-probability over the vocabulary under the model."""

    logprobs: Float[np.ndarray, " t"]
    best: Bool[np.ndarray, " t"]
    mean: Float[np.ndarray, " t"]
    variance: Float[np.ndarray, " t"]

    @property
    def loss(self) -> float:
        """Mean over tokens of the negative log-probability."""
        return float(-self.logprobs.mean())


@dataclass(frozen=True, eq=False)
class Reader:
    """A model with its tokenizer. The model is borrowed: it comes back in the mode it was in.

    model: a causal language model. tokenizer: of transformers or tokenizers, or a `Vocabulary`. context: the most
    tokens that the model reads. length: tokens at which texts are cut. positions: in a batch.
    """

    model: nn.Module
    tokenizer: Any
    context: int | None = None
    length: int | None = None
    positions: int = 1024
    quiet: bool = True

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def answers(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Scored]:
        """The tokens of each completion after its prompt. Raises DataError where one has no token, or if both exceed
        the context."""
        return self._scored(prompted(prompts, completions, self.tokenizer))

    def texts(self, texts: Sequence[str]) -> list[Scored]:
        """The tokens of each text but its first, cut at `length` tokens (else at the context). Raises DataError for a
        text of fewer than two tokens."""
        most = self.length or self.context
        ids = [self.tokens(text)[:most] for text in texts]
        short = next((text for text, own in zip(texts, ids) if len(own) < 2), None)
        if short is not None:
            raise DataError(
                f"The text {short!r} has fewer than two tokens.", "Leave it out: nothing is predicted in it."
            )
        return self._scored(Examples({"input_ids": ids}, np.arange(len(ids), dtype=np.int64)))

    def _scored(self, examples: Examples) -> list[Scored]:
        if self.context is not None and examples.lengths.max() > self.context:
            raise DataError(
                f"A text has {int(examples.lengths.max())} tokens; the model reads at most {self.context}.",
                "Shorten the prompts and answers, or cut texts with `length`.",
            )
        return predicted_tokens(self.model, examples, _scores, positions=self.positions, quiet=self.quiet)

    def tokens(self, text: str) -> np.ndarray:
        """The tokens of a text, without those that a tokenizer adds."""
        return encoded(self.tokenizer, text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of tokens, without special ones."""
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode(
            [int(i) for i in ids], skip_special_tokens=True
        )

    def continuations(
        self,
        prompts: Sequence[str],
        tokens: int,
        stop: Sequence[str] = (),
        most: Sequence[int] | None = None,
    ) -> list[str]:
        """Greedy continuations of up to `tokens` tokens, fewer at the model's context or its end token.

        Args:
            prompts: texts to continue.
            tokens: written at most.
            stop: a continuation is cut before the first of these.
            most: tokens of each that are kept at most.
        """
        ids = [self.tokens(prompt) for prompt in prompts]
        tokens = min(tokens, max(most, default=tokens)) if most is not None else tokens
        out: list[list[int]] = [[] for _ in ids]
        inner = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        end, lengths = getattr(inner, "eos_token_id", None), np.array([len(own) for own in ids])
        with borrowed(self.model), torch.no_grad():
            for length in progress(sorted(set(lengths.tolist())), desc="writing", unit="length", quiet=self.quiet):
                steps = tokens if self.context is None else min(tokens, self.context - length)
                rows = np.flatnonzero(lengths == length)
                size = max(1, self.positions // max(1, length + steps))
                for start in range(0, len(rows), size):
                    here = rows[start : start + size]
                    text = torch.as_tensor(np.stack([ids[row] for row in here]), device=self.device)
                    for row, line in zip(here, self._greedy(text, steps, end)):
                        out[row] = line[: line.index(end)] if end in line else line
        kept = out if most is None else [own[:size] for own, size in zip(out, most)]
        return [_before(self.decode(own), stop) for own in kept]

    def _greedy(self, text: Tensor, steps: int, end: int | None) -> list[list[int]]:
        """Up to `steps` tokens after each text, fewer once all have ended."""
        done, found = torch.zeros(len(text), dtype=torch.bool, device=text.device), [text[:, :0]]
        for following in islice(greedy(LanguageModelling(), self.model, text), steps):
            stop_if_signalled()
            found.append(following)
            done |= following[:, 0] == (-1 if end is None else end)
            if done.all():
                break
        return torch.cat(found, 1).tolist()


def greedy(task: Task, model: nn.Module, text: Int[Tensor, "b s"]) -> Iterator[Int[Tensor, "b 1"]]:
    """The likeliest next token of each text, then the next after that, without end."""
    while True:
        following = task.logits(model, {"input_ids": text})[:, -1].argmax(-1, keepdim=True)
        yield following
        text = torch.cat([text, following], 1)


def _scores(logits: Tensor, targets: Tensor) -> Scored:
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    finite = torch.where(p > 0, logp, 0)  # a token that is ruled out adds nothing
    mean = (p * finite).sum(-1)
    variance = (p * finite**2).sum(-1) - mean**2
    chosen = logp.gather(-1, targets[:, None])[:, 0]
    return Scored(to_numpy(chosen), to_numpy(logits.argmax(-1) == targets), to_numpy(mean), to_numpy(variance))


def _before(text: str, stop: Sequence[str]) -> str:
    for mark in stop:
        text = text.split(mark)[0]
    return text.strip()
