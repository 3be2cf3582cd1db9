"""Condensing from start to end: chunks of outer steps, a bar, checkpoints in the store, and what to do when the
pixel step diverges."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from whence.cache import Store
from whence.cache.errors import Interrupted, NumericalError, UsageError
from whence.cache.jobs.progress import bar, duration, say
from whence.cache.jobs.signals import SignalWatch, watch_signals

from .axes import on
from .condensed import Condensed
from .methods.method import labels_of
from .networks import check_network
from .outer import Rates, State, program, start
from .pool import Pool, Reals
from .settings import Settings

MOST_AT_ONCE = 64
CHUNK_SECONDS = 1.0
KEEP_SECONDS = 60.0
KIND = "condensed"
EXPERTS = "model"


class Diverged(NumericalError):
    """The synthetic examples became non-finite. `last_good`: the sets before the step that diverged."""

    def __init__(self, cause: str, cure: str, last_good: "tuple[Condensed, ...]"):
        super().__init__(cause, cure)
        self.last_good = last_good


class Job(NamedTuple):
    """What is condensed, how, and for which seeds."""

    settings: Settings
    pool: Pool
    seeds: tuple[int, ...]

    def inputs(self, outer: int) -> dict[str, Any]:
        """What the sets after `outer` steps are computed from: how many are to come is no part of it."""
        settings = {name: value for name, value in self.settings.to_json().items() if name != "outer"}
        scaling = np.concatenate([self.pool.scaling.mean.ravel(), self.pool.scaling.spread.ravel()])
        return {
            "made": "condensed set",
            "settings": settings,
            "data": self.pool.fingerprint,
            "scaling": hashlib.sha256(scaling.astype("<f8").tobytes()).hexdigest(),
            "classes": self.pool.classes,
            "seeds": list(self.seeds),
            "outer": outer,
        }


class Progress(NamedTuple):
    """The state of a run: states of all seeds side by side, steps done, losses [outer e] so far."""

    states: State
    done: int
    losses: np.ndarray


def condense(
    pool: Pool,
    settings: Settings,
    seeds: Sequence[int] = (0,),
    store: Store | None = None,
    *,
    device: str | None = None,
    checkpoint: int = 100,
    quiet: bool = False,
) -> tuple[Condensed, ...]:
    """One synthetic set per seed, all computed side by side.

    Args:
        pool: the real examples.
        settings: what to condense and how.
        seeds: one set each.
        store: keeps a checkpoint every `checkpoint` outer steps, every minute, if a signal stops the run, and at the
            end; a run with the same settings, data and seeds resumes from the last one, also if only `outer` is larger.
        device: "cpu", "cuda", "cuda:1"; JAX's default if None.
        checkpoint: outer steps.
        quiet: show no progress bar.

    Raises DataError if a class has too few examples, ModelError if the network does not fit the data or mixes the
    examples of a batch, UsageError for equal seeds or a device that is not there, and Diverged if a pixel step becomes
    non-finite: the sets of the last good step are in it, and in the store.

    >>> (small,) = condense(pool, Settings("dcc", MLP((8,)), per_class=1, outer=2, augment=()), quiet=True)
    >>> small.x.shape, small.y.tolist()
    ((3, 5), [0, 1, 2])
    """
    if checkpoint < 1 or not len(seeds) or len(set(seeds)) != len(seeds):
        raise UsageError("Seeds must differ and checkpoints be a step or more apart.", "Give at least one seed.")
    pool.check(settings.per_class)
    job = Job(settings, pool, tuple(int(seed) for seed in seeds))
    with on(device), watch_signals() as stop:
        began = time.perf_counter()
        at, parts, reals, keys, ids = begin(job, store)
        count, chunks, kept = 1, 0, time.perf_counter()
        what = f"condensing ({settings.rule.name})"
        with bar(total=settings.outer, done=at.done, desc=what, unit="loop", quiet=quiet) as shown:
            try:
                while at.done < settings.outer:
                    stop.check()
                    upto = min(settings.outer, (at.done // checkpoint + 1) * checkpoint)
                    count, clock = min(count, upto - at.done, MOST_AT_ONCE), time.perf_counter()
                    at = _advance(job, at, parts, reals, keys, count, ids, store, stop)
                    shown.update(count)
                    shown.set_postfix(loss=f"{at.losses[-1].mean():.4g}", refresh=False)
                    took = time.perf_counter() - clock
                    if (chunks := chunks + 1) == 2 and at.done < settings.outer and not quiet:  # the first one compiled
                        say(estimate(settings.outer - at.done, took / count))
                    if took < CHUNK_SECONDS:
                        count *= 2
                    if at.done == upto or time.perf_counter() - kept > KEEP_SECONDS:
                        _keep(job, at, store, stop)
                        kept = time.perf_counter()
            except Interrupted:
                _keep(job, at, store, stop)
                raise
        return _results(job, at, ids, time.perf_counter() - began)


class Begun(NamedTuple):
    """Where a run begins, and what every step of it reads. keys: of random numbers [e]. ids: of the examples that each
    set was copied from."""

    at: Progress
    parts: jax.Array
    reals: Reals
    keys: jax.Array
    ids: list[np.ndarray]


def begin(job: Job, store: Store | None) -> Begun:
    """The start of a run, or the last checkpoint that the store has of it."""
    settings, pool, _ = job
    check_network(settings.network, pool.shape, pool.classes)
    begun = [start(settings, pool, seed) for seed in job.seeds]
    ids = [np.full(pool.classes * settings.per_class, -1) if i is None else i.reshape(-1) for _, i in begun]
    at = _resume(job, _stack([state for state, _ in begun]), store)
    reals = pool.reals()._replace(prepared=_prepared(job, store) if at.done < settings.outer else None)
    keys = jnp.stack([jax.random.key(seed) for seed in job.seeds])
    parts = jnp.asarray(settings.rule.parts(pool, settings.groups))
    return Begun(at, parts, reals, keys, ids)


def estimate(steps: int, seconds: float) -> str:
    """How long so many outer steps will take, in words."""
    whole = steps * seconds
    return f"{steps} outer steps are left, {seconds:.2g} s each: about {duration(whole)}."


def _prepared(job: Job, store: Store | None) -> dict[str, jax.Array] | None:
    """What the method's steps need beside the data (experts): from the store, or computed now and kept there."""
    settings, seed = job.settings, job.seeds[0]
    inputs = {name: value for name, value in job.inputs(0).items() if name not in ("outer", "seeds")}
    inputs |= {"made": "experts", "seed": seed, "settings": {n: inputs["settings"][n] for n in ("network", "method")}}
    if store is not None and store.has(EXPERTS, inputs):
        entry = store.open(EXPERTS, inputs)
        return {name: jnp.asarray(entry.read(name)) for name in entry.arrays}
    found = settings.rule.prepare(job.pool, settings.network, seed)
    if found is not None and store is not None:
        store.put(EXPERTS, inputs, {name: np.asarray(a) for name, a in found.items()}, {"card": "networks by epoch"})
    return found


