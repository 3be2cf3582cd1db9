"""Models and data by name, as `--model` and `--data` of the command line.

--model   demo | biographies | a folder with a model saved by transformers, or with adapters (PEFT) | a .gguf file |
          the name of a hub model
--data    language-reference | biographies | digits | a .txt, .md, .jsonl, .csv or .parquet file | a folder of
          such files | a folder of images | the name of a hub data set
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from whence.cache import ModelError, Store, UsageError
from whence.cache.jobs.progress import say

from .corpora import (
    Corpus,
    ImageReader,
    Vocabulary,
    biographies,
    biographies_model,
    digits,
    language_reference,
    load,
    reference_model,
)
from .corpora.sources import masked
from .options import Loading as Loading
from .pretrained import image_reader as image_reader
from .pretrained import pretrained

LENGTH = 128  # tokens at which texts are cut by default
CORPORA: dict[str, Callable[[], Corpus]] = {
    "language-reference": language_reference,
    "biographies": biographies,
    "digits": digits,
}


def load_model(
    name: str, store: Store | None = None, quiet: bool = False, *, loading: Loading | None = None
) -> tuple[nn.Module, Vocabulary | None]:
    """A model in evaluation mode and its vocabulary (None of an image classifier: `image_reader` says how that reads
    images); the embedded models are trained on first use.

    Args:
        name: demo, biographies, a folder, a .gguf file, or a hub name.
        store: where embedded models are kept once they are trained.
        quiet: show no progress bars.
        loading: type, device, revision, adapters' base, and what of others' code may run (`whence.options.Loading`).

    Raises ModelError when it cannot be loaded.
    """
    if name == "demo":
        return reference_model(store, quiet=quiet), language_reference().vocabulary
    if name == "biographies":
        return biographies_model(store, quiet=quiet), biographies().vocabulary
    if Path(name).suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ModelError(
            f"{name} is a file of weights: it does not say which model they belong to.",
            "Load them into their model in Python, write model.save_pretrained(FOLDER), and give the folder.",
        )
    return pretrained(name, loading, quiet=quiet)


def load_data(
    name: str,
    vocabulary: Vocabulary | ImageReader | None = None,
    *,
    length: int | None = None,
    context: int | None = None,
    columns: Mapping[str, str] | None = None,
    form: str = "text",
    end: int | None = None,
) -> Corpus:
    """A corpus by name or path, in the vocabulary of a model, or as an image classifier reads it.

    Args:
        name: an embedded corpus, a file, a folder, or a hub data set.
        vocabulary: by default the corpus's own.
        length: tokens at which texts are cut; 128 by default, fewer if the model reads fewer.
        context: the most tokens that the model reads, if known.
        columns: names of the data's columns by the names used here, as for `corpora.load`.
        form: of the model that reads them, likewise (`pretrained.form_of`).
        end: token that ends documents, of a file of tokens.

    Raises UsageError for an empty vocabulary or a length that the model cannot read, DataError when a file or data set
    cannot be read.
    """
    if length is not None and context is not None and length > context:
        raise UsageError(
            f"The model reads at most {context} tokens, not {length}.", f"Give --length {context} or less."
        )
    most = longest(length, context)
    if context is not None and context < LENGTH and length is None:
        say(f"The model reads at most {context} tokens: longer texts are cut there.")
    if name not in CORPORA:
        return load(name, vocabulary, length=most, columns=columns, form=form, end=end)
    if columns:
        raise UsageError(f"{name} is embedded: its columns have their names.", "Leave the names of columns out.")
    corpus = CORPORA[name]()
    if isinstance(vocabulary, ImageReader) or form in ("pairs", "classes"):
        raise UsageError(f"{name} is for language models.", "Give --data with what this model was trained on.")
    if corpus.vocabulary is None or vocabulary is None:
        return corpus
    if vocabulary is not corpus.vocabulary or corpus.train.lengths.max() > most:
        corpus = rewritten(corpus, vocabulary, most)
    return masked(corpus) if form == "masked" else corpus


def longest(length: int | None, context: int | None) -> int:
    """Most tokens of an example: as given, else 128, or fewer if the model reads fewer."""
    return length or min(LENGTH, context or LENGTH)


def rewritten(corpus: Corpus, vocabulary: Vocabulary, length: int) -> Corpus:
    """A corpus of text in another vocabulary, ids and titles kept, passages cut at `length` tokens."""
    from .corpora.corpus import query_examples, ragged

    train, queries = corpus.train, corpus.queries
    if len(vocabulary) < 1:
        raise UsageError("The vocabulary is empty.", "Give the tokenizer that the model was trained with.")
    tokens = [vocabulary.encode(text) for text in train.about["text"]]
    cut = sum(len(ids) > length for ids in tokens)
    if cut:
        say(f"{corpus.name}: {cut} of {len(train)} passages are longer than {length} tokens; their ends are left out.")
    tokens = [ids[:length] for ids in tokens]
    about = {
        name: queries.about[name] for name in queries.about if name not in ("title", "text", "prompt", "completion")
    }
    translated = query_examples(queries.about["prompt"], queries.about["completion"], vocabulary, **about)
    return Corpus(corpus.name, type(train)(ragged(tokens), train.ids, train.about), translated, vocabulary)
