"""What activations are made of: dictionaries whose atoms are activations with a source in the data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from whence.cache.display.files import ENDINGS, save_table
from whence.cache.errors import UsageError
from whence.options import Count, ending

from ._decomp_atoms import Edit, Report, Steer
from ._decomp_compare import Compare, Match
from ._decomp_export import Export
from ._decomp_probe import Probe
from ._decomp_source import (
    Folder,
    Observed,
    Source,
    at_site,
    figure_rows,
    figures,
    open_codec,
    open_dictionary,
    table_text,
)
from ._names import Hooks
from ._settings import registered
from ._shared import Printed, Tabled

SETTINGS = ("unexplained", "seeding", "cosine", "kind", "batch", "tokens")  # of some builders


@dataclass(frozen=True)
class Build(Source, Printed):
    """Build a dictionary from a model's activations on data.

    itda adds an activation as an atom if the atoms so far leave more than `unexplained` of its squared norm; the other
    builders are baselines and relatives of it; mpsae trains itda's atoms. A repeated request is answered from the
    store; an interrupted build of itda, sae or mpsae resumes. Several hook points are read in one pass of the model,
    and each gets a folder of its name in `out`.

    Example:

        whence decomp build --at blocks.2.hook_out --size 2048 --out out/dictionary
        whence decomp build --at blocks.0.hook_out blocks.1.hook_out --builder mpsae --out out/dictionaries
    """

    at: tuple[str, ...] = ("blocks.2.hook_out",)
    """The hook point or module, or several."""
    to: str = ""
    """Build a transcoder: codes of the activations at `at` give those at this hook point."""
    out: Path = Path("out/dictionary")
    """The folder to write."""
    builder: str = "itda"
    """How: itda, calibrated, random, partition, kmeans, sae or mpsae."""
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
    kind: Literal["topk", "batchtopk"] = "topk"
    """sae: which latents are active."""
    batch: Count | None = None
    """itda, partition: activations compared at once; sae, mpsae: activations per step. By default the builder's own."""
    tokens: Count | None = None
    """sae, mpsae: activations trained on, shuffled and repeated; as many as there are by default."""

    def precheck(self) -> None:
        from dataclasses import fields

        from whence.decomp import BUILDERS, ITDA, Calibrated
        from whence.decomp.builders import MPSAE

        kind = registered(BUILDERS, self.builder, what="builder")
        own = {each.name for each in (*fields(kind), *(fields(ITDA) if kind in (Calibrated, MPSAE) else ()))}
        for each in fields(self):
            if each.name in SETTINGS and each.name not in own and getattr(self, each.name) != each.default:
                raise UsageError(f"--{each.name} is no setting of {self.builder}.", "Leave it out.")

    def run(self) -> None:
        from whence.cache.model.names import known_as

        if not self.at or len(set(self.at)) < len(self.at):
            raise UsageError("Hook points are missing or repeat.", "Name every hook point once with --at.")
        loaded, builder = self.load(), self._builder()
        sites, built = [known_as(loaded.trained.model, at) for at in self.at], []
        for site, acts in loaded.activations(sites, self.to).items():
            out = self.out if len(self.at) == 1 else self.out / site
            built.append(self._built(loaded, builder, acts, out))
        facts = [one[0] for one in built]
        self.show(facts[0] if len(facts) == 1 else facts, "\n".join(text for _, text in built))

    def _built(self, loaded: Observed, builder: Any, acts: Any, out: Path) -> tuple[dict[str, Any], str]:
        """Build and save; the facts, and the text that says them."""
        from whence.decomp import Dictionary, save

        stream, _ = acts.split(self.held_out)
        skipped = {
            "skip": [list(self.skip_positions), list(self.skip_tokens)],
            "held_out": self.held_out,
        }
        checkpoint = out / "unfinished.safetensors" if builder.resumes else None
        built = builder.build(stream, store=loaded.store, selection=skipped, checkpoint=checkpoint, quiet=self.quiet)
        if isinstance(built, Dictionary):
            built = built.with_text(loaded.corpus.train, **loaded.tokens)
        folder = save(built, out)
        self.write_source(folder, loaded, acts.origin.site)
        facts: dict[str, Any] = {"atoms": len(built), "folder": str(folder), "fingerprint": built.fingerprint}
        if not isinstance(built, Dictionary):
            return facts, f"{built!r}: {folder}"
        facts |= {name: value for name, value in built.settings.items() if name != "curve"}
        lost = facts["rows_not_finite"] + facts["rows_zero"]
        threshold = f"  threshold {facts['unexplained']:.3f}" if "unexplained" in facts else ""
        return facts, (
            f"{len(built)} atoms of width {built.width} from {facts['rows_read']} activations: {folder}\n"
            f"k={built.k}  {facts['builder']}{threshold}" + f"  {lost} rows left out as zero or not finite" * (lost > 0)
        )

    def _builder(self) -> Any:
        from dataclasses import MISSING, fields

        from whence.decomp import BUILDERS, ITDA, Calibrated
        from whence.decomp.builders import MPSAE

        self.precheck()
        size, chosen = self.size or None, BUILDERS[self.builder]
        if chosen is MPSAE:
            start, trained = replace(self, builder="itda", batch=None), {"batch": self.batch, "tokens": self.tokens}
            return MPSAE(start._builder(), **{name: value for name, value in trained.items() if value is not None})
        if chosen is ITDA and self.unexplained is None and size is not None:
            chosen = Calibrated
        if chosen is Calibrated:
            names = ("size", "k", "unexplained", "seeding", "batch")
            itda: dict[str, Any] = {name: getattr(self, name) for name in names} | {"size": size}
            return Calibrated(ITDA(**{name: value for name, value in itda.items() if value is not None}))
        known = {each.name: each for each in fields(chosen)}
        if size is None and known["size"].default is MISSING:
            raise UsageError(f"{self.builder} needs a size.", "Give --size.")
        given = {name: value for name, value in vars(self).items() if name in known and value is not None}
        return chosen(**given | {"size": size})


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
    out: Annotated[Path, ending(".safetensors", *ENDINGS)] = Path("out/codes.safetensors")
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
        acts = self.load_for(self.dictionary).activations([dictionary.origin.site])[dictionary.origin.site]
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
class Evaluate(Source, Tabled):
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
    """Do not run the model on the reconstruction: evaluate the activations only."""

    def run(self) -> None:
        import numpy as np
        import xarray as xr

        from whence.decomp import Dictionary, evaluate, loss_recovered
        from whence.decomp.transcoder import Transcoder

        dictionary = at_site(open_codec(self.dictionary), self.dictionary, self.at)
        loaded = self.load_for(self.dictionary)
        site = dictionary.origin.site
        stream, held = loaded.split(site, dictionary.to if isinstance(dictionary, Transcoder) else "")
        if self.ks:
            curve = evaluate(dictionary, held, self.ks)
            points = {str(k): figures(curve.sel(k=k)) for k in self.ks}
            rows = [row for k in self.ks for row in figure_rows(curve.sel(k=k), k=k)]
            self.show_table({"ks": points}, curve.value.to_pandas().round(4).to_string(), rows)
            return
        found = evaluate(dictionary, held, k=self.k)
        examples = loaded.documents_of(held)
        if self.loss:
            skip, mean = (
                self.skip_positions,
                replace(stream, x=stream.x if stream.target is None else stream.target).mean(),
            )
            recovered = loss_recovered(loaded.trained, dictionary, examples, at=site, k=self.k, skip=skip, mean=mean)
            attrs = {**found.attrs, **recovered.attrs}
            found = xr.concat([found, recovered], "metric").assign_attrs(attrs)
        if isinstance(dictionary, Dictionary):
            seen = int(np.isin(dictionary.provenance.document, examples.ids).sum())
            found = found.assign_attrs(atoms_from_these_documents=seen)
        self.show_table({**figures(found), **found.attrs}, table_text(found), figure_rows(found))


COMMANDS = {
    "hooks": Hooks,
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
