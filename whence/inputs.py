"""What `--model` and `--data` mean on the command line.

--model   demo | biographies | the name of a hub model | a folder with a model saved by transformers
--data    language-reference | biographies | digits | a .txt, .jsonl or .parquet file | the name of a hub data set

Hub models are loaded as TransformerLens bridges where that library knows their architecture, else by
transformers. Weights are read from safetensors, or from torch files with nothing but tensors in them.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from whence.cache import ModelError, Store, UsageError

from .corpora import (
    Corpus,
    Vocabulary,
    biographies,
    biographies_model,
    digits,
    language_reference,
    load,
    reference_model,
)

MODELS = ("demo", "biographies")
CORPORA: dict[str, Callable[[], Corpus]] = {
    "language-reference": language_reference,
    "biographies": biographies,
    "digits": digits,
}


def load_model(name: str, store: Store | None = None, quiet: bool = False) -> tuple[nn.Module, Vocabulary | None]:
    """A model in evaluation mode and the vocabulary it reads; the embedded ones are trained on first use.

    Raises ModelError when it cannot be loaded.
    """
    if name == "demo":
        return reference_model(store, quiet=quiet), language_reference().vocabulary
    if name == "biographies":
        return biographies_model(store, quiet=quiet), biographies().vocabulary
    if Path(name).suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ModelError(
            f"{name} holds weights without a model.", "Give a folder written by save_pretrained, or a hub name."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        words = Vocabulary(AutoTokenizer.from_pretrained(name))
        return _bridge(name) or AutoModelForCausalLM.from_pretrained(name, weights_only=True).eval(), words
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {name!r} could not be loaded: {error}",
            f"Give {', '.join(MODELS)}, a folder written by save_pretrained, or a hub name where there is a network.",
        ) from error


def load_data(name: str, vocabulary: Vocabulary | None = None, *, length: int = 128) -> Corpus:
    """A corpus by name or path, in the vocabulary of the model that is to read it.

    Raises UsageError when an embedded corpus of text is asked for in another model's vocabulary; DataError when
    a file or data set cannot be read.
    """
    if name not in CORPORA:
        return load(name, vocabulary, length=length)
    corpus = CORPORA[name]()
    if vocabulary is not None and corpus.vocabulary is not None and vocabulary is not corpus.vocabulary:
        return rewritten(corpus, vocabulary, length)
    return corpus


def rewritten(corpus: Corpus, vocabulary: Vocabulary, length: int) -> Corpus:
    """A corpus of text in another vocabulary, ids and titles kept, passages cut at `length` tokens."""
    from .corpora.corpus import query_examples, ragged

    train, queries = corpus.train, corpus.queries
    if len(vocabulary) < 1:
        raise UsageError("The vocabulary is empty.", "Give the tokenizer that the model was trained with.")
    tokens = [vocabulary.encode(text)[:length] for text in train.about["text"]]
    asked = query_examples(queries.about["prompt"], queries.about["completion"], vocabulary)
    return Corpus(corpus.name, type(train)(ragged(tokens), train.ids, train.about), asked, vocabulary)


def _bridge(name: str) -> nn.Module | None:
    """The model as a TransformerLens bridge, None where that library does not know its architecture."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(name).eval()
    except (ValueError, KeyError, NotImplementedError):
        return None
