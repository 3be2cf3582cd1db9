"""What activations are made of: dictionaries whose atoms are activations with a place in the data."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cache.errors import UsageError

from ._decomp_source import Source, open_dictionary, show

if TYPE_CHECKING:
    from decomp import Activations

Folder = tyro.conf.Positional[Path]


@dataclass(frozen=True)
class Build(Source):
    """Make a dictionary from a model's activations on data.

    Greedy construction takes an activation whenever the atoms so far leave more than `unexplained` of its squared
    norm; the others are baselines and neighbours of it. Built once: the same request is answered from the cache.

    Example:

        whence decomp build --at blocks.2.hook_out --size 2048 --out out/dictionary
    """

    at: str = "blocks.2.hook_out"
    """The hook point or module."""
    out: Path = Path("out/dictionary")
    """The folder to write."""
    builder: Literal["itda", "random", "partition", "kmeans"] = "itda"
    """How."""
    size: int | None = 2048
    """Most atoms; for itda and partition 0 means no limit."""
    k: int = 16
    """Pursuit steps."""
    unexplained: float | None = None
    """itda: the threshold. By default it is calibrated so that `size` is reached near the end of the data."""
    seeding: Literal["stream", "lexicographic", "none"] = "stream"
    """itda: the first atoms; lexicographic is what the published code does."""
    cosine: float = 0.5
    """partition: a new exemplar starts below this cosine."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from decomp import save
        from decomp.files import build_once

        loaded = self.load()
        stream, _ = loaded.split(self.at)
        left = {
            "skip": [list(self.skip_positions), list(self.skip_tokens)],
            "held_out": self.held_out,
        }
        builder = self._builder(stream)
        built = build_once(builder, stream, loaded.store, left, quiet=self.quiet)
        if loaded.corpus.vocabulary is not None:
            built = built.with_text(loaded.corpus.train, loaded.decode)
        folder = save(built, self.out)
        facts = {name: value for name, value in built.settings.items() if name != "curve"}
        facts = {"atoms": len(built), "folder": str(folder), "fingerprint": built.fingerprint, **facts}
        if self.json:
            print(json_module.dumps(facts, indent=1))
            return
        print(f"{len(built)} atoms of width {built.width} from {facts['rows_read']} activations: {folder}")
        lost = facts["rows_not_finite"] + facts["rows_zero"]
        print(f"k={built.k}  " + (f"{lost} rows left out as zero or not finite  " if lost else "") + f"{builder}")

    def _builder(self, stream: "Activations") -> Any:
        from decomp import ITDA, KMeans, Partition, Random, calibrate

        size = self.size or None
        if self.builder == "partition":
            return Partition(cosine=self.cosine, size=size, k=self.k)
        if self.builder != "itda":
            if size is None:
                raise UsageError(f"{self.builder} needs a size.", "Give --size.")
            return Random(size, k=self.k) if self.builder == "random" else KMeans(size, k=self.k)
        if self.unexplained is not None or size is None:
            chosen = 0.1 if self.unexplained is None else self.unexplained
            return ITDA(size=size, k=self.k, unexplained=chosen, seeding=self.seeding)
        import numpy as np

        pilot = stream.select(np.arange(min(len(stream), 16384)))
        wanted = ITDA(size=size, k=self.k, seeding=self.seeding)
        return calibrate(wanted, pilot, size=size, rows=int(0.9 * len(stream)), rounds=6).builder


