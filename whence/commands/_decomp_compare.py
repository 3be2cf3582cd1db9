"""`whence decomp compare` and `match`: two dictionaries, and the layers of several models."""

import json as json_module
from dataclasses import dataclass

from ._decomp_source import Folder, Reading, open_dictionary, show


@dataclass(frozen=True)
class Compare:
    """Compare dictionaries by the places that their atoms came from; with --diff, list what changed.

    The Jaccard index stands beside what sizes alone and chance would give, with and without the seeds.

    Example:

        whence decomp compare out/before out/after --diff
    """

    one: Folder
    """A dictionary's folder."""
    other: Folder
    """Another's."""
    diff: bool = False
    """List the atoms that were removed, added and moved, with their source text."""
    limit: int = 20
    """Atoms listed of each kind."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.decomp import compare
        from whence.decomp.diff import difference

        one, other = open_dictionary(self.one), open_dictionary(self.other)
        found = compare(one, other)
        if not self.diff:
            show(found, self.json)
            return
        changes = difference(one, other)
        if self.json:
            columns = {str(name): changes[name].values.tolist() for name in changes}
            show(found, True, changes=columns)
            return
        show(found, False)
        for status in ("removed", "added", "moved"):
            rows = [n for n in range(changes.sizes["atom"]) if changes.status.values[n] == status]
            print(f"\n{status}: {len(rows)}")
            for n in rows[: self.limit]:
                row = changes.isel(atom=n)
                text = f"{row.before.item()}[{row.token.item()}]{row.after.item()}".replace("\n", "⏎")
                print(f"  {int(row.document)}:{int(row.position):<5} nearest {float(row.nearest):.2f}  {text}")


@dataclass(frozen=True)
class Match(Reading):
    """Match the layers of several models, by every measure and with controls; or follow one over its checkpoints.

    A layer is matched to the most similar layer of another model. Pairs of different models are the result; a model
    with itself stands beside it; then how alike whole models are, by all their layers' atoms. With --checkpoints the
    models are stages of one training, the last one last.

    Example:

        whence decomp match --models demo demo --at blocks.0.hook_out blocks.1.hook_out --rows 4000
    """

    models: tuple[str, ...]
    """Models that read the same tokens: demo, biographies, hub names, or folders with models."""
    at: tuple[str, ...] = ("blocks.0.hook_out", "blocks.1.hook_out", "blocks.2.hook_out", "blocks.3.hook_out")
    """The layers, in order."""
    checkpoints: bool = False
    """The models are checkpoints of one training."""
    rows: int = 12000
    """Activations of each layer that are used."""
    k: int = 8
    """Pursuit steps."""
    unexplained: float = 0.2
    """Threshold of the dictionaries."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        import numpy as np

        from whence.decomp import ITDA, layers

        builder, models = ITDA(k=self.k, unexplained=self.unexplained), []
        for name in self.models:
            activations = self.with_model(name).activations(self.at)
            cut = {site: acts.select(np.arange(min(self.rows, len(acts)))) for site, acts in activations.items()}
            models.append([layers.Layer(acts, builder.build(acts)) for acts in cut.values()])
        dictionaries = [[layer.dictionary for layer in model] for model in models]
        if self.checkpoints:
            stages = {n: dict(zip(self.at, model)) for n, model in enumerate(dictionaries)}
            curves = layers.convergence(stages)
            frame = curves.to_dataframe().round(3).to_string()
            print(json_module.dumps(curves.to_dict(), indent=1) if self.json else frame)
            return
        found = layers.match_layers(models)
        alike = layers.model_similarity(
            {f"{n}: {name}": d for n, (name, d) in enumerate(zip(self.models, dictionaries))}
        )
        if self.json:
            print(json_module.dumps(found.merge(alike).to_dict(), indent=1))
            return
        print(f"{found.attrs['trials']} trials between different models, chance {found.attrs['chance']:.2f}")
        print(found.drop_dims("pair").to_dataframe().round(3).to_string())
        print("\nall layers of a model together, without seeds")
        print(alike.to_dataframe().round(3).to_string())
