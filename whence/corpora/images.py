"""Images of one's own, as an image classifier reads them: pixels by its own processor, classes by its own names.

A folder with a folder per class (the layout `imagefolder`), or rows with the columns `image` and `label`: of a data set
of Hugging Face, or of a table of files. An image is decoded when it is read, and turned as its EXIF data say; all of
them are held in memory if they take little.
"""

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples
from whence.cache.model.ragged import Ragged, Spool, Stacked

from ..files import IMAGE_COLUMNS, Row, arrow_batches, read_rows

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images, with their labels
HELD = 1 << 28  # bytes of pixels that are held in memory; of more, each is decoded whenever it is read
BLANK = 32  # pixels along a side of an image before it is processed
SIDE = 96  # pixels of a report's thumbnail
FOLDERS = "Give a folder with a folder of images per class, or rows with `image` and `label`."


@dataclass(frozen=True, eq=False)
class ImageReader:
    """How an image classifier reads images.

    Args:
        processor: of transformers; it makes pixels of an image.
        classes: numbers of the model's classes by name, as in its configuration's `label2id`.
        channels: of the pixels, 1 or 3.
    """

    processor: Any
    classes: Mapping[str, int]
    channels: int = 3

    def pixels(self, image: "Image") -> Float[np.ndarray, "c h w"]:
        """An image as the model's input, in float32."""
        given: dict[str, Any] = {"images": image.convert("RGB")}
        if self.channels == 1:
            given = {"images": np.asarray(image.convert("L"))[None], "input_data_format": "channels_first"}
        return np.asarray(self.processor(**given, return_tensors="np")["pixel_values"][0], np.float32)

    def blank(self) -> Float[np.ndarray, "c h w"]:
        """A black image as the model's input."""
        from PIL import Image

        return self.pixels(Image.new("RGB", (BLANK, BLANK)))

    @cached_property
    def names(self) -> dict[int, str]:
        return {number: name for name, number in self.classes.items()}

    def number(self, label: Any, known: Sequence[str] | None, place: str) -> int:
        """The class of a label: a name, or a number.

        Args:
            label: of a row.
            known: names of the data's own numbers, if they have some.
            place: where the row is, for errors.

        Raises DataError for what is no class of the model.
        """
        unnamed = all(re.fullmatch(r"LABEL_[0-9]+", name) for name in self.classes)
        whole = not isinstance(label, bool) and re.fullmatch("[0-9]{1,9}", str(label).strip()) is not None
        if whole and known is not None and not unnamed and int(label) < len(known):
            label, whole = known[int(label)], False
        if isinstance(label, str) and label in self.classes:
            return self.classes[label]
        if whole and int(label) in self.names:
            return int(label)
        few = ", ".join(map(repr, list(self.classes)[:5])) + (", ..." if len(self.classes) > 5 else "")
        if label is None or label == "":
            raise DataError(f"{place} has no label.", FOLDERS)
        cure = "Name the classes of the data as the model does, or by its numbers"
        if unnamed:
            cure = f"Name its classes in its config.json (id2label, label2id), or name those of the data {few} or 0, 1"
        raise DataError(f"{place}: {label!r} is no class of the model, which has {few}.", f"{cure}.")


@dataclass(frozen=True, eq=False)
class Picture:
    """An encoded image: a file, or a row of bytes. As text it is its name."""

    name: str
    place: str
    file: str = ""
    rows: Ragged | Sequence[np.ndarray] = ()
    row: int = 0

    def __str__(self) -> str:
        return self.name

    def open(self) -> "Image":
        """The image, upright. Raises DataError, with its place, if it cannot be decoded."""
        from PIL import Image, ImageOps

        try:
            source = self.file or io.BytesIO(np.asarray(self.rows[self.row], np.uint8).tobytes())
            with Image.open(source) as image:
                found = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            said = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"{self.place}: the image cannot be read ({said}).", "Replace it, or remove it.") from error
        if found.mode.startswith(("I", "F")):  # which PIL would cut at 255
            raise DataError(
                f"{self.place}: pixels of more than 8 bits ({found.mode}).", "Save it with 8 bits a channel."
            )
        return found

    def thumbnail(self) -> str:
        """The image in small, as the address of an HTML image."""
        small, encoded = self.open().convert("RGB"), io.BytesIO()
        small.thumbnail((SIDE, SIDE))
        small.save(encoded, "PNG")
        return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


@dataclass(frozen=True, eq=False)
class _Pixels:
    """row -> what the model reads of its picture."""

    reader: ImageReader
    pictures: Sequence[Picture]

    @cached_property
    def first(self) -> np.ndarray:
        return self.of(self.pictures[0])

    def of(self, picture: Picture) -> np.ndarray:
        try:
            return self.reader.pixels(picture.open())
        except DataError:
            raise
        except Exception as error:
            cause = f"{picture.place}: the image processor fails: {type(error).__name__}: {error}."
            raise DataError(cause, "Look at the image, and at preprocessor_config.json.") from error

    def __call__(self, row: int) -> np.ndarray:
        found = self.of(self.pictures[row])
        if found.shape != self.first.shape:
            raise DataError(
                f"{self.pictures[row].place} has pixels of the shape {list(found.shape)}, the first image has "
                f"{list(self.first.shape)}.",
                "The model's image processor keeps the shape of an image: let it crop, or give images of one size.",
            )
        return found