@dataclass(frozen=True)
class Encode(Source):
    """Write the sparse codes of a model's activations: atoms, coefficients and what is left, for every token.

    The file holds indices and values [tokens, k], residual and energy [tokens] (squared norms of what is left and of
    the activation), and document, position and token of every row.

    Example:

        whence decomp encode out/dictionary --out out/codes.safetensors
    """

    dictionary: Folder
    """A dictionary's folder."""
    out: Path = Path("out/codes.safetensors")
    """The file to write."""
    k: int | None = None
    """Steps; the dictionary's own by default."""
    target: float = 0.0
    """Stop a token once this share of its squared norm is left."""
    pursuit: Literal["matching", "nonnegative", "refit", "orthogonal", "gradient"] | None = None
    """Another encoder than the dictionary's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        dictionary = open_dictionary(self.dictionary)
        acts = self.load().activations([dictionary.origin.site])[dictionary.origin.site]
        dictionary.origin.check_same(acts.origin)
        batch = acts.whole()
        code = dictionary.encode(batch.x, self.k, self.target, self.pursuit)
        arrays = {**{n: np.asarray(a) for n, a in code._asdict().items()}, **batch._asdict()}
        del arrays["x"]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"dictionary": dictionary.fingerprint, **vars(acts.origin)}
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, self.out, about)
        steps = float(np.count_nonzero(arrays["values"], axis=1).mean())
        share = float(code.residual.sum() / code.energy.sum())
        facts = {"file": str(self.out), "tokens": len(batch.x), "steps": steps, "unexplained": share}
        text = f"{len(batch.x)} tokens, {steps:.1f} steps each, {share:.2%} of the squared norm left: {self.out}"
        print(json_module.dumps(facts, indent=1) if self.json else text)


@dataclass(frozen=True)
class Evaluate(Source):
    """Judge a dictionary on documents that it was not built from, and in the model.

    fvu (about the mean), cosine error, L0, dead and rare atoms; and what share of the loss that an ablation costs is
    kept when the reconstruction takes the activation's place. Intervals are 95 %, by resampling documents.

    Example:

        whence decomp evaluate out/dictionary
    """

    dictionary: Folder
    """A dictionary's folder."""
    k: int | None = None
    """Steps; the dictionary's own by default."""
    loss: bool = True
    """Also run the model with the reconstruction in place."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        import numpy as np
        import xarray as xr

        from cache import LanguageModelling
        from decomp import evaluate, loss_recovered

        dictionary, loaded = open_dictionary(self.dictionary), self.load()
        site = dictionary.origin.site
        stream, held = loaded.split(site)
        found = evaluate(dictionary, held, k=self.k)
        examples = loaded.held_out_examples(held)
        seen = int(np.isin(dictionary.provenance.document, examples.ids).sum())
        if self.loss:
            skip, mean = self.skip_positions, stream.whole().x.mean(axis=0)
            task = LanguageModelling()
            recovered = loss_recovered(dictionary, loaded.model, task, examples, site, self.k, skip, mean)
            attrs = {**found.attrs, **recovered.attrs}
            found = xr.concat([found, recovered], "metric").assign_attrs(attrs)
        show(found, self.json, atoms_from_these_documents=seen)


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
        from decomp import compare
        from decomp.diff import difference

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
class Match(Source):
    """Match the layers of several models, by every measure and with controls; or follow one over its checkpoints.

    A layer is matched to the most similar layer of another model. Pairs of different models are the result; a model
    with itself stands beside it. With --checkpoints the models are stages of one training, the last one last.

    Example:

        whence decomp match --models demo demo --at blocks.0.hook_out blocks.1.hook_out --rows 4000
    """

    models: tuple[str, ...]
    """Models that read the same tokens: names or folders, as for --model."""
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
        from dataclasses import replace

        import numpy as np

        from decomp import ITDA, layers

        builder, models = ITDA(k=self.k, unexplained=self.unexplained), []
        for name in self.models:
            loaded = replace(self, model=name).load()
            found = loaded.activations(self.at)
            cut = {site: acts.select(np.arange(min(self.rows, len(acts)))) for site, acts in found.items()}
            models.append([layers.Layer(acts, builder.build(acts)) for acts in cut.values()])
        if self.checkpoints:
            stages = {n: dict(zip(self.at, (layer.dictionary for layer in m))) for n, m in enumerate(models)}
            result = layers.convergence(stages)
        else:
            result = layers.match_layers(models)
        if self.json:
            print(json_module.dumps(result.to_dict(), indent=1))
            return
        print(result.drop_dims("pair", errors="ignore").to_dataframe().round(3).to_string())


@dataclass(frozen=True)
class Export:
    """Write a dictionary for another tool.

    saelens: a matching_pursuit SAE with mirrored atoms, whose codes are the same to rounding. sparsify: its encoder
    takes all latents at once, so the codes differ unless k is 1; say --one-shot to have it all the same.

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
    """The model's name as the other tool knows it."""
    one_shot: bool = False
    """sparsify: write it although codes will differ."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from decomp.interop import saelens, sparsify

        dictionary = open_dictionary(self.dictionary)
        if self.to == "saelens":
            path = saelens.save(dictionary, self.out, model_name=self.model_name)
        else:
            path = sparsify.save(dictionary, self.out, one_shot=self.one_shot)
        facts = {"folder": str(path), "files": sorted(p.name for p in path.iterdir())}
        print(json_module.dumps(facts) if self.json else f"{path}: {', '.join(facts['files'])}")


@dataclass(frozen=True)
class Report(Source):
    """Write a dictionary's feature page: one HTML file with every atom's source, contexts and neighbours.

    Example:

        whence decomp report out/dictionary --out out/features.html
    """

    dictionary: Folder
    """A dictionary's folder."""
    out: Path = Path("out/features.html")
    """The file to write."""
    title: str | None = None
    """Heading of the page."""
    top: int = 8
    """Contexts shown of each atom."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from cache.show import write_page
        from decomp.features import features, top_contexts
        from decomp.page import page

        dictionary, loaded = open_dictionary(self.dictionary), self.load()
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
    atom: int = 0
    """Which atom."""
    strength: float = 6.0
    """How much of it is added; 0 takes the atom out of the activation's code instead."""
    tokens: int = 24
    """Tokens to write."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from decomp import spliced
        from decomp.splice import steered, without_atoms
        from whence.language_model import continuation

        dictionary, loaded = open_dictionary(self.dictionary), self.load()
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


COMMANDS = {
    "build": Build,
    "encode": Encode,
    "evaluate": Evaluate,
    "compare": Compare,
    "match": Match,
    "export": Export,
    "report": Report,
    "steer": Steer,
}
