"""Margins of an ensemble by part, from files of arrays."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from scipy.special import logsumexp

from whence.cache import DataError

from ..metrics import checked_labels

PARTS = {
    "forget": "forget", "retain": "retain", "validation": "validation", "val": "validation", "test": "validation",
    "train": "train", "margins": "train", "logits": "train",
}  # fmt: skip
BLOCK = 8 * 64 * 1024  # tokens of a step in the language models of data-unlearning-bench


def margins_of(
    path: str | Path,
    *,
    labels: Mapping[str, np.ndarray] | None = None,
    forget: Int64[np.ndarray, " k"] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Margins [models, points] by part: forget, retain, validation.

    Arrays are called `forget`, `retain` and `validation` (or `val`, `test`); or `train` (also `margins`, `logits`, or
    the one array of an .npy), which the indices in `forget` divide into forget and retain. An array of three
    dimensions has logits [models, points, classes] and needs labels.

    Args:
        path: an .npz, .npy or .safetensors file, a folder of Zarr, or a folder with one .npy of all points a model
            (in order of the numbers in their names).
        labels: part -> the class of each point, by the same names as the arrays.
        forget: places in `train` that were to be forgotten.
        names: part -> what the file calls it.

    Raises DataError for a file that cannot be read, arrays of another form, and missing labels or indices.
    """
    found = arrays_of(Path(path))
    if names:
        missing = [theirs for theirs in names.values() if theirs not in found]
        if missing:
            raise DataError(f"{path} has no array {missing[0]!r}.", f"It has {', '.join(found)}.")
        found = {ours: found[theirs] for ours, theirs in names.items()}
    known = {name: values for name, values in found.items() if name in PARTS}
    if len(found) == 1 and not known:
        known = {"train": next(iter(found.values()))}
    if not known:
        raise DataError(
            f"{path} has the arrays {', '.join(found)}: none is a part.",
            "Call them forget, retain and validation, or train and validation; or give their names.",
        )
    return as_margins({PARTS[name]: values for name, values in known.items()}, labels, forget, str(path))


def as_margins(
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    forget: Int64[np.ndarray, " k"] | None,
    where: str,
) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Margins by part from margins or logits by part. Labels of `train` also serve its parts. Raises DataError."""
    classes = {PARTS.get(name, name): np.asarray(values) for name, values in (labels or {}).items()}
    if "train" in classes and "train" not in arrays and forget is not None:
        own = divided({"train": classes.pop("train")[None]}, forget)
        classes |= {part: values[0] for part, values in own.items()}
    parts = {part: _margins(values, classes.get(part), f"{where}, {part}") for part, values in arrays.items()}
    return divided(parts, forget)


def divided(parts: Mapping[str, np.ndarray], forget: Int64[np.ndarray, " k"] | None) -> dict[str, np.ndarray]:
    """Parts with `train` divided into forget and retain by the places that were to be forgotten; without places it
    stays one part, `all`. Raises DataError for places that are not there."""
    train = parts.get("train")
    others = {name: values for name, values in parts.items() if name != "train"}
    if train is None:
        return others
    if forget is None:
        return {**others, "all": train}
    if len(forget) == 0 or forget.min() < 0 or forget.max() >= train.shape[1] or len(np.unique(forget)) < len(forget):
        raise DataError(
            f"The {len(forget)} forget indices are not distinct places among {train.shape[1]} points.",
            "Give the indices into the training set that the arrays were computed on.",
        )
    kept = np.ones(train.shape[1], bool)
    kept[forget] = False
    return {"forget": train[:, forget], "retain": train[:, kept], **others}


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file or folder, by name. Raises DataError if it cannot be read."""
    if not path.exists():
        raise DataError(f"There is no {path}.", "Give an .npz, .npy, .safetensors or Zarr path.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".npy":
            return {"train": np.load(path, allow_pickle=False)}
        if path.suffix == ".safetensors":
            return _safetensors(path)
        if path.is_dir():
            return _folder(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Write plain arrays of numbers.") from error
    raise DataError(f"{path} is no kind of file that is read here.", "Give an .npz, .npy, .safetensors or Zarr path.")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(error) from error


def _folder(path: Path) -> dict[str, np.ndarray]:
    files = [*path.glob("*.npy")]
    if files:
        return {"train": stacked(path, sorted(files, key=_numbers))}
    import zarr

    try:
        found = zarr.open(path, mode="r")
    except Exception as error:  # zarr raises classes of its own, which differ by version
        raise DataError(
            f"The folder {path} has neither .npy files nor Zarr arrays.", "Give the folder that has the arrays."
        ) from error
    if isinstance(found, zarr.Array):
        return {"train": np.asarray(found[:])}
    return {name: np.asarray(array[:]) for name, array in found.arrays()}


def stacked(folder: Path, files: list[Path]) -> np.ndarray:
    """Files of one model each, as one array [models, ...]. Raises DataError where shapes differ."""
    each = [np.load(file, allow_pickle=False) for file in files]
    odd = next((file for file, values in zip(files, each) if values.shape != each[0].shape), None)
    if odd is not None:
        raise DataError(
            f"{odd.name} in {folder} has another shape than {files[0].name}.", "Give one file of equal shape a model."
        )
    return np.stack(each)


def _numbers(file: Path) -> tuple[list[int], str]:
    digits = "".join(c if c.isdigit() else " " for c in file.stem).split()
    return [int(number) for number in digits], file.name


def _margins(values: np.ndarray, labels: np.ndarray | None, where: str) -> np.ndarray:
    """[e p] from margins as they are, or logits [e p c] with labels [p]."""
    if values.ndim == 2:
        return np.asarray(values, np.float32)
    if values.ndim != 3:
        raise DataError(
            f"{where} has the shape {list(values.shape)}.",
            "Give margins [models, points] or logits [models, points, classes].",
        )
    if labels is None:
        raise DataError(f"{where} has logits, and no labels were given.", "Give the class of every point.")
    logits, y = checked_labels(values, labels)
    chosen = np.take_along_axis(logits, np.broadcast_to(y[:, None], (*logits.shape[:2], 1)), 2)[..., 0]
    others = np.where(np.arange(logits.shape[2]) == y[:, None], -np.inf, logits)
    return chosen - logsumexp(others, axis=2)


def forget_indices(path: str | Path, *, block: int = BLOCK) -> Int64[np.ndarray, " k"]:
    """Places of the forget set, from a file: .npy, a JSON list, or the JSON of data-unlearning-bench's language models,
    whose `batch_indices` number blocks of tokens; other text files have numbers between commas or spaces.

    Args:
        path: the file.
        block: tokens in a block of `batch_indices`.

    Raises DataError if it cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            found = json.loads(path.read_text("utf-8"))
            if isinstance(found, dict):
                steps = np.asarray(found["batch_indices"], np.int64)
                return (steps[:, None] * block + np.arange(block)).ravel()
        else:
            found = path.read_text("utf-8").replace(",", " ").split()
        values = np.asarray(found)
        whole = values.astype(np.int64)
        if values.ndim != 1 or (values.dtype.kind == "f" and (values != whole).any()):
            raise ValueError("they are not a list of whole numbers")
        return whole
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no forget indices: {error}.", "Give an .npy, .json or .txt of indices.") from error
