"""What is built is stored under a key that every setting of its builder enters, and so is what a build resumes from.

A builder is a row of `EXAMPLES`; a field that changes nothing of what is stored would be listed in `CHANGE_NOTHING`.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decomp.test_builders import stream
from whence.cache import Store
from whence.cache.errors import UsageError
from whence.cache.store.bfloat16 import BFLOAT16
from whence.cache.store.keys import key_of
from whence.decomp import BUILDERS, ITDA, SAE, Activations, Calibrated, KMeans, Partition, Random
from whence.decomp.activations import Origin
from whence.decomp.builders import MPSAE
from whence.decomp.builders.builder import Source
from whence.decomp.files import from_entry, put

EXAMPLES = {
    "itda": ITDA(size=40, k=3, seeds=8),
    "calibrated": Calibrated(ITDA(size=40, k=3)),
    "random": Random(size=40, k=3),
    "partition": Partition(size=40),
    "kmeans": KMeans(size=40, k=3),
    "sae": SAE(size=40, k=3, rate=0.01, tokens=500),
    "mpsae": MPSAE(ITDA(size=40, k=3), batch=64, tokens=500),
}
CHANGE_NOTHING: dict[str, tuple[str, ...]] = {}
OTHER = {
    "seeding": "none",
    "pursuit": "orthogonal",
    "kind": "batchtopk",
    "builder": ITDA(size=50, k=3),
    "start": ITDA(size=50, k=3),
}
FIELDS = [(name, each.name) for name, builder in EXAMPLES.items() for each in fields(builder)]


def changed(builder: Any, field: str) -> Any:
    """The builder with another value in this field."""
    value = getattr(builder, field)
    if field in OTHER:
        return replace(builder, **{field: OTHER[field]})
    if isinstance(value, bool):
        return replace(builder, **{field: not value})
    return replace(builder, **{field: value * 0.5 if isinstance(value, float) else value + 1})


def known(rows: int = 300, data: str = "d") -> Activations:
    acts = stream(t=rows)
    return replace(acts, origin=Origin("here", "m", data))


def test_every_builder_has_a_row() -> None:
    assert {name: type(builder) for name, builder in EXAMPLES.items()} == dict(BUILDERS)


def test_every_builder_is_documented_and_on_the_command_line() -> None:
    from whence.commands.decomp import Build

    document = (Path(__file__).parents[2] / "docs" / "decomp.md").read_text()
    for name, builder in BUILDERS.items():
        assert f"| `{name}` | `{builder.__name__}` |" in document
        assert isinstance(Build(builder=name, size=40, k=3)._builder(), builder if name != "itda" else Calibrated)
    with pytest.raises(UsageError, match="There are itda"):
        Build(builder="none")._builder()


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_changes_the_key(name: str, field: str) -> None:
    source = Source(known(), known().origin)
    keys = {key_of("dictionary", b.inputs(source)) for b in (EXAMPLES[name], changed(EXAMPLES[name], field))}
    assert len(keys) == (1 if field in CHANGE_NOTHING.get(name, ()) else 2)


@pytest.mark.parametrize("field", [each.name for each in fields(ITDA)])
def test_a_build_resumes_only_under_the_same_settings(field: str, tmp_path) -> None:
    builder, file = EXAMPLES["itda"], tmp_path / "unfinished"
    builder = replace(builder, size=200, batch=64)

    def cut_off():
        yield from known(200).batches(100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build(cut_off(), checkpoint=file, every=1)
    with pytest.raises(UsageError, match="other settings"):
        changed(builder, field).build(known().batches(100), checkpoint=file)


def test_the_rows_are_part_of_the_key() -> None:
    acts, builder = known(), EXAMPLES["random"]
    several = [
        acts,
        acts.without(positions=[0]),
        acts.without(positions=[1]),
        acts.shuffled(),
        known(data="other"),
        Activations.of(acts.x, acts.document, acts.position),
        Activations.of(np.asarray(acts.x) + 1, acts.document, acts.position),
    ]
    keys = {key_of("dictionary", builder.inputs(Source(each, each.origin))) for each in several}
    assert len(keys) == len(several)


def test_keys_are_those_of_stores_on_disk() -> None:
    """As they were written when a function of its own stored what builders built."""
    inputs = ITDA(size=24, k=3).inputs(Source(known(), known().origin, selection={"skip": [0]}))
    assert inputs == {
        "builder": {
            "class": "ITDA", "size": 24, "k": 3, "unexplained": 0.1, "seeding": "stream", "seeds": None,
            "pursuit": "matching", "batch": 512,
        },
        "origin": {"site": "here", "model": "m", "data": "d"},
        "skip": [0],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["itda", "random"])
def test_what_was_built_is_read_again(name: str, tmp_path, monkeypatch) -> None:
    store, builder = Store(tmp_path), EXAMPLES[name]
    built = builder.build(known(), store=store)
    monkeypatch.setattr(type(builder), "construct", lambda self, source: pytest.fail("built twice"))
    assert builder.build(known(), store=store).fingerprint == built.fingerprint


def test_a_stream_has_no_key(tmp_path) -> None:
    with pytest.raises(UsageError, match="more than once"):
        EXAMPLES["random"].build(known().batches(64), store=Store(tmp_path))
    with pytest.raises(UsageError, match="does not resume"):
        EXAMPLES["random"].build(known(), checkpoint=tmp_path / "unfinished")


def test_the_type_of_the_activations_is_part_of_the_key() -> None:
    acts = known()
    halves = replace(acts, x=np.asarray(acts.x).astype(BFLOAT16))
    for selection in (None, {"skip": [0]}):
        sources = [Source(each, each.origin, selection=selection) for each in (acts, halves)]
        one, other = (EXAMPLES["random"].inputs(source) for source in sources)
        assert other == {**one, "dtype": "bfloat16"}


def test_activations_of_an_unknown_origin_are_named_by_their_contents(tmp_path) -> None:
    builder, selection = EXAMPLES["random"], {"skip": [0]}
    acts = replace(known(), origin=Origin("here"))
    changed = replace(acts, x=np.asarray(acts.x) + 1)
    keys = {str(builder.inputs(Source(each, each.origin, selection=selection))) for each in (acts, changed)}
    assert len(keys) == 2
    with pytest.raises(UsageError, match="more than once"):
        EXAMPLES["itda"].build(known().batches(64), store=Store(tmp_path), selection=selection)
    named = {**selection, "model": "m", "data": "d"}
    EXAMPLES["itda"].build(known().batches(64), store=Store(tmp_path), selection=named)


def test_all_that_a_dictionary_is_enters_its_key_when_it_is_put(tmp_path) -> None:
    store, built = Store(tmp_path), EXAMPLES["itda"].build(known())
    others = [
        built, replace(built, k=2), replace(built, pursuit="orthogonal"), replace(built, settings={"by": "hand"}),
        replace(built, origin=Origin("elsewhere")),
    ]  # fmt: skip
    keys = [put(each, store).key for each in others]
    assert len(set(keys)) == len(others)
    assert [from_entry(store.get(key)).k for key in keys[:2]] == [3, 2]
    assert put(built, store).key == keys[0]


def test_a_build_resumes_only_on_the_same_rows(tmp_path) -> None:
    builder, file = ITDA(size=200, k=3, batch=64), tmp_path / "unfinished"
    acts = known(200)

    class Cut(Activations):
        def batches(self, size):
            yield from super().batches(100)
            raise KeyboardInterrupt

    for number, other in enumerate([acts.shuffled(), replace(acts, origin=Origin("here"))]):
        path = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            builder.build(Cut(**vars(acts)), checkpoint=path, every=1)
        with pytest.raises(UsageError, match="other settings or rows"):
            builder.build(other, checkpoint=path)
        builder.build(acts, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        builder.build(Cut(**vars(acts)), checkpoint=file, every=1, selection={"skip": [0]})
    with pytest.raises(UsageError, match="other settings or rows"):
        builder.build(acts, checkpoint=file, selection={"skip": [1]})
