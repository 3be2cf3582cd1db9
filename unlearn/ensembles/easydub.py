"""The folders of EasyDUB (arXiv 2602.16400): margins or logits of each model in a file of its own.

As its dataset card and `easydub/data.py` have it:

    margins/cifar10/pretrain/{retain,val}/resnet9/id_0_epoch_23.npy     of all training images; of the validation images
    margins/cifar10/pretrain/forget_2/resnet9/id_0_epoch_23.npy         of forget set 2
    margins/cifar10/oracle/forget_2/{retain,forget,val}/resnet9/id_0_epoch_23.npy
    forget_sets/cifar10/forget_set_2.npy                                indices into the training set

`logits/` has the same. The published data have no unlearned models; here they are kept like oracles, with the name of
the method in place of `oracle`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError

from ..evaluate import OracleSplit
from ..loop import Unlearned
from .arrays import divided, forget_indices, stacked

PRETRAIN, ORACLE = "pretrain", "oracle"
FOLDERS = {"forget": "forget", "retain": "retain", "validation": "val"}


@dataclass(frozen=True)
class EasyDUB:
    """A folder in that layout.

    root: the folder with `margins` (or `logits`) and `forget_sets`. dataset, network, epoch: as in its paths. kind:
    which of the two to read and write.
    """

    root: Path
    dataset: str = "cifar10"
    network: str = "resnet9"
    epoch: int = 23
    kind: Literal["margins", "logits"] = "margins"

    def forget_set(self, number: int) -> Int64[np.ndarray, " k"]:
        """The indices of a forget set. Raises DataError if there is none of that number."""
        path = self._forget_path(number)
        if not path.is_file():
            known = sorted(p.stem.removeprefix("forget_set_") for p in path.parent.glob("forget_set_*.npy"))
            raise DataError(f"There is no {path}.", f"The forget sets there: {', '.join(known) or 'none'}.")
        return forget_indices(path)

    def names(self) -> list[str]:
        """The ensembles there: pretrain, oracle, and methods."""
        folder = Path(self.root) / self.kind / self.dataset
        return sorted(path.name for path in folder.glob("*") if path.is_dir())

    def read(self, name: str, forget: int, models: int | None = None) -> dict[str, Float[np.ndarray, "_ _ ..."]]:
        """The arrays of an ensemble by part: forget, retain, validation. Of the pretrained models, the forgotten rows
        are taken out of the retained part, as the benchmark's own script does.

        Args:
            name: pretrain, oracle, or a method.
            forget: the number of the forget set.
            models: how many models; all by default.

        Raises DataError if a folder is missing, or a model lacks a part.
        """
        parts = {part: self._stack(self._folder(name, forget, part), models) for part in FOLDERS}
        counts = {part: len(values) for part, values in parts.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"{name} has different numbers of models by part: {counts}.", "Complete the download.")
        if name == PRETRAIN:
            ids = self.forget_set(forget)
            parts["retain"] = divided({"train": parts["retain"]}, ids)["retain"]
        return parts

    def write(
        self, name: str, forget: int, parts: Mapping[str, np.ndarray], indices: Int64[np.ndarray, " k"] | None = None
    ) -> Path:
        """Write an ensemble as one file a model and part; returns the folder of the ensemble.

        Args:
            name: pretrain, oracle, or a method. Of `pretrain`, `retain` is all training points in order.
            forget: the number of the forget set.
            parts: forget, retain and validation -> [models, points], or [models, points, classes] of logits.
            indices: of the forget set, written beside them.

        Raises DataError if a part is missing.
        """
        missing = [part for part in FOLDERS if part not in parts]
        if missing:
            raise DataError(f"The part {missing[0]} is missing.", f"Give {', '.join(FOLDERS)}.")
        if indices is not None:
            self._forget_path(forget).parent.mkdir(parents=True, exist_ok=True)
            np.save(self._forget_path(forget), np.asarray(indices, np.int64))
        for part in FOLDERS:
            folder = self._folder(name, forget, part)
            folder.mkdir(parents=True, exist_ok=True)
            for model, values in enumerate(parts[part]):
                np.save(folder / f"id_{model}_epoch_{self.epoch}.npy", values)
        return Path(self.root) / self.kind / self.dataset / name

    def write_split(self, split: OracleSplit, forget: int, unlearned: Sequence[Unlearned] = ()) -> Path:
        """Write the ensembles of an oracle split: the models as they were, all oracles, and what methods made of the
        models; returns the root.

        Args:
            split: at all training points, and others.
            forget: the number of the forget set.
            unlearned: what `run` returned; the name of the method is the folder's.

        Raises DataError for tokens, and if a training example is not among the points.
        """
        ids, train = split.points.ids.tolist(), split.request.train.ids
        places = {identity: column for column, identity in enumerate(ids)}
        missing = [identity for identity in train.tolist() if identity not in places]
        if split.tokens is not None or missing:
            raise DataError(
                "EasyDUB's layout has margins of classes at every training point.",
                "Use a classifier, and a split whose points have all training examples.",
            )
        order = np.array([places[identity] for identity in train.tolist()])
        own = np.flatnonzero(np.isin(train, split.request.forget))
        groups = {PRETRAIN: split.before(), ORACLE: np.concatenate([split.reference, split.held_out])}
        for name, margins in [*groups.items(), *((one.method.lower(), split.margins(one)) for one in unlearned)]:
            at_train = margins[:, order]
            parts = {**divided({"train": at_train}, own), "validation": margins[:, split.columns["validation"]]}
            if name == PRETRAIN:
                parts["retain"] = at_train
            self.write(name, forget, parts, own)
        return Path(self.root)

    def _forget_path(self, number: int) -> Path:
        return Path(self.root) / "forget_sets" / self.dataset / f"forget_set_{number}.npy"

    def _folder(self, name: str, forget: int, part: str) -> Path:
        own = FOLDERS[part]
        if name == PRETRAIN:
            within = [f"forget_{forget}" if part == "forget" else own]
        else:
            within = [f"forget_{forget}", own]
        return Path(self.root).joinpath(self.kind, self.dataset, name, *within, self.network)

    def _stack(self, folder: Path, models: int | None) -> np.ndarray:
        found = {}
        for path in folder.glob(f"id_*_epoch_{self.epoch}.npy"):
            number = re.fullmatch(rf"id_(\d+)_epoch_{self.epoch}", path.stem)
            if number:
                found[int(number[1])] = path
        if not found:
            raise DataError(
                f"There is no id_*_epoch_{self.epoch}.npy in {folder}.",
                "Give the folder of the dataset, and its --dataset, --network and --epoch if they are others.",
            )
        return stacked(folder, [found[number] for number in sorted(found)][:models])
