"""What activations are made of: dictionaries whose atoms are activations with a source in the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from whence.cache.display.files import ENDINGS, save_table
from whence.cache.errors import UsageError
from whence.options import Count

from ._decomp_atoms import Edit, Report, Steer
from ._decomp_compare import Compare, Match
from ._decomp_export import Export
from ._decomp_probe import Probe
from ._decomp_source import Folder, Source, at_site, figures, open_codec, open_dictionary, table_text
from ._shared import Printed


@dataclass(frozen=True)
class Build(Source, Printed):
    """Build a dictionary from a model's activations on data.

    itda adds an activation as an atom if the atoms so far leave more than `unexplained` of its squared norm; the other
    builders are baselines and relatives of it. A repeated request is answered from the store; an interrupted build of
    itda resumes.

    Example:

        whence decomp build --at blocks.2.hook_out --size 2048 --out out/dictionary
    """

    at: str = "blocks.2.hook_out"
    """The hook point or module."""
    out: Path = Path("out/dictionary")
    """The folder to write."""
    builder: str = "itda"
    """How: itda, calibrated, random, partition, kmeans or sae."""
    size: int | None = 2048
    """Largest number of atoms; for itda and partition 0 means no limit."""
    k: Count = 16
    """Pursuit steps."""
    unexplained: float | None = None
    """itda: the threshold. By default chosen on a part of the data so that the whole gives about `size` atoms."""
    seeding: Literal["stream", "lexicographic", "none"] = "stream"
    """itda: the first atoms; lexicographic as in the published code."""
    cosine: float = 0.5
    """partition: a new exemplar starts below this cosine."""
    batch: Count | None = None
    """itda, partition: activations compared at once; sae: activations per step. By default the builder's own."""

    def run(self) -> None:
        from whence.decomp import Dictionary, save

        loaded = self.load()
        stream, _ = loaded.split(self.at)
        skipped = {
            "skip": [list(self.skip_positions), list(self.skip_tokens)],
            "held_out": self.held_out,
        }
        builder = self._builder()
        checkpoint = self.out / "unfinished.safetensors" if builder.resumes else None
        built = builder.build(stream, store=loaded.store, selection=skipped, checkpoint=checkpoint, quiet=self.quiet)
        if isinstance(built, Dictionary) and loaded.corpus.vocabulary is not None:
            built = built.with_text(loaded.corpus.train, loaded.decode)
        folder = save(built, self.out)
        facts: dict[str, Any] = {"atoms": len(built), "folder": str(folder), "fingerprint": built.fingerprint}
        if not isinstance(built, Dictionary):
            self.show(facts, f"{built!r}: {folder}")
            return
        facts |= {name: value for name, value in built.settings.items() if name != "curve"}
        lost = facts["rows_not_finite"] + facts["rows_zero"]
        threshold = f"  threshold {facts['unexplained']:.3f}" if "unexplained" in facts else ""
        self.show(
            facts,
            f"{len(built)} atoms of width {built.width} from {facts['rows_read']} activations: {folder}\n"
            f"k={built.k}  {facts['builder']}{threshold}"
            + f"  {lost} rows left out as zero or not finite"
            * (lost > 0),
        )

    def _builder(self) -> Any:
        from dataclasses import MISSING, fields

        from whence.decomp import BUILDERS, ITDA, Calibrated

        if self.builder not in BUILDERS:
            raise UsageError(f"There is no builder {self.builder!r}.", f"Choose one of {', '.join(BUILDERS)}.")
        size, chosen = self.size or None, BUILDERS[self.builder]
        if chosen is ITDA and self.unexplained is None and size is not None:
            chosen = Calibrated
        given: dict[str, Any] = {"size": size, "k": self.k, "unexplained": self.unexplained, "seeding": self.seeding}
        given |= {"cosine": self.cosine, "batch": self.batch}
        if chosen is Calibrated:
            return Calibrated(ITDA(**{n: v for n, v in given.items() if v is not None and n != "cosine"}))
        known = {each.name: each for each in fields(chosen)}
        if size is None and known["size"].default is MISSING:
            raise UsageError(f"{self.builder} needs a size.", "Give --size.")
        return chosen(**{n: v for n, v in given.items() if n in known and (v is not None or n == "size")})


