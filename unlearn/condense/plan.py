"""How long a condensation will take: a few of its steps are run, timed, and thrown away."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from whence.cache import Store
from whence.cache.jobs.progress import duration

from .axes import on
from .condensing import MOST_AT_ONCE, Job, begin
from .outer import Rates, program
from .pool import Pool
from .settings import Settings

ENOUGH = 0.5  # seconds of steps that are timed


@dataclass(frozen=True)
class Plan:
    """How long condensing takes on this machine.

    Args:
        outer, done: outer steps in all, and those that a checkpoint in the store has.
        warm: how many of the others match class by class.
        compiling, step, warm_step: seconds: of compiling once, and of one outer step of each kind.
    """

    outer: int
    done: int
    warm: int
    compiling: float
    step: float
    warm_step: float

    @property
    def seconds(self) -> float:
        """Of all that is left."""
        if self.done == self.outer:
            return 0.0
        return self.compiling + self.warm * self.warm_step + (self.outer - self.done - self.warm) * self.step

    def __str__(self) -> str:
        if self.done == self.outer:
            return "The store has the result: nothing is left to compute."
        left = self.outer - self.done
        before = f"; {self.done} of {self.outer} are in the store" if self.done else ""
        lines = [f"{left} outer steps: about {duration(self.seconds)} on this machine{before}"]
        lines.append(f"  compiling, once: {duration(self.compiling)}")
        if self.warm:
            lines.append(f"  {self.warm} steps that match class by class: {self.warm_step:.2g} s each")
        if left > self.warm:
            lines.append(f"  {left - self.warm} steps of the method: {self.step:.2g} s each")
        return "\n".join(lines)


def plan(
    pool: Pool,
    settings: Settings,
    seeds: Sequence[int] = (0,),
    store: Store | None = None,
    *,
    device: str | None = None,
) -> Plan:
    """How long `condense` with the same arguments will take.

    The program is compiled, and outer steps of each kind are timed, for half a second or one step if that is longer.
    They are not stored. Experts (mtt, ast) are trained if the store lacks them, and stored.

    Args:
        pool, settings, seeds, store, device: as of `condense`.
    """
    pool.check(settings.per_class)
    with on(device):
        at, parts, reals, keys, _ = begin(Job(settings, pool, tuple(seeds)), store)
        left = settings.outer - at.done
        if not left:
            return Plan(settings.outer, at.done, 0, 0.0, 0.0, 0.0)
        run, rates = program(settings, MOST_AT_ONCE), Rates.of(settings)

        def seconds(first: int, count: int) -> float:
            clock = time.perf_counter()
            jax.block_until_ready(run(rates, parts, reals, at.states, keys, jnp.asarray(first), jnp.asarray(count)))
            return time.perf_counter() - clock

        def each(first: int, most: int) -> float:
            count, took = 1, seconds(first, 1)
            while took < ENOUGH and 2 * count <= min(most, MOST_AT_ONCE):
                count *= 2
                took = seconds(first, count)
            return took / count

        warm_until = (settings.warm_outer or 0) if settings.warms_up else 0
        warm = max(0, min(warm_until, settings.outer) - at.done)
        compiling = seconds(at.done, 0)
        warm_step = each(at.done, warm) if warm else 0.0
        step = each(at.done + warm, left - warm) if left > warm else 0.0
        return Plan(settings.outer, at.done, warm, compiling, step, warm_step)
