"""`whence decomp report`, `steer` and `edit`: a dictionary's atoms looked at, tried and changed."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path

from whence.cache.errors import UsageError

from ._decomp_source import Folder, Source, at_site, open_dictionary


@dataclass(frozen=True)
class Report(Source):
    """Write a dictionary's feature page: one HTML file with every atom's source, contexts and neighbours.

    Example:

        whence decomp report out/dictionary --out out/features.html
    """

    dictionary: Folder
    """A dictionary's folder."""
    at: str = ""
    """The hook point, for a folder that does not name it."""
    out: Path = Path("out/features.html")
    """The file to write."""
    title: str | None = None
    """Heading of the page."""
    top: int = 8
    """Contexts shown of each atom."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.cache.display import write_page
        from whence.decomp.features import features, top_contexts
        from whence.decomp.pages import page

        dictionary = at_site(open_dictionary(self.dictionary), self.dictionary, self.at)
        loaded = self.load()
        site = dictionary.origin.site
        found = features(dictionary, loaded.activations([site])[site], self.top, quiet=self.quiet)
        contexts = top_contexts(found, loaded.corpus.train, loaded.decode)
        path = write_page(page(dictionary, found, contexts, self.title or f"Atoms of {site}"), self.out)
        facts = {"file": str(path), "bytes": path.stat().st_size, "atoms": len(dictionary)}
        print(json_module.dumps(facts) if self.json else f"{len(dictionary)} atoms: {path}")


@dataclass(frozen=True)
class Steer(Source):
    """Continue a prompt with an atom added to the model's activations, or taken out of them.

    Example:

        whence decomp steer out/dictionary --atom 12 --strength 6 --prompt "The yield statement"
    """

    dictionary: Folder
    """A dictionary's folder."""
    prompt: str
    """What to continue."""
    at: str = ""
    """The hook point, for a folder that does not name it."""
    atom: int = 0
    """Which atom."""
    strength: float = 6.0
    """How much of it is added; 0 takes the atom out of the activation's code instead."""
    tokens: int = 24
    """Tokens to write."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.decomp import spliced
        from whence.decomp.splice import steered, without_atoms
        from whence.language_model import continuation

        dictionary = at_site(open_dictionary(self.dictionary), self.dictionary, self.at)
        loaded = self.load()
        if not 0 <= self.atom < len(dictionary):
            raise UsageError(f"There is no atom {self.atom}.", f"Choose one from 0 to {len(dictionary) - 1}.")
        change = (
            steered(dictionary, self.atom, self.strength) if self.strength else without_atoms(dictionary, [self.atom])
        )
        words = loaded.corpus.vocabulary
        before = continuation(loaded.model, words, self.prompt, self.tokens, stop=())
        with spliced(loaded.model, dictionary.origin.site, change):
            after = continuation(loaded.model, words, self.prompt, self.tokens, stop=())
        facts = {"prompt": self.prompt, "before": before, "after": after, "atom": self.atom, "strength": self.strength}
        print(json_module.dumps(facts, indent=1) if self.json else f"before: {before!r}\nafter:  {after!r}")


@dataclass(frozen=True)
class Edit:
    """Change a dictionary that stands: take out every atom that came from some documents, put in another's atoms.

    The atoms that stay are the same bit for bit, and the manifest's log says what was done. Document numbers are
    those that `compare --diff` and the feature page show.

    Example:

        whence decomp edit out/dictionary --delete-documents 286934736 --out out/edited
    """

    dictionary: Folder
    """A dictionary's folder."""
    delete_documents: tuple[int, ...] = ()
    """Documents whose atoms are taken out."""
    merge: tuple[Path, ...] = ()
    """Folders of dictionaries whose atoms are put in, less those that are there already."""
    out: Path = Path("out/edited")
    """The folder to write."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.decomp import delete_documents, merge, save

        if not self.delete_documents and not self.merge:
            raise UsageError("Nothing to change.", "Give --delete-documents, --merge, or both.")
        edited = open_dictionary(self.dictionary)
        known = len(edited.log)
        for folder in self.merge:
            edited = merge(edited, open_dictionary(folder))
        if self.delete_documents:
            if not set(self.delete_documents) & set(edited.provenance.document.tolist()):
                listed = ", ".join(map(str, self.delete_documents))
                raise UsageError(
                    f"No atom comes from document {listed}.",
                    "The feature page and `whence decomp compare --diff` show the documents of atoms.",
                )
            edited = delete_documents(edited, self.delete_documents)
        path, done = save(edited, self.out), [dict(note) for note in edited.log[known:]]
        if self.json:
            print(json_module.dumps({"folder": str(path), "atoms": len(edited), "log": done}, indent=1))
            return
        for note in done:
            print(", ".join(f"{name} {value}" for name, value in note.items()))
        print(f"{len(edited)} atoms: {path}")
