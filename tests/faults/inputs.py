"""Two hundred requests that cannot be right: each a typed error, none leaving half an entry behind."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from whence.cache import ArraySpec, Store, errors
from whence.cache.store.layout import DTYPES, parse_dtype

from .world import build, check, scratch, system

NAMES = ["", "\ud800", 3, None, b"x"]
STRANGE = ["..", ".", "../../x", "/etc/passwd", "a/../../b", "c", "zarr.json", "C:\\x", "nul\0l", "é", "\u202egnp",
           "a" * 500, " ", "%2E%2E", "__x", "CON", "\n", "𝔘", "x\u0301", ".hidden", "-rf", "~", "a/b", "*"]  # fmt: skip
DTYPES_REFUSED = ["complex64", "complex128", "object", "S3", "U3", "datetime64[s]", "float8_e4m3fn", "str", "V2", ""]


def cases() -> Iterator[tuple[str, Callable[[Store], Any]]]:
    """(what it is, a request that must fail)"""

    def written(stored: str, given: Any) -> Callable[[Store], Any]:
        def ask(store: Store) -> None:
            with store.writer("bank", {}, {"x": ArraySpec((4, 3), stored)}) as w:
                w.write(w.grid.shard(0), {"x": given})

        return ask

    for stored, given in itertools.permutations(DTYPES, 2):
        yield f"{given} into {stored}", written(stored, np.zeros((4, 3), parse_dtype(given)))
    for shape in [(3, 3), (5, 3), (4,), (4, 2), (4, 3, 1), (0, 3), ()]:
        yield f"rows of shape {shape}", written("float32", np.zeros(shape, np.float32))
    for value in (None, "text", [[1.0, 2], [3]], {"a": 1}, object()):
        yield f"rows that are {value!r}", written("float32", value)
    for dtype in DTYPES_REFUSED:
        yield f"dtype {dtype}", lambda store, dtype=dtype: store.put("bank", {}, {"x": _of(dtype)})
    for name in NAMES:
        yield f"array name {name!r}", lambda store, name=name: store.put("bank", {}, {name: np.zeros(2)})
    for kind in ("", "banks", "../bank", "BANK", "bank/x", "v1"):
        yield f"kind {kind!r}", lambda store, kind=kind: store.put(kind, {}, {"x": np.zeros(2)})
    for value in (float("nan"), float("inf"), object(), {1: 2}, b"x", 1j, np.array([np.nan]), lambda: 0):
        yield f"input {value!r}", lambda store, value=value: store.put("bank", {"x": value}, {"x": np.zeros(2)})
    for key in ("", "zz", "../../etc", "a" * 63 + "/", "g" * 64, "0" * 64, "0" * 65, "\0"):
        yield f"key {key!r}", lambda store, key=key: store.get(key)
    for rows in (0, -1, -5):
        yield f"shards of {rows} rows", lambda store, rows=rows: _writer(store, {"x": ArraySpec((4,))}, rows)
    yield "no arrays", lambda store: store.put("bank", {}, {})
    yield "two names for one file", lambda store: store.put("bank", {}, {"a": np.zeros(1), "A": np.zeros(1)})
    yield (
        "shards of arrays without common rows",
        lambda store: _writer(store, {"x": ArraySpec((4,)), "y": ArraySpec((5,))}, 2),
    )
    for shape in ((-1,), (2, -3)):
        yield f"shape {shape}", lambda store, shape=shape: ArraySpec(shape)
    yield "axis names that do not fit", lambda store: ArraySpec((2, 3), "float32", ("n",))
    yield "missing array", lambda store: _writes(store, {})
    yield "unknown array", lambda store: _writes(store, {"x": np.zeros((4,), "f4"), "y": np.zeros((4,), "f4")})
    yield "a petabyte", lambda store: _writer(store, {"x": ArraySpec((10**9, 10**6))}, None)
    yield "sealing what is not written", lambda store: _seals(store)
    for code in (errno.EROFS, errno.EACCES, errno.EPERM):
        yield f"a store that refuses with {errno.errorcode[code]}", lambda store, code=code: _refused(store, code)


def _of(dtype: str) -> np.ndarray:
    if dtype == "":
        return np.zeros(2, np.dtype([("a", "f4")]))
    return np.zeros(2, ml_dtypes.float8_e4m3fn if dtype == "float8_e4m3fn" else dtype)


def _writer(store: Store, arrays: dict, shard_rows: int | None) -> None:
    with store.writer("bank", {}, arrays, shard_rows):
        pass


def _writes(store: Store, arrays: dict) -> None:
    with store.writer("bank", {}, {"x": ArraySpec((4,))}) as w:
        w.write(w.grid.shard(0), arrays)


def _seals(store: Store) -> None:
    with store.writer("bank", {}, {"x": ArraySpec((4,))}) as w:
        w.seal()


def _refused(store: Store, code: int) -> None:
    def before(name: str, arguments: tuple) -> None:
        if name in ("mkdir", "rename") or (name == "open" and arguments[1] & os.O_CREAT):
            raise OSError(code, os.strerror(code))

    with system(before):
        build(store, 0)


def bad_inputs(long: bool) -> str:
    """Wrong dtypes, shapes, names, keys, kinds, settings, and stores that cannot be written."""
    count = 0
    with scratch() as root:
        for number, (what, ask) in enumerate(cases()):
            store = Store(root / str(number))
            try:
                ask(store)
            except errors.WhenceError as error:
                complete = bool(error.cause and error.cure)
            except Exception as error:
                if not type(error).__name__.endswith(
                    ("TypeCheckError", "HintParamViolation")
                ):  # the tests' own check of annotations
                    raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            else:
                raise AssertionError(f"{what} was accepted")
            assert complete, f"{what}: an error without cause or cure"
            assert not any(store.has(kind, store.header(kind, key).inputs) for kind, key in store.contents()), what
            count += 1
        strange = _strange_names(Store(root / "names"))
        links = _without_links(Store(root / "links"))
    return f"{count} bad requests refused, no half entry; {strange} strange names kept inside the root; {links}"


def _strange_names(store: Store) -> int:
    for name in STRANGE:
        rows = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
        entry = store.put("bank", {"name": name}, {name: rows})
        assert entry.read(name).tobytes() == rows.tobytes()
        assert entry[name][...].tobytes() == rows.tobytes()
        store.name(name, entry)
        assert store.get(name).key == entry.key
    root = os.path.realpath(store.root)
    for folder, _, files in os.walk(store.root):
        assert os.path.realpath(folder).startswith(root)
        assert all(len(file.encode()) < 255 and "\0" not in file for file in files)
    return len(STRANGE)


def _without_links(store: Store) -> str:
    """A mount that has no hard links."""

    def before(name: str, arguments: tuple) -> None:
        if name == "link":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with system(before):
        build(store, 0).close()
    check(store, 0, set(range(12)))
    return "a mount without links works"