@dataclass(frozen=True)
class Encode(Source, Printed):
    """Write the sparse codes of a model's activations: atoms, coefficients and residual of every token.

    The file holds indices and values [tokens, k], residual and energy [tokens] (squared norms of the residual and of
    the activation), and document, position and token of every row.

    Example:

        whence decomp encode out/dictionary --out out/codes.safetensors
    """

    dictionary: Folder
    """A dictionary's folder."""
    at: str = ""
    """The hook point, if the folder does not name it."""
    out: Path = Path("out/codes.safetensors")
    """The file to write: .safetensors, or .csv, .parquet or .json with a row an atom of a token."""
    k: Count | None = None
    """Steps; the dictionary's own by default."""
    target: float = 0.0
    """Stop a token when at most this share of its squared norm is left."""
    pursuit: Literal["matching", "nonnegative", "refit", "orthogonal", "gradient"] | None = None
    """The encoder; the dictionary's own by default."""

    def run(self) -> None:
        import numpy as np
        import pandas
        from safetensors.numpy import save_file

        dictionary = at_site(open_dictionary(self.dictionary), self.dictionary, self.at)
        acts = self.load().activations([dictionary.origin.site])[dictionary.origin.site]
        dictionary.origin.check_same(acts.origin)
        batch = acts.whole()
        code = dictionary.encode(batch.x, self.k, self.target, self.pursuit)
        arrays = {**{n: np.asarray(a) for n, a in code._asdict().items()}, **batch._asdict()}
        del arrays["x"]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"dictionary": dictionary.fingerprint, **vars(acts.origin)}
        if self.out.suffix in ENDINGS:  # a row an atom of a token
            row, step = np.nonzero(arrays["values"])
            table = {n: a[row] for n, a in arrays.items() if a.ndim == 1}
            table |= {"atom": arrays["indices"][row, step], "value": arrays["values"][row, step]}
            save_table(self.out, pandas.DataFrame(table))
        else:
            save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, self.out, about)
        steps = float(np.count_nonzero(arrays["values"], axis=1).mean())
        share = float(code.residual.sum() / code.energy.sum())
        facts = {"file": str(self.out), "tokens": len(batch.x), "steps": steps, "unexplained": share}
        text = f"{len(batch.x)} tokens, {steps:.1f} steps each, {share:.2%} of the squared norm left: {self.out}"
        self.show(facts, text)


@dataclass(frozen=True)
class Evaluate(Source, Printed):
    """Evaluate a dictionary, or an autoencoder of SAELens or sparsify, on held-out documents and in the model.

    Metrics: fvu (about the mean), cosine error, L0, dead and rare atoms, and the share of the loss of an ablation that
    is recovered when the reconstruction replaces the activation. Intervals are 95 %, by resampling documents.
    --ks gives the metrics of the activations at several numbers of steps instead.

    Example:

        whence decomp evaluate out/dictionary
        whence decomp evaluate out/dictionary --ks 4 8 16
    """

    dictionary: Folder
    """Its folder."""
    at: str = ""
    """The hook point, if the folder does not name it."""
    k: Count | None = None
    """Steps; the dictionary's own by default."""
    ks: tuple[Count, ...] = ()
    """Numbers of steps for a sparsity curve."""
    loss: bool = True
    """Also run the model on the reconstruction; --no-loss evaluates the activations only."""

    def run(self) -> None:
        import numpy as np
        import xarray as xr

        from whence.decomp import Dictionary, evaluate, loss_recovered

        dictionary = at_site(open_codec(self.dictionary), self.dictionary, self.at)
        loaded = self.load()
        site = dictionary.origin.site
        stream, held = loaded.split(site)
        if self.ks:
            curve = evaluate(dictionary, held, self.ks)
            points = {str(k): figures(curve.sel(k=k)) for k in self.ks}
            self.show({"ks": points}, curve.value.to_pandas().round(4).to_string())
            return
        found = evaluate(dictionary, held, k=self.k)
        examples = loaded.documents_of(held)
        if self.loss:
            skip, mean = self.skip_positions, stream.whole().x.mean(axis=0)
            recovered = loss_recovered(loaded.trained, dictionary, examples, at=site, k=self.k, skip=skip, mean=mean)
            attrs = {**found.attrs, **recovered.attrs}
            found = xr.concat([found, recovered], "metric").assign_attrs(attrs)
        if isinstance(dictionary, Dictionary):
            seen = int(np.isin(dictionary.provenance.document, examples.ids).sum())
            found = found.assign_attrs(atoms_from_these_documents=seen)
        self.show({**figures(found), **found.attrs}, table_text(found))


COMMANDS = {
    "build": Build,
    "encode": Encode,
    "evaluate": Evaluate,
    "probe": Probe,
    "compare": Compare,
    "match": Match,
    "edit": Edit,
    "export": Export,
    "report": Report,
    "steer": Steer,
}
