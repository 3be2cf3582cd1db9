"""Collection beside readers, writers and pins: a state machine that hypothesis drives."""

import os
import tempfile
import time

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from whence.cache import Entry, Store, errors
from whence.cache.store.keys import key_of
from whence.cache.store.layout import entry_path
from whence.cache.store.maintenance import collect, remove

from .world import SHARD_ROWS, SPECS, content, part

SEEDS = st.integers(0, 4)
DAY = 86400.0


class Collected(RuleBasedStateMachine):
    """Entries 0 to 4 of one store; what the test believes is there beside what is."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(dir=memory)
        self.store = Store(self.folder.name)
        self.complete: set[int] = set()
        self.pinned: set[int] = set()
        self.named: set[int] = set()
        self.old: set[int] = set()
        self.readers: list[tuple[int, Entry]] = []

    def key(self, seed: int) -> str:
        return key_of("gradients", {"seed": seed})

    @rule(seed=SEEDS, shards=st.integers(1, 12))
    def write(self, seed: int, shards: int) -> None:
        """Build some shards of an entry, and seal it when they are all there."""
        with self.store.writer("gradients", {"seed": seed}, SPECS, SHARD_ROWS) as w:
            for shard, _ in zip(w.todo(), range(shards)):
                w.write(shard, part(seed, shard))
                gone = collect(self.store, older_than=-1.0, grace=-1.0)  # never what is being built
                self.forget({line.key for line in gone})
            assert w.complete or self.store.backend.exists(f"{entry_path('gradients', w.key)}/entry.json")
            if not w.complete and w.missing == 0:
                w.seal().close()
                self.complete.add(seed)
        self.old.discard(seed)

    def forget(self, keys: set[str]) -> None:
        for seed in range(5):
            if self.key(seed) in keys:
                assert seed not in self.pinned | self.named, "collection took what was pinned or named"
                assert seed not in {s for s, _ in self.readers}, "collection took what was open"
                self.complete.discard(seed)
                self.old.discard(seed)

    @rule(seed=SEEDS)
    def open(self, seed: int) -> None:
        try:
            self.readers.append((seed, self.store.open("gradients", {"seed": seed})))
            assert seed in self.complete
            self.old.discard(seed)
        except errors.NotCached:
            assert seed not in self.complete

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 100))
    def read_and_close(self, which: int) -> None:
        seed, entry = self.readers.pop(which % len(self.readers))
        assert entry.read("x").tobytes() == content(seed)["x"].tobytes()
        entry.close()

    @rule(seed=SEEDS, on=st.booleans())
    def pin(self, seed: int, on: bool) -> None:
        if seed in self.complete:
            self.store.pin("gradients", self.key(seed), on)
            (self.pinned.add if on else self.pinned.discard)(seed)

    @rule(seed=SEEDS)
    def name(self, seed: int) -> None:
        if seed in self.complete:
            with_entry = self.store.open("gradients", {"seed": seed})
            self.store.name("the one", with_entry)
            with_entry.close()
            self.named = {seed}
            self.old.discard(seed)

    @rule(seed=SEEDS)
    def grow_old(self, seed: int) -> None:
        path = f"{self.store.root}/{entry_path('gradients', self.key(seed))}/entry.json"
        if os.path.exists(path):
            when = time.time() - 40 * DAY
            os.utime(path, (when, when))
            self.old.add(seed)

    @rule()
    def collect_old(self) -> None:
        gone = {line.key for line in collect(self.store, older_than=30 * DAY)}
        assert gone <= {self.key(seed) for seed in self.old}, "collection took what was used lately"
        spared = self.pinned | self.named | {seed for seed, _ in self.readers}
        assert {self.key(seed) for seed in self.old - spared} <= gone, "collection left what nobody needs"
        self.forget(gone)

    @rule(seed=SEEDS)
    def remove(self, seed: int) -> None:
        try:
            remove(self.store, "gradients", self.key(seed))
            self.forget({self.key(seed)})
        except errors.StoreError:
            pass

    @invariant()
    def what_is_complete_is_there(self) -> None:
        for seed in range(5):
            assert self.store.has("gradients", {"seed": seed}) == (seed in self.complete)

    def teardown(self) -> None:
        for seed, entry in self.readers:
            assert entry.read("x").tobytes() == content(seed)["x"].tobytes()
            entry.close()
        self.folder.cleanup()


def collection(long: bool) -> str:
    """Random orders of building, reading, pinning, naming, ageing, removing and collecting."""
    examples, steps = (300, 50) if long else (12, 25)
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Collected, settings=options)
    return f"{examples} histories of up to {steps} steps: nothing pinned, named, open or being built was taken"
