"""`whence decomp report`, `steer` and `edit`: inspect, try and change the atoms of a dictionary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from whence.cache.errors import UsageError
from whence.options import Count, Page, Signed

from ._decomp_source import Folder, Source, at_site, open_dictionary, read_source
from ._shared import Printed, Tabled


@dataclass(frozen=True)
class Report(Source, Printed):
    """Write a dictionary's feature page: one HTML file with every atom's source, contexts and neighbours.

    Example:

        whence decomp report out/dictionary --out out/features.html
    """

    dictionary: Folder
    """A dictionary's folder."""
    at: str = ""
    """The hook point, if the folder does not name it."""
    out: Page = Path("out/features.html")
    """The file to write."""
    title: str | None = None
    """Heading of the page."""
    top: int = 8
    """Contexts shown of each atom."""

    def run(self) -> None:
        from whence.cache.display import write_page
        from whence.decomp import features, page

        dictionary = at_site(open_dictionary(self.dictionary), self.dictionary, self.at)
        loaded = self.load_for(self.dictionary)
        site = dictionary.origin.site
        found = features(dictionary, loaded.activations([site])[site], self.top, quiet=self.quiet)
        contexts = found.contexts(loaded.corpus.train, **loaded.tokens)
        title = self.title or f"Atoms of {site}"
        html = page(dictionary, found, contexts, title, names=loaded.titled.documents)
        path = write_page(html, self.out)
        facts = {"file": str(path), "bytes": path.stat().st_size, "atoms": len(dictionary)}
        self.show(facts, f"{len(dictionary)} atoms: {path}")


@dataclass(frozen=True)
class Steer(Source, Tabled):
    """Continue a prompt with an atom added to the model's activations, or removed from them.

    Example:

        whence decomp steer out/dictionary --atom 12 --strength 6 --prompt "The yield statement"
    """

    kept = ""
    dictionary: Folder
    """A dictionary's folder."""
    prompt: str
    """The text to continue."""
    at: str = ""
    """The hook point, if the folder does not name it."""
    atom: int = 0
    """Which atom."""
    strength: Annotated[float, Signed] = 6.0
    """How much of it is added; 0 removes the atom from the activation's code instead."""
    tokens: Count = 24
    """Tokens to generate."""

    def run(self) -> None:
        from whence.decomp import spliced
        from whence.decomp.splice import steered, without_atoms
        from whence.language_model import continuation

        dictionary = at_site(open_dictionary(self.dictionary), self.dictionary, self.at)
        loaded = self.load_for(self.dictionary)
        if not 0 <= self.atom < len(dictionary):
            raise UsageError(f"There is no atom {self.atom}.", f"Choose one from 0 to {len(dictionary) - 1}.")
        change = (
            steered(dictionary, self.atom, self.strength) if self.strength else without_atoms(dictionary, [self.atom])
        )
        words, model = loaded.corpus.vocabulary, loaded.trained.model
        if words is None or not loaded.corpus.worded:
            raise UsageError("This model continues no text.", "Steer a causal language model.")
        before = continuation(model, words, self.prompt, self.tokens, stop=())
        with spliced(loaded.trained, dictionary.origin.site, change):
            after = continuation(model, words, self.prompt, self.tokens, stop=())
        facts = {"prompt": self.prompt, "before": before, "after": after, "atom": self.atom, "strength": self.strength}
        self.show_table(facts, f"before: {before!r}\nafter:  {after!r}", [facts])


@dataclass(frozen=True)
class Edit(Source, Printed):
    """Edit a dictionary: remove the atoms that came from some documents, or add those of another dictionary.

    Every other atom stays the same bit for bit, and the manifest's log lists the edits. `compare --diff` and the
    feature page show the documents. The data are read only if a document is no id of an example (but of a text that
    was cut into pieces).

    Example:

        whence decomp edit out/dictionary --delete-documents 286934736 --out out/edited
    """

    dictionary: Folder
    """A dictionary's folder."""
    delete_documents: tuple[str, ...] = ()
    """Documents whose atoms are removed: ids, numbers or texts as in the data."""
    merge: tuple[Path, ...] = ()
    """Folders of dictionaries whose atoms are added, unless they are there already."""
    out: Path = Path("out/edited")
    """The folder to write."""

    def run(self) -> None:
        from whence.decomp import save

        twice = [n for n in self.delete_documents if self.delete_documents.count(n) > 1]
        if twice:
            raise UsageError(f"The document {twice[0]} is named twice.", "Name every document once.")
        if not self.delete_documents and not self.merge:
            raise UsageError("Nothing to change.", "Give --delete-documents, --merge, or both.")
        edited = open_dictionary(self.dictionary)
        known = len(edited.log)
        for folder in self.merge:
            edited = edited.merge(open_dictionary(folder))
        if self.delete_documents:
            edited = edited.delete_documents(self._ids(set(edited.provenance.document.tolist())))
        path, done = save(edited, self.out), [dict(note) for note in edited.log[known:]]
        notes = [", ".join(f"{name} {value}" for name, value in note.items()) for note in done]
        facts = {"folder": str(path), "atoms": len(edited), "log": done}
        self.show(facts, "\n".join([*notes, f"{len(edited)} atoms: {path}"]))

    def _ids(self, there: set[int]) -> list[int]:
        """The ids of the examples of the documents. Raises UsageError if no atom is of one of them.

        Args:
            there: the examples that atoms are of.
        """
        from whence.cache.model.ids import as_ids

        ids = as_ids(list(self.delete_documents)).tolist()
        left = {name for name, identity in zip(self.delete_documents, ids) if identity not in there}
        if left and read_source(self.dictionary):
            ids += [i for i, name in self.load_for(self.dictionary).titled.documents.items() if name in left]
        if not there.intersection(ids):
            listed = ", ".join(self.delete_documents)
            raise UsageError(
                f"No atom comes from document {listed}.",
                "The feature page and `whence decomp compare --diff` show the documents of atoms.",
            )
        return ids