def _advance(
    job: Job,
    at: Progress,
    parts: jax.Array,
    reals: Reals,
    keys: jax.Array,
    count: int,
    ids: list[np.ndarray],
    store: Store | None,
    stop: SignalWatch,
) -> Progress:
    run, rates = program(job.settings, MOST_AT_ONCE), Rates.of(job.settings)
    done = run(rates, parts, reals, at.states, keys, jnp.asarray(at.done), jnp.asarray(count))
    losses, bad = np.asarray(done.losses).T[:count], np.asarray(done.bad)
    if (bad < 0).all():
        return Progress(done.state, at.done + count, np.concatenate([at.losses, losses]))
    step = int(bad[bad >= 0].min())
    good = Progress(done.state, step, np.concatenate([at.losses, losses[: step - at.done]]))
    if (bad >= 0).all() and (bad == step).all():
        _keep(job, good, store, stop)
    seeds = [seed for seed, b in zip(job.seeds, bad) if b >= 0]
    raise Diverged(
        f"The synthetic set of seed {seeds[0]} diverged in outer step {step} with lr={job.settings.lr:g} "
        f"({job.settings.rule.name}).",
        f"Lower lr, to {job.settings.lr / 10:g} say. The sets before that step are kept in the error's last_good"
        + ("." if store is None else ", and in the store at the last checkpoint."),
        _results(job, good, ids, 0.0),
    )


def _resume(job: Job, fresh: State, store: Store | None) -> Progress:
    """The furthest checkpoint that the store has, else the start."""
    last = job.settings.outer
    found = next((s for s in range(last, 0, -1) if store is not None and store.has(KIND, job.inputs(s))), 0)
    if store is None or not found:
        return Progress(fresh, 0, np.zeros((0, len(job.seeds)), np.float32))
    entry = store.open(KIND, job.inputs(found))
    leaves, shape = jax.tree.flatten(fresh)
    kept = [jnp.asarray(entry.read(f"state{number}")) for number in range(len(leaves))]
    if found < last:
        say(f"Resuming from outer step {found} of {last}.")
    return Progress(jax.tree.unflatten(shape, kept), found, entry.read("losses"))


def _keep(job: Job, at: Progress, store: Store | None, stop: SignalWatch) -> None:
    if store is None or not at.done:
        return
    arrays = {f"state{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(at.states))}
    with stop.deferred():
        store.put(KIND, job.inputs(at.done), {**arrays, "losses": at.losses}, {"card": "a synthetic set, not finished"})


def _results(job: Job, at: Progress, ids: list[np.ndarray], seconds: float) -> tuple[Condensed, ...]:
    settings, pool, sets = job.settings, job.pool, []
    for number, seed in enumerate(job.seeds):
        own = {name: a[number] for name, a in at.states.synthetic.items()}
        labels = np.asarray(labels_of(own, pool.classes)).reshape(-1, pool.classes)
        about = {
            "method": settings.rule.name,
            "settings": settings.to_json(),
            "data": pool.fingerprint,
            "examples": len(pool),
            "classes": pool.classes,
            "seed": seed,
            "outer_done": at.done,
            "seconds": round(seconds, 2),
            "seconds_shared_by": len(job.seeds),
        }
        if "log_rate" in own:
            about["student_rate"] = float(np.exp(own["log_rate"]))
        if pool.removed:
            about["without"] = list(pool.removed)
        x = np.asarray(own["x"]).reshape(-1, *pool.shape)
        sets.append(Condensed(x, labels, pool.scaling, at.losses[:, number], ids[number], about))
    return tuple(sets)


def _stack(states: list[State]) -> State:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
