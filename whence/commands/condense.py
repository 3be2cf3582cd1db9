"""Fewer data: a small synthetic set that trains like the large one."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from whence.cache.errors import UsageError
from whence.files import labelled_data
from whence.options import Count, Device, Page, Positive

from ._settings import methods_command, registered, with_settings
from ._shared import Printed, Stored, Tabled

if TYPE_CHECKING:
    from whence.unlearn.condense import Pool, Settings

Sets = tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labelled data."""

    data: str = "digits"
    """digits, an .npz with x_train, y_train, x_test and y_test, or a table (.csv, .parquet, .jsonl) with a column of
    classes and columns of numbers; the data that is or was condensed."""
    label_column: str | None = None
    """Column of the class in a table; `label` by default."""

    def pools(self, like: Any = None, layout: str | None = None) -> "tuple[Pool, Pool]":
        """Training and test pools, in the scaling of `like` when given. Raises DataError if they cannot be read."""
        return load(self.data, like, layout, {"label": self.label_column} if self.label_column else None)


@dataclass(frozen=True, kw_only=True)
class Condensing(Labelled, Stored, Printed):
    """What is condensed, and how."""

    layout: Literal["nhwc", "nchw"] | None = None
    """Where the channels of images are; by default the axis that is 1 or 3 long."""
    method: str = "dcc"
    """The method; `whence condense methods` lists all of them."""
    network: str = "convnet-2-16"
    """mlp-64-64, convnet-2-16 (depth, width), convnet-2-16-none (norm), lenet, resnet."""
    per_class: Count = 1
    """Synthetic examples per class."""
    outer: Count = 100
    """Outer steps, each with a newly initialised network."""
    inner: Count | None = None
    """Matching steps with each; the published number for this many per class by default."""
    epochs: Count | None = None
    """Training of the network between them; the published number by default."""
    real_batch: Count = 256
    """Real examples per class and step."""
    lr: Positive = 0.1
    """Learning rate of the synthetic examples, in units of the scaled data."""
    warm_outer: int = 0
    """Outer steps that match class by class before classes are contrasted (the papers use 250 of 1000)."""
    warm_inner: int = 10
    """Inner steps likewise, within each outer step."""
    init: Literal["real", "noise", "means"] = "real"
    """Initial values."""
    soft_labels: bool = False
    """Learn the labels too."""
    augment: tuple[str, ...] = ("colour", "crop", "cutout", "scale", "rotate")
    """dsa and dsac: operations among colour, crop, cutout, flip, scale, rotate."""
    groups: Count = 2
    """subgroup: number of groups of similar classes."""
    set: tuple[str, ...] = ()
    """Settings of mtt and ast, as name=value (experts=20 epochs=30)."""
    pretrain: int = 0
    """lgm: train the network on all data for this many epochs first, and match probes on its frozen features."""
    seeds: tuple[int, ...] = (0,)
    """One set per seed, computed together."""
    device: Device | None = None
    """The device of the computation: cpu, cuda, cuda:1; JAX's own by default."""

    def read(self) -> "tuple[Pool, Settings]":
        """The real examples, and the settings that the options give."""
        from whence.unlearn.condense import METHODS, Settings, Training, network
        from whence.unlearn.condense.pretrained import pretrained

        method = with_settings(registered(METHODS, self.method, self.set), self.set) if self.set else self.method
        names = ["per_class", "outer", "inner", "epochs", "real_batch", "lr", "warm_outer", "warm_inner"]
        names += ["init", "soft_labels", "augment", "groups"]
        settings = Settings(method, network(self.network), **{name: getattr(self, name) for name in names})
        train, _ = self.pools(layout=self.layout)
        if self.pretrain:
            settings = replace(settings, network=pretrained(settings.network, train, Training(self.pretrain)))
        return train, settings


@dataclass(frozen=True, kw_only=True)
class Plan(Condensing):
    """Say how long `whence condense run` with the same options takes here: a few of its steps are run and thrown away.

    Example:

        whence condense plan --data digits --network convnet-2-16 --per-class 1 --outer 1000
    """

    def run(self) -> None:
        from whence.unlearn.condense.plan import plan

        found = plan(*self.read(), self.seeds, self.open_store(), device=self.device)
        self.show({**asdict(found), "seconds": found.seconds}, str(found))


