"""What the values of options may be: checked when a command line or a job file is read, before anything runs.

Every number is finite and at least 0 and every text is Unicode; an option's annotation narrows or widens that.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from whence.cache.display.files import ENDINGS
from whence.cache.errors import UsageError

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Allowed:
    """Which values an option takes: a test of one value, and what it is in words."""

    test: Callable[[Any], bool]
    wanted: str


def amount(text: str, units: Mapping[str, int]) -> float | None:
    """A number with a unit, such as 4GB or 12h, in the smallest unit; None for any other text."""
    plain = re.sub(r"(?<=[a-z])i?b$|b$", "", text.strip().lower()) if units is SIZES else text.lower()
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)\s*([a-z]*)\s*", plain)
    return float(found[1]) * units[found[2]] if found and found[2] in units else None


def ending(*endings: str) -> Allowed:
    """Names of files with one of these endings: what cannot be written is refused before the work."""
    return Allowed(lambda path: path.suffix in endings, f"a name that ends in {', '.join(endings)}")


def _is_cluster(text: str) -> bool:
    return bool(re.fullmatch(r"inline|local:[1-9][0-9]{0,4}|(dask|slurm):\S.*", text))


Signed = Allowed(lambda value: True, "a finite number")
Count = Annotated[int, Allowed(lambda value: value >= 1, "at least 1")]
Positive = Annotated[float, Allowed(lambda value: value > 0, "above 0")]
Share = Annotated[float, Allowed(lambda value: 0 <= value <= 1, "from 0 to 1")]
Size = Annotated[str, Allowed(lambda text: bool(amount(text, SIZES)), "a size such as 4GB or 500MB")]
Age = Annotated[str, Allowed(lambda text: amount(text, AGES) is not None, "an age such as 30d or 12h")]
Workers = Annotated[str, Allowed(_is_cluster, "inline, local:2, dask:ADDRESS or slurm:FILE")]
Device = Annotated[
    str,
    Allowed(
        lambda text: bool(re.fullmatch(r"cpu|(cuda|mps|xpu|hpu)(:[0-9]{1,3})?", text)),
        "cpu, cuda or cuda:1 (one device; if the model does not fit, --dtype bfloat16 halves it, and --device-map auto "
        "spreads it over several)",
    ),
]


Table = Annotated[Path, ending(*ENDINGS)]
Array = Annotated[Path, ending(".npz", *ENDINGS)]
Page = Annotated[Path, ending(".html", ".htm")]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a pretrained model is loaded. The same in a command's options and in Python: `load_model(name,
    loading=Loading(dtype="bfloat16"))`."""

    device: Device | None = None
    """The device of the model: cpu, cuda, cuda:1."""
    device_map: Literal["auto", "balanced"] | None = None
    """Spread the model over all devices (accelerate)."""
    dtype: Dtype | None = None
    """Type of the model's parameters; as loaded by default."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    base: str | None = None
    """The model that a folder of adapters (PEFT) is for; by default the one that its adapter_config.json names."""
    trust_remote_code: bool = False
    """Run the code that a model brings with it. Read that code first."""
    allow_pickle: bool = False
    """Read weights that are a torch pickle, tensors only; by default safetensors only."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the data's columns, if they are not the usual ones."""

    text_column: str | None = None
    """Column of the text; the first of text, content, document by default."""
    title_column: str | None = None
    """Column of the title; `title` by default."""
    id_column: str | None = None
    """Column of the ids; `id` by default."""
    image_column: str | None = None
    """Column of the image, of data for an image classifier; `image` by default."""
    label_column: str | None = None
    """Column of the class; `label` by default."""
    prompt_column: str | None = None
    """Column of the prompt, of --queries if it is given, else of the data; `prompt` by default."""
    completion_column: str | None = None
    """Column of the completion, likewise; `completion` by default."""

    @property
    def columns(self) -> dict[str, str]:
        """The names used here -> the data's own, of those that are given."""
        names = ("text", "title", "id", "image", "label", "prompt", "completion")
        found = {name: getattr(self, f"{name}_column") for name in names}
        return {name: own for name, own in found.items() if own is not None}

    @property
    def data_columns(self) -> dict[str, str]:
        """Those of the data."""
        return self.columns


def check(command: Any, prefix: str = "") -> None:
    """Raise UsageError for the first option whose value is not allowed, by name."""
    hints = typing.get_type_hints(type(command), include_extras=True)
    for field in dataclasses.fields(command):
        value, rules = getattr(command, field.name), list(_rules(hints[field.name]))
        if dataclasses.is_dataclass(value):
            check(value, f"{prefix}{field.name}.")
        for one in value if isinstance(value, tuple) else (value,):
            wanted = _wanted(one, rules)
            if wanted:
                name = f"--{prefix}{field.name}".replace("_", "-")
                raise UsageError(f"{name} cannot be {_plain(one)!r}.", f"Give {wanted}.")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _wanted(value: Any, rules: list[Allowed]) -> str:
    """What the value is to be, "" if it is that."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "text in UTF-8"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not (math.isfinite(value) and abs(value) < 2**63):
        return "a finite number of at most 63 bits"
    if number and value < 0 and not rules:
        return "a number that is not negative"
    return "" if value is None else next((rule.wanted for rule in rules if not rule.test(value)), "")


def _rules(hint: Any) -> Iterator[Allowed]:
    """The rules in an annotation, those of `X | None` and `tuple[X, ...]` included."""
    for part in typing.get_args(hint):
        if isinstance(part, Allowed):
            yield part
        else:
            yield from _rules(part)
