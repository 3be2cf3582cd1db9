"""`whence decomp compare` and `match`: two dictionaries, and the layers of several models."""

from dataclasses import dataclass

from whence.options import Count

from ._decomp_source import ActivationOptions, Folder, figure_rows, figures, open_dictionary, table_text
from ._shared import Tabled


@dataclass(frozen=True)
class Compare(Tabled):
    """Compare dictionaries by the sources of their atoms; with --diff, list what changed.

    The Jaccard index is given beside the values that sizes alone and chance would give, with and without the seeds.

    Example:

        whence decomp compare out/before out/after --diff
    """

    one: Folder
    """A dictionary's folder."""
    other: Folder
    """The folder of the dictionary to compare with."""
    diff: bool = False
    """List the atoms that were removed, added and moved, with their source text."""
    limit: int = 20
    """Atoms listed of each kind."""

    def run(self) -> None:
        from whence.decomp import compare
        from whence.decomp.diff import difference

        one, other = open_dictionary(self.one), open_dictionary(self.other)
        found = compare(one, other)
        facts, lines = {**figures(found), **found.attrs}, [table_text(found)]
        if not self.diff:
            self.show_table(facts, lines[0], figure_rows(found))
            return
        changes = difference(one, other)
        for status in ("removed", "added", "moved"):
            atoms = [n for n in range(changes.sizes["atom"]) if changes.status.values[n] == status]
            lines.append(f"\n{status}: {len(atoms)}")
            for n in atoms[: self.limit]:
                row = changes.isel(atom=n)
                text = f"{row.before.item()}[{row.token.item()}]{row.after.item()}".replace("\n", "⏎")
                lines.append(f"  {int(row.document)}:{int(row.position):<5} nearest {float(row.nearest):.2f}  {text}")
        columns = {str(name): changes[name].values.tolist() for name in changes}
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        self.show_table({"changes": columns, **facts}, "\n".join(lines), rows)


@dataclass(frozen=True)
class Match(ActivationOptions, Tabled):
    """Match the layers of several models, by every measure and with controls; or follow one over its checkpoints.

    Each layer is matched to the most similar layer of another model. The result is over pairs of different models; a
    model with itself is the control; then comes the similarity of whole models, by the atoms of all layers. With
    --checkpoints the models are stages of one training, in order.

    Example:

        whence decomp match --models demo demo --at blocks.0.hook_out blocks.1.hook_out --rows 4000
    """

    models: tuple[str, ...]
    """Models that read the same tokens: demo, biographies, hub names, or folders with models."""
    at: tuple[str, ...] = ("blocks.0.hook_out", "blocks.1.hook_out", "blocks.2.hook_out", "blocks.3.hook_out")
    """The layers, in order."""
    checkpoints: bool = False
    """The models are checkpoints of one training."""
    rows: Count = 12000
    """Activations of each layer that are used."""
    k: Count = 8
    """Pursuit steps."""
    unexplained: float = 0.2
    """Threshold of the dictionaries."""

    def run(self) -> None:
        import numpy as np

        from whence.decomp import ITDA, layers

        builder, models = ITDA(k=self.k, unexplained=self.unexplained), []
        for name in self.models:
            activations = self.observed(name).activations(self.at)
            cut = {site: acts.select(np.arange(min(self.rows, len(acts)))) for site, acts in activations.items()}
            models.append([layers.Layer(acts, builder.build(acts)) for acts in cut.values()])
        dictionaries = [[layer.dictionary for layer in model] for model in models]
        if self.checkpoints:
            stages = {n: dict(zip(self.at, model)) for n, model in enumerate(dictionaries)}
            curves = layers.convergence(stages)
            rows = curves.to_dataframe().reset_index().to_dict("records")
            self.show_table(curves.to_dict(), curves.to_dataframe().round(3).to_string(), rows)
            return
        found = layers.match_layers(models)
        alike = layers.model_similarity(
            {f"{n}: {name}": d for n, (name, d) in enumerate(zip(self.models, dictionaries))}
        )
        text = (
            f"{found.attrs['trials']} trials between different models, chance {found.attrs['chance']:.2f}\n"
            f"{found.drop_dims('pair').to_dataframe().round(3).to_string()}\n"
            f"\nall layers of a model together, without seeds\n{alike.to_dataframe().round(3).to_string()}"
        )
        rows = found.drop_dims("pair").to_dataframe().reset_index().to_dict("records")
        self.show_table(found.merge(alike).to_dict(), text, rows)
