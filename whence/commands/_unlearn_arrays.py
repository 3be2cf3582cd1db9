"""`whence unlearn evaluate-arrays`: somebody's unlearned models against oracles, from arrays of their outputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whence.options import Count, Page

from ._shared import Tabled

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class EvaluateArrays(Tabled):
    """Evaluate unlearned models from their outputs: KLoM in its published forms and ours, with null row and intervals.

    Margins are [models, points], logits [models, points, classes]. A file has arrays called forget, retain and
    validation, or train (which --forget divides) and validation. A folder has Zarr arrays, or one .npy a model. Or give
    --easydub, a folder in the layout of EasyDUB's dataset.

    Example:

        whence unlearn evaluate-arrays --unlearned forgot.npz --oracles retrained.npz --out out/klom.csv
        whence unlearn evaluate-arrays --easydub EasyDUB-dataset --forget-set 2 --per-side 100
    """

    unlearned: str | None = None
    """File or folder of the unlearned models; with --easydub the name of an ensemble there (pretrain by default)."""
    oracles: Path | None = None
    """The same of models that were retrained without the forget set."""
    before: Path | None = None
    """The same of the models before unlearning, for the row of the no-op baseline."""
    labels: Path | None = None
    """Classes of the points, for logits: a file with arrays of the same names."""
    forget: Path | None = None
    """Indices of the forget set into train: .npy, .json or text; or blocks of tokens (`batch_indices`)."""
    names: tuple[str, ...] = ()
    """What the files call a part, as part=name (validation=test_margins)."""
    easydub: Path | None = None
    """A folder with margins/, logits/ and forget_sets/ as EasyDUB has them."""
    forget_set: Count = 1
    """Number of the forget set there."""
    dataset: str = "cifar10"
    """Data set in its paths."""
    network: str = "resnet9"
    """Network in its paths."""
    epoch: int = 23
    """Epoch in its paths."""
    kind: Literal["margins", "logits"] = "margins"
    """Which arrays to read there; logits need --labels."""
    forms: str = "whence,dmm,data-unlearning-bench,easydub"
    """Forms of KLoM, with commas."""
    per_side: Count | None = None
    """Models per side; by default as many as leave equally many oracles for the null row."""
    resamples: int = 20
    """Resamples of the models for the intervals; 0 for none."""
    page: Page | None = None
    """Write a page with charts: .html."""

    def run(self) -> None:
        from whence.cache.display import write_page
        from whence.unlearn.ensembles import compare

        unlearned, oracles, before = self._groups()
        forms = [name.strip() for name in self.forms.split(",")]
        found = compare(unlearned, oracles, before=before, forms=forms, models=self.per_side, resamples=self.resamples)
        written = [path for path in (self.out, self.page) if path is not None]
        if self.page is not None:
            write_page(found.page(), self.page)
        self.show_table(found.facts(), str(found) + "".join(f"\nwritten: {path}" for path in written), found.rows())

    def _groups(self) -> tuple[dict, dict, dict | None]:
        from whence.cache import UsageError
        from whence.unlearn.ensembles import forget_indices, margins_of
        from whence.unlearn.ensembles.arrays import arrays_of

        labels = None if self.labels is None else arrays_of(self.labels)
        if self.easydub is not None:
            return self._easydub(labels)
        if self.unlearned is None or self.oracles is None:
            raise UsageError("There are not two ensembles.", "Give --unlearned and --oracles, or --easydub.")
        forget = None if self.forget is None else forget_indices(self.forget)
        wrong = [text for text in self.names if "=" not in text]
        if wrong:
            raise UsageError(f"--names cannot be {wrong[0]!r}.", "Give part=name.")
        names = dict(text.split("=", 1) for text in self.names)

        def read(path: str | Path) -> dict:
            return margins_of(path, labels=labels, forget=forget, names=names or None)

        return read(self.unlearned), read(self.oracles), None if self.before is None else read(self.before)

    def _easydub(self, labels: "dict[str, np.ndarray] | None") -> tuple[dict, dict, dict | None]:
        from whence.unlearn.ensembles import EasyDUB
        from whence.unlearn.ensembles.arrays import as_margins
        from whence.unlearn.ensembles.easydub import ORACLE, PRETRAIN

        assert self.easydub is not None
        layout = EasyDUB(self.easydub, self.dataset, self.network, self.epoch, self.kind)
        ids = None if labels is None else layout.forget_set(self.forget_set)

        def read(name: str) -> dict:
            return as_margins(layout.read(name, self.forget_set), labels, ids, f"{self.easydub}, {name}")

        name = self.unlearned or PRETRAIN
        return read(name), read(ORACLE), None if name == PRETRAIN else read(PRETRAIN)
