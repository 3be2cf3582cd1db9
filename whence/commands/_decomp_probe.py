"""`whence decomp probe`: how well a few atoms tell two classes of documents apart."""

import csv
import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whence.cache.errors import UsageError
from whence.options import Count, Share

from ._decomp_source import Folder, Source, at_site, figure_rows, figures, open_codec, table_text
from ._shared import Tabled

if TYPE_CHECKING:
    from whence.cache import Examples


@dataclass(frozen=True, kw_only=True)
class Probe(Source, Tabled):
    """Measure how well a few atoms separate two classes of documents: accuracy of a sparse logistic regression.

    Held-out documents are classified from the best atoms, and from the whole activation; the share of the larger class
    is given beside them. Intervals are 95 %.

    Example:

        whence decomp build --out out/dictionary
        whence decomp probe out/dictionary --classes compound types --column topic --atoms 1 5
    """

    dictionary: Folder
    """Folder of a dictionary, or of an autoencoder of SAELens or sparsify."""
    labels: Path | None = None
    """The class of each labelled document: .json as {id: class}, or .csv with the columns id and class."""
    classes: tuple[str, ...] = ()
    """Instead of --labels: two values of --column, each a class."""
    column: str = "topic"
    """The property of the documents that --classes names values of."""
    at: str = ""
    """The hook point, if the folder does not name it."""
    atoms: tuple[Count, ...] = (1, 5)
    """Numbers of atoms to probe with."""
    k: Count | None = None
    """Steps; the dictionary's own by default."""
    held_out: Share = 0.5
    """Share of the labelled documents that accuracy is measured on."""

    def run(self) -> None:
        from whence.decomp.probing import probe_documents

        if (self.labels is None) == (not self.classes):
            raise UsageError("A probe needs the classes of documents.", "Give either --labels FILE or --classes A B.")
        codec = at_site(open_codec(self.dictionary), self.dictionary, self.at)
        site = codec.origin.site
        loaded = self.load_for(self.dictionary)
        labels = labels_of(loaded.train, self.column, self.classes) if self.labels is None else read_labels(self.labels)
        activations = loaded.activations([site])[site]
        codec.origin.check_same(activations.origin)
        found = probe_documents(codec, activations, labels, self.atoms, self.k, self.held_out)
        self.show_table({**figures(found), **found.attrs}, table_text(found), figure_rows(found))


def labels_of(examples: "Examples", column: str, classes: Sequence[str]) -> dict[int, str]:
    """id -> class of the examples whose column is one of the classes. Raises UsageError for an unknown column."""
    if column not in examples.about:
        raise UsageError(f"The documents have no {column!r}.", f"Choose one of {', '.join(examples.about)}.")
    values = map(str, examples.about[column])
    return {int(i): value for i, value in zip(examples.ids, values) if value in classes}


def read_labels(path: Path) -> dict[int, str]:
    """id -> class of a .json or .csv file. Raises UsageError for a file of another form."""
    try:
        if path.suffix == ".json":
            return {int(i): str(label) for i, label in json_module.loads(path.read_text("utf-8")).items()}
        with path.open(newline="", encoding="utf-8") as file:
            return {int(row["id"]): str(row["class"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).", "Give a .json or .csv file.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} holds no labels: {error!r}.",
            'Write {"id": "class"} as .json, or a .csv with the columns id,class.',
        ) from error