def listed_images(source: Path, split: str) -> Iterator[Row] | None:
    """The images of a folder as rows `id` (the path in the folder), `image` and `label` (the name of the folder that
    it is in), or the rows of its table of labels (`TABLES`). If classes are in folders of splits, those of one split.
    None for anything else. Raises DataError for a folder of splits without this one."""
    if not source.is_dir() or any((source / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return None
    table = next((source / name for name in TABLES if (source / name).is_file()), None)
    if table is not None:
        return read_rows(table)
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
    if not files:
        return None
    inside = [file.relative_to(source).parts for file in files]
    if all(len(parts) > 2 for parts in inside) and (splits := sorted({parts[0] for parts in inside})):
        if split not in splits:
            found = ", ".join(splits)
            raise DataError(f"{source} has folders in folders: {found}.", "Give the folder with a folder per class.")
        return listed_images(source / split, split)
    return (
        Row(
            {"id": "/".join(parts), "image": str(file.absolute()), "label": parts[-2] if len(parts) > 1 else None},
            str(file),
        )
        for file, parts in zip(files, inside)
    )


def with_pictures(rows: Iterator[Row], source: Path) -> list[Row]:
    """Rows with a `Picture` each as `image`. Names of files are relative to the folder of the source. Encoded images
    that are in the rows go to a spool. Raises DataError for a row without an image."""
    folder = source if source.is_dir() else source.parent
    spool, found, inline = Spool("u1"), list[tuple[Row, str]](), list[int]()
    for row in rows:
        value: Any = next((row.values[name] for name in IMAGE_COLUMNS if row.values.get(name) is not None), None)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if hasattr(value, "save"):  # decoded by the library of a data set
            value.save(encoded := io.BytesIO(), "PNG")
            value = encoded.getvalue()
        if isinstance(value, bytes):
            inline.append(len(found))
            spool.append(np.frombuffer(value, np.uint8))
            found.append((row, ""))
        elif isinstance(value, str):
            found.append((row, str(folder / value)))
        else:
            raise DataError(f"{row.place} has no image.", f"{FOLDERS} Its columns: {', '.join(row.values) or 'none'}.")
    encoded_rows, places = spool.rows(), dict(zip(inline, range(len(inline))))
    out = []
    for number, (row, file) in enumerate(found):
        texts = (row.values.get(name) for name in IMAGE_COLUMNS)
        given = row.values.get("id", next((text for text in texts if isinstance(text, str)), None))
        name = f"image {number}" if given is None else str(given)
        inside = {"rows": encoded_rows, "row": places[number]} if number in places else {"file": file}
        values = {name: value for name, value in row.values.items() if name not in IMAGE_COLUMNS}
        out.append(Row({**values, "image": Picture(name, row.place, **inside)}, row.place))
    return out


def image_examples(rows: Sequence[Row], reader: ImageReader, known: Sequence[str] | None) -> Examples:
    """Rows with pictures and labels as examples for `Classification`: pixels `x` [c h w] and class `y`.

    Args:
        rows: of `with_pictures`.
        reader: of the model.
        known: names of the data's own numbers of classes, if they have some.
    """
    y = np.array([reader.number(row.values.get("label"), known, row.place) for row in rows], np.int64)
    pictures = [row.values["image"] for row in rows]
    read, all_rows = _Pixels(reader, pictures), np.arange(len(rows))
    x: Any = Stacked(read, all_rows, read.first.shape, read.first.dtype)
    x = x.whole() if read.first.nbytes * len(rows) <= HELD else x
    about = {"title": list(map(str, pictures)), "text": [reader.names[c] for c in y.tolist()], "image": pictures}
    return Examples({"x": x, "y": y}, all_rows, about)


def class_names(source: str, column: str) -> list[str] | None:
    """The names that a data set of Hugging Face gives to the numbers of a column; None if it gives none."""
    path, features = Path(source), None
    if path.exists():
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".arrow", ".parquet"))
        for file in files[:1]:
            about = json.loads((_schema(file).metadata or {}).get(b"huggingface", b"{}"))
            features = about.get("info", {}).get("features")
    else:
        from datasets import load_dataset_builder

        repository, _, config = source.partition(":")
        features = load_dataset_builder(repository, config or None).info.features
    found = (features or {}).get(column)
    return found.get("names") if isinstance(found, dict) else getattr(found, "names", None)


def _schema(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_schema(file)
    batches = arrow_batches(file) if file.suffix == ".arrow" else iter(())
    return next((batch.schema for batch in batches), pyarrow.schema([]))
