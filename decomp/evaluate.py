"""How good a codec is, a dictionary or a sparse autoencoder: on activations, and in the model.

Intervals are 95 %, by resampling documents.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from whence.cache import Examples, TrainedModel
from whence.cache.display.interval import Interval
from whence.cache.errors import DataError, UsageError
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy

from . import intervals
from .activations import Activations, Origin
from .codec import Codec
from .kernels import Code
from .splice import Change, constant, replaced, spliced, zeros
from .transcoder import Transcoder

RARE = 1e-5  # fires on fewer than this share of the activations, but fires
ROWS = 4096
SAME = 1e-12  # of the squared norm: a spread below it is rounding


def table(rows: dict[str, Interval], /, **attrs: Any) -> xr.Dataset:
    """Intervals by name as a labelled dataset: variables value, low, high over `metric`."""
    names = ("value", "low", "high")
    columns = {name: ("metric", [getattr(interval, name) for interval in rows.values()]) for name in names}
    return xr.Dataset(columns, coords={"metric": list(rows)}, attrs=attrs)


def evaluate(codec: Codec, activations: Any, k: int | Sequence[int] | None = None) -> xr.Dataset:
    """Reconstruction on activations that the dictionary was not built from.

    Variables value, low, high over `metric`: fvu, Σ‖x − x̂‖² / Σ‖x − mean‖², the mean over these activations (NaN if
    they are all the same, which leaves no variance); cosine_error, the mean of 1 − cos(x, x̂); l0, the mean
    number of different atoms; dead, the share of atoms that never fire here; rare, the share that fire, on fewer than
    one activation in 10^5. Rows that are not finite or zero are left out and counted in the attributes.

    Args:
        codec: a dictionary or autoencoder.
        activations: `Activations`, or an array [t d]; of a transcoder pairs, whose outputs are what x is above.
        k: steps; by default the codec's own. Several give the curve of error against steps, with an axis `k` first.

    Raises ModelError for another model's activations, DataError when no usable row is there.

    >>> found = evaluate(dictionary, read)
    >>> 0 < float(found["value"].sel(metric="fvu")) < 1
    True
    """
    if isinstance(k, Sequence):
        each = [evaluate(codec, activations, k=steps) for steps in k]
        return xr.concat(each, xr.Variable("k", list(k)), combine_attrs="drop")
    acts = Activations.of(activations)
    codec.origin.check_same(acts.origin)
    if isinstance(codec, Transcoder) != (acts.target is not None):
        raise UsageError(
            "A transcoder is evaluated on pairs of inputs and outputs, other codecs on activations.",
            "Give inputs.paired(outputs) to a transcoder only.",
        )
    total, counts = _sums(codec, acts, k)
    if not total["rows"]:
        raise DataError(
            f"No usable activation to judge by ({total['not_finite']} not finite or too large for float32, "
            f"{total['zero']} zero or too small).",
            "Check the hook point, and what was excluded.",
        )
    document = total["document"]

    def per(name: str) -> np.ndarray:
        return intervals.per_document(total[name], document)

    rows, fired = intervals.per_document(np.ones(len(document)), document), counts / total["rows"]
    flat = Interval(float(np.mean(fired == 0)))
    rare = Interval(float(np.mean((fired > 0) & (fired < RARE))))
    return table(
        {
            "fvu": intervals.ratio(per("left"), per("spread")),
            "cosine_error": intervals.ratio(per("cosine_error"), rows),
            "l0": intervals.ratio(per("l0"), rows),
            "dead": flat,
            "rare": rare,
        },
        rows=total["rows"],
        documents=len(rows),
        rows_not_finite=total["not_finite"],
        rows_zero=total["zero"],
        atoms=len(codec),
    )


def _sums(codec: Codec, acts: Activations, k: int | None) -> tuple[dict[str, Any], np.ndarray]:
    """Per-row sums, and how often each atom fired."""
    names = ("left", "spread", "energy", "cosine_error", "l0", "document")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    usable, not_finite, zero = acts.usable()
    goals = usable if acts.target is None else replace(usable, x=acts.target)
    centre = goals.mean() if len(usable) else np.zeros(goals.width)
    counts = np.zeros(len(codec), np.int64)
    for (signals, document, *_), (x, *_) in zip(usable.batches(ROWS), goals.batches(ROWS)):
        code: Code = codec.encode(signals, k=k)
        decoded = codec.decode(code)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(decoded, axis=1)
        pairs = distinct(code)
        counts += np.bincount(pairs[:, 1], minlength=len(codec))
        columns["left"].append(np.sum((x - decoded) ** 2, axis=1))
        columns["spread"].append(np.sum((x - centre) ** 2, axis=1))
        columns["energy"].append(np.einsum("bd,bd->b", x, x, dtype=np.float64))
        columns["cosine_error"].append(1 - np.sum(x * decoded, axis=1) / np.maximum(norms, 1e-30))
        columns["l0"].append(np.bincount(pairs[:, 0], minlength=len(x)))
        columns["document"].append(document)
    total: dict[str, Any] = {name: np.concatenate(parts or [np.zeros(0)]) for name, parts in columns.items()}
    if total["spread"].sum() <= SAME * total["energy"].sum():
        total["spread"] = np.full(len(usable), np.nan)
    return {**total, "rows": len(usable), "not_finite": not_finite, "zero": zero}, counts


def distinct(code: Code) -> np.ndarray:
    """(signal, atom) pairs [p 2] in which the atom has a coefficient, each once."""
    signal, step = np.nonzero(np.asarray(code.values))
    pairs = np.stack([signal, np.asarray(code.indices)[signal, step]], axis=1)
    return np.unique(pairs, axis=0) if len(pairs) else pairs.reshape(0, 2)


def losses(
    trained: TrainedModel,
    examples: Examples | None = None,
    at: str = "",
    change: Change | Codec | None = None,
    skip: Sequence[int] = (),
    k: int | None = None,
) -> np.ndarray:
    """The task's loss of every example [n], in nats, with `change` at the hook point `at` (None: the model as it is).

    Args:
        trained: the model; it runs on its device.
        examples: by default its training data.
        at, skip: as for `spliced`.
        change: of the activation, or a codec: what it decodes takes the activation's place (of a transcoder, at its
            output), with k steps.
    """
    examples = trained.train if examples is None else examples
    found = np.zeros(len(examples))

    def changed() -> AbstractContextManager[Any]:
        if isinstance(change, Codec):
            return replaced(trained, change, at, k, skip)
        return nullcontext() if change is None else spliced(trained, at, change, skip)

    with torch.no_grad(), borrowed(trained.model) as model:
        for planned, batch in trained.planned(examples, "losses"):
            with changed():
                found[planned.rows] = to_numpy(trained.task.loss(model, batch).double())
    return found


def loss_recovered(
    trained: TrainedModel,
    codec: Codec,
    examples: Examples | None = None,
    *,
    at: str | None = None,
    k: int | None = None,
    skip: Sequence[int] = (),
    mean: np.ndarray | None = None,
    base: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """What share of the loss that an ablation costs is kept if the reconstruction replaces the activation:
    (L_ablated − L_spliced) / (L_ablated − L_model); and the losses themselves, in nats per example.

    Args:
        trained: the model, with the loss.
        codec: a dictionary or autoencoder.
        examples: what the loss is taken on; by default the training data.
        at: the hook point; by default the codec's own.
        k: steps; by default the codec's own.
        skip: positions that keep the model's own activation in all runs, stated in the attributes.
        mean: [d], for mean ablation beside zero ablation; of a transcoder's outputs [e].
        base: losses by name ("model", "zero", "mean") if they are known already, see `baselines`.

    Raises ModelError for another model's codec or an unknown hook point.
    """
    site = codec.origin.site if at is None else at
    examples = trained.train if examples is None else examples
    if codec.origin.model:
        codec.origin.check_same(Origin(site, trained.fingerprint()))
    known = dict(base or {})
    if "model" not in known:
        known |= baselines(trained, examples, codec.to if isinstance(codec, Transcoder) else site, mean, skip)
    spliced_loss = losses(trained, examples, site, codec, skip, k)
    rows = {}
    for name in ("zero", "mean"):
        if name in known:
            rows[f"recovered_{name}"] = intervals.ratio(known[name] - spliced_loss, known[name] - known["model"])
    rows |= {f"loss_{name}": Interval.bootstrap(values) for name, values in known.items()}
    rows["loss_spliced"] = Interval.bootstrap(spliced_loss)
    return table(rows, site=site, examples=len(examples), positions_left_to_the_model=list(skip))


def baselines(
    trained: TrainedModel,
    examples: Examples | None,
    at: str,
    mean: np.ndarray | None = None,
    skip: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Losses [n] of the model as it is and under the ablations, which all codecs at one hook point share."""
    found = {"model": losses(trained, examples), "zero": losses(trained, examples, at, zeros, skip)}
    if mean is not None:
        found["mean"] = losses(trained, examples, at, constant(mean), skip)
    return found
