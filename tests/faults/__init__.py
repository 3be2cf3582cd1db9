"""Fault injection for the store: a short form in the test suite, the long form by `python -m tests.faults`.

A proof is a function of `long` that returns its figures or fails.
"""

from collections.abc import Callable

from .damage import corruption
from .disk import disk_full, power_cuts
from .inputs import bad_inputs
from .kills import build_races, every_system_call, two_worker_kills, worker_counts, writer_kills
from .machine import collection
from .workers import workers_die_and_hang

PROOFS: dict[str, Callable[[bool], str]] = {
    proof.__name__: proof
    for proof in (
        writer_kills,
        two_worker_kills,
        every_system_call,
        corruption,
        disk_full,
        power_cuts,
        build_races,
        collection,
        worker_counts,
        workers_die_and_hang,
        bad_inputs,
    )
}
