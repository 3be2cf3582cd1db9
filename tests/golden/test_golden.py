"""What commit ef539b1 computed, under the keys that it gave: computed again, and read from the store that it wrote.

A name with " + " in it is an entry that is kept on the way to another. What each name is, the files that registry.py
names say. Entries whose kind has another name since (FORMERLY) have another key; the old ones are found all the same.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from whence.cache import Store
from whence.cache.model import fingerprint, forward
from whence.cache.store.keys import key_of
from whence.cache.store.layout import FORMERLY, KINDS
from whence.cache.store.maintenance import verify

from . import artefacts, frozen
from .artefacts import ARTEFACTS, DROPPED, OTHER_KEY, READERS, REDEFINED, RENAMED, Made

FROZEN = frozen.load()
STORED = [name for name, row in FROZEN.items() if row.stored]


class Today:
    """The artefacts as this version computes them, each once, in one store."""

    def __init__(self, folder: Path):
        self.store = Store(folder)
        self._made: dict[str, Made] = {}

    def made(self, name: str) -> Made:
        if name not in self._made:
            self._made[name] = ARTEFACTS[name](self.store)
        return self._made[name]


def identity(name: str) -> tuple[str, str]:
    """(kind, key) of an artefact as this version stores it."""
    row = FROZEN[name]
    kind = next((now for prefix, now in RENAMED.items() if name.startswith(prefix)), None)
    if kind is None or row.key != key_of(FORMERLY[kind], row.inputs):
        return row.kind, row.key
    return (kind if row.stored else row.kind), key_of(kind, row.inputs)


@pytest.fixture(scope="module", autouse=True)
def fingerprints_as_frozen() -> Iterator[None]:
    """A model's fingerprint says more of its forward pass now. With what it said then, every key is the frozen one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "forward_of", frozen.former_forward)
        yield


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Today:
    return Today(tmp_path_factory.mktemp("today"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return frozen.unpack(tmp_path_factory.mktemp("written"))


def test_an_entry_of_a_former_fingerprint_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed from another forward pass with the same weights cannot be excluded, so it is computed again."""
    monkeypatch.setattr(fingerprint, "forward_of", forward.forward_of)
    store, name = frozen.unpack(tmp_path), "attrib/identity/scores"
    assert store.has(FROZEN[name].kind, FROZEN[name].inputs)
    assert ARTEFACTS[name](store).key != FROZEN[name].key
    assert "built" in {event.what for event in store.events}


def test_everything_is_frozen() -> None:
    assert {name.split(" + ")[0] for name in FROZEN} == set(ARTEFACTS)
    assert {row.kind for row in FROZEN.values() if row.stored} == set(KINDS) - set(FORMERLY) - {"checks"}  # newer
    every, own = artefacts.every_method()
    assert own == every


@pytest.mark.parametrize("name", FROZEN)
def test_made_again(name: str, today: Today) -> None:
    """The same key, the same inputs in it, the same numbers."""
    expected, made, (kind, key) = FROZEN[name], today.made(name.split(" + ")[0]), identity(name)
    if name in REDEFINED:
        assert {part: frozen.shape_of(value) for part, value in made.values.items()} == expected.shapes
        with pytest.raises(AssertionError):
            frozen.compare(made.values, expected, made_anew=True)
        return
    if name in OTHER_KEY:
        assert made.kind == kind
        assert made.key != key
        assert made.inputs != expected.inputs
        frozen.compare(made.values, expected, made_anew=True)
        return
    if " + " not in name:
        assert (made.kind, made.key) == (kind, key)
        if made.kind != "values":
            assert made.inputs == expected.inputs
        frozen.compare(made.values, expected, made_anew=True)
    if expected.stored:
        assert today.store.header(kind, key).inputs == expected.inputs
        own = frozen.entry_arrays(today.store, kind, key)
        parts = {part for part in expected.values if part.startswith("stored ")}
        assert set(own) == parts - DROPPED.get(name, set())
        frozen.compare(own, expected, made_anew=True)


@pytest.mark.parametrize("name", STORED)
def test_read_from_its_key(name: str, written: Store) -> None:
    expected = FROZEN[name]
    assert written.header(expected.kind, expected.key).inputs == expected.inputs
    assert written.open(identity(name)[0], expected.inputs).key == expected.key
    assert verify(written, expected.kind, expected.key) == []
    own = frozen.entry_arrays(written, expected.kind, expected.key)
    assert set(own) == {part for part in expected.values if part.startswith("stored ")}
    frozen.compare(own, expected, made_anew=False)


@pytest.mark.parametrize("name", READERS)
def test_read_by_its_own_reader(name: str, written: Store) -> None:
    found = READERS[name](written, FROZEN[name].key)
    assert found
    frozen.compare(found, FROZEN[name], made_anew=True)


@pytest.mark.parametrize("name", [name for name in STORED if " + " not in name and name not in OTHER_KEY])
def test_asking_again_is_a_hit(name: str, written: Store) -> None:
    """Nothing is computed, nothing is added, and the answer is the frozen one."""
    before, asked = contents(written), len(written.events)
    made = ARTEFACTS[name](written)
    events = [event for event in written.events[asked:] if event.kind != "checks"]
    assert {event.what for event in events} == {"hit"}
    assert (made.kind, made.key) in [(event.kind, event.key) for event in events]
    assert made.key == FROZEN[name].key
    assert contents(written) == before
    frozen.compare(made.values, FROZEN[name], made_anew=True)


def contents(store: Store) -> set[tuple[str, str]]:
    """Entries but for verdicts of checks, which the version before did not have."""
    return {(kind, key) for kind, key in store.contents() if kind != "checks"}


def test_a_condensation_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    store = frozen.unpack(tmp_path)
    artefacts.condensed_further(store)
    hit, *others = store.events
    assert (hit.what, hit.key) == ("hit", FROZEN["condense/dcc"].key)
    assert [event.what for event in others] == ["built"]


def test_files_are_read(tmp_path: Path) -> None:
    """Dictionaries, condensed sets and unfinished builds that lie outside of a store."""
    frozen.unpack(tmp_path)
    for name, values in artefacts.read_files(tmp_path / frozen.FILES).items():
        frozen.compare(values, FROZEN[name], made_anew=True)
