"""`whence decomp export`: a dictionary for another tool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._decomp_source import Folder, open_dictionary, read_source
from ._shared import Printed


@dataclass(frozen=True)
class Export(Printed):
    """Write a dictionary for another tool.

    saelens: a matching_pursuit SAE with mirrored atoms, whose codes are equal up to rounding. sparsify: its
    encoder takes all latents at once, so the codes differ unless k is 1; --one-shot writes it nevertheless.

    Example:

        whence decomp export out/dictionary --out out/saelens --model-name pythia-70m
    """

    dictionary: Folder
    """A dictionary's folder."""
    out: Path = Path("out/export")
    """The folder to write."""
    to: Literal["saelens", "sparsify"] = "saelens"
    """Which layout."""
    model_name: str = ""
    """The model's name as the other tool knows it; by default what `decomp build` was given."""
    one_shot: bool = False
    """sparsify: write it although codes differ."""

    def run(self) -> None:
        from whence.decomp.interop import saelens, sparsify

        dictionary = open_dictionary(self.dictionary)
        if self.to == "saelens":
            source = read_source(self.dictionary)
            about = {"context_size": "context_size", "dataset_path": "data", "hf_hook_name": "own_hook_name"}
            known = {name: source.get(field) for name, field in about.items()}
            name = self.model_name or source.get("model", "")
            path = saelens.save(dictionary, self.out, model_name=name, metadata={**known, "source": source})
        else:
            path = sparsify.save(dictionary, self.out, one_shot=self.one_shot)
        facts = {"folder": str(path), "files": sorted(p.name for p in path.iterdir())}
        self.show(facts, f"{path}: {', '.join(facts['files'])}")