@dataclass(frozen=True, kw_only=True)
class Run(Condensing):
    """Condense labelled data into a few synthetic examples per class.

    `whence condense plan` with the same options says how long it takes. An interrupted run resumes: its checkpoints are
    in the store. The set is written with its card (.json) beside it.

    Example:

        whence condense run --data digits --network convnet-2-16 --per-class 1 --outer 100 --out out/digits.npz
    """

    out: Path = Path("out/condensed.npz")
    """The .npz or .safetensors to write; with several seeds, the seed is put before the ending."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> None:
        from whence.unlearn.condense import condense
        from whence.unlearn.condense.condensed import checked_path

        checked_path(self.out)  # before the work, not after it
        sets = condense(*self.read(), self.seeds, self.open_store(), device=self.device, quiet=self.quiet)
        paths = []
        for seed, one in zip(self.seeds, sets):
            stem = self.out.stem if len(sets) == 1 else f"{self.out.stem}-{seed}"
            paths.append(one.save(self.out.with_name(stem + self.out.suffix)))
        pairs = list(zip(paths, sets))
        lines = [f"{p}: {len(s)} examples from {s.about['examples']}, loss {s.losses[-1]:.4g}" for p, s in pairs]
        self.show([{"path": str(p), "loss": float(s.losses[-1])} for p, s in pairs], "\n".join(lines))


@dataclass(frozen=True)
class Evaluate(Labelled, Tabled):
    """Train networks from scratch on condensed sets, and on as many real examples, and test them.

    The mean accuracy is written to the card of each set.

    Example:

        whence condense evaluate out/digits.npz --data digits --networks convnet-2-16 mlp-64-64
    """

    sets: Sets
    """Condensed sets (.npz or .safetensors)."""
    networks: tuple[str, ...] = ("convnet-2-16",)
    """The networks to train."""
    count: Count = 10
    """Networks trained on each set."""
    passes: Count = 300
    """Epochs of training."""
    lr: Positive = 0.01
    """Learning rate of that training."""
    baselines: tuple[str, ...] = ("random", "herding")
    """Real examples to compare with: random, herding, k-centre, submodular, grand, el2n."""
    robust: bool = False
    """Also print DD-Ranking's label-robust and augmentation-robust scores on the first network."""

    def run(self) -> None:
        from whence.cache.jobs.progress import say
        from whence.unlearn.condense import Condensed, Training, evaluate, network, select
        from whence.unlearn.condense.difficulty import RULES, difficulty
        from whence.unlearn.condense.robust import robust_scores

        if not self.sets:
            raise UsageError("No set is given.", "Name one or more .npz or .safetensors files.")
        sets = {str(path): Condensed.load(path) for path in self.sets}
        train, test = self.pools(next(iter(sets.values())))
        sources: dict[str, Any] = {name: [one] for name, one in sets.items()}
        for name, one in sets.items():
            if one.about.get("data") != train.fingerprint:
                say(f"{name} was condensed from other data than {self.data}.")
        sizes = sorted({len(one) // train.classes for one in sets.values()})
        first, training = network(self.networks[0]), Training(self.passes, self.lr)
        scores = {rule: difficulty(train, first, rule) for rule in self.baselines if rule in RULES}
        for size, rule in itertools.product(sizes, self.baselines):
            name, seeds = rule if len(sizes) == 1 else f"{rule}, {size} per class", range(3 if rule == "random" else 1)
            sources[name] = [select(train, rule, size, seed, scores=scores.get(rule)) for seed in seeds]
        table = {
            name: {net: evaluate(given, test, network(net), training, self.count) for net in self.networks}
            for name, given in sources.items()
        }
        for path in self.sets:
            figures = {f"accuracy {net}": round(found.mean, 2) for net, found in table[str(path)].items()}
            sets[str(path)].measured(**figures).save(path)
        wide = max(len(name) for name in table)
        lines = [f"{'':{wide}}  " + "  ".join(f"{net:>26}" for net in self.networks)]
        lines += [f"{n:{wide}}  " + "  ".join(f"{found!s:>26}" for found in row.values()) for n, row in table.items()]
        lines.append("accuracy in percent: mean ± standard deviation over networks [95 % interval of the mean]")
        if self.robust:
            lines.append("DD-Ranking, 0 to 100: label-robust and augmentation-robust score")
            for name, one in sets.items():
                found = robust_scores(one, train, test, first, training, networks=min(self.count, 5))
                lines.append(f"{name:{wide}}  LRS {found.lrs:.1f}  ARS {found.ars:.1f}")
        plain = {n: {net: found.values.tolist() for net, found in row.items()} for n, row in table.items()}
        rows = [
            {"set": name, "network": net, "run": run, "accuracy": value}
            for name, row in plain.items() for net, runs in row.items() for run, value in enumerate(np.ravel(runs))
        ]  # fmt: skip
        self.show_table(plain, "\n".join(lines), rows)


@dataclass(frozen=True)
class Report:
    """Write a page of HTML with the examples, the training curve and the card.

    Example:

        whence condense report out/digits.npz --out out/digits.html
    """

    set: tyro.conf.Positional[Path]
    """A condensed set (.npz or .safetensors)."""
    out: Page | None = None
    """The page; beside the set by default."""

    def run(self) -> None:
        from whence.unlearn.condense import Condensed

        found = Condensed.load(self.set)
        print(found.report(self.out or self.set.with_suffix(".html"), f"{self.set.name}: {len(found)} examples"))


def load(
    name: str, like: Any = None, layout: str | None = None, columns: Mapping[str, str] | None = None
) -> "tuple[Pool, Pool]":
    """Training and test pools of named or stored data, in the scaling of `like` when given.

    Raises DataError if the file or one of its arrays is missing.
    """
    from whence.unlearn.condense import Pool

    scaling = None if like is None else like.scaling
    if name == "digits":
        from whence.corpora import digits

        corpus = digits(images=True)
        train = Pool.of(corpus.train, scaling=scaling)
        return train, Pool.of(corpus.queries, train.classes, train.scaling)
    file = labelled_data(name, columns)
    train = Pool.of((file["x_train"], file["y_train"]), scaling=scaling, layout=layout)
    return train, Pool.of((file["x_test"], file["y_test"]), train.classes, train.scaling)


Methods = methods_command("condensation", "whence condense methods", "whence.unlearn.condense")
COMMANDS: dict[str, type] = {"plan": Plan, "run": Run, "methods": Methods, "evaluate": Evaluate, "report": Report}
