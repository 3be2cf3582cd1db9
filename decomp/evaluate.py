"""How good a dictionary is: on activations, and in the model.

Works for anything with `encode` and `decode`: dictionaries of every builder and sparse autoencoders. Intervals are
95 %, by resampling documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from whence.cache.display.interval import Interval
from whence.cache.errors import DataError

from . import intervals
from .activations import Activations, finite
from .kernels import Code
from .splice import constant, spliced, through, zeros

RARE = 1e-5  # fires on fewer than this share of the activations, but fires
ROWS = 4096


def table(rows: dict[str, Interval], /, **attrs: Any) -> xr.Dataset:
    """Intervals by name as a labelled dataset: variables value, low, high over `metric`."""
    names = ("value", "low", "high")
    columns = {name: ("metric", [getattr(interval, name) for interval in rows.values()]) for name in names}
    return xr.Dataset(columns, coords={"metric": list(rows)}, attrs=attrs)


def evaluate(codec: Any, activations: Any, k: int | None = None) -> xr.Dataset:
    """Reconstruction on activations that the dictionary was not built from.

    fvu: Σ‖x − x̂‖² / Σ‖x − mean‖², the mean over these activations; cosine_error: mean of 1 − cos(x, x̂); l0: mean
    number of different atoms; dead: share of atoms that never fire here; rare: share that fire, on fewer than one
    activation in 10^5. Rows that are not finite or zero are left out and counted in the attributes.
    Raises ModelError for another model's activations, DataError when no usable row is there.

    >>> found = evaluate(dictionary, read)
    >>> 0 < float(found["value"].sel(metric="fvu")) < 1
    True
    """
    acts = Activations.of(activations)
    codec.origin.check_same(acts.origin)
    total, counts = _sums(codec, acts, k)
    if not total["rows"]:
        raise DataError("No usable activation to judge by.", "Check the hook point, and what was excluded.")
    document = total["document"]

    def per(name: str) -> np.ndarray:
        return intervals.per_document(total[name], document)

    rows, fired = per("one"), counts / total["rows"]
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


def _sums(codec: Any, acts: Activations, k: int | None) -> tuple[dict[str, Any], np.ndarray]:
    """Per-row sums, and how often each atom fired."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("left", "cosine_error", "l0", "document", "one")}
    usable, not_finite, zero = finite(acts.whole())
    centre = usable.x.mean(axis=0, dtype=np.float64) if len(usable.x) else np.zeros(acts.width)
    counts = np.zeros(len(codec), np.int64)
    for start in range(0, len(usable.x), ROWS):
        x = usable.x[start : start + ROWS]
        code: Code = codec.encode(x, k=k)
        made = codec.decode(code)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(made, axis=1)
        pairs = distinct(code)
        counts += np.bincount(pairs[:, 1], minlength=len(codec))
        columns["left"].append(np.sum((x - made) ** 2, axis=1))
        columns["cosine_error"].append(1 - np.sum(x * made, axis=1) / np.maximum(norms, 1e-30))
        columns["l0"].append(np.bincount(pairs[:, 0], minlength=len(x)))
        columns["document"].append(usable.document[start : start + ROWS])
        columns["one"].append(np.ones(len(x)))
    total: dict[str, Any] = {name: np.concatenate(parts or [np.zeros(0)]) for name, parts in columns.items()}
    total["spread"] = np.sum((usable.x - centre) ** 2, axis=1)
    return {**total, "rows": len(usable.x), "not_finite": not_finite, "zero": zero}, counts


def distinct(code: Code) -> np.ndarray:
    """(signal, atom) pairs [p 2] in which the atom has a coefficient, each once."""
    signal, step = np.nonzero(np.asarray(code.values))
    pairs = np.stack([signal, np.asarray(code.indices)[signal, step]], axis=1)
    return np.unique(pairs, axis=0) if len(pairs) else pairs.reshape(0, 2)


def losses(
    model: nn.Module, task: Any, examples: Any, site: str, change: Any, skip: Sequence[int], batch: int = 32
) -> np.ndarray:
    """The task's loss of every example, in nats, with `change` at `site` (None: the model as it is)."""
    found = []
    with torch.no_grad():
        for start in range(0, len(examples), batch):
            tensors = examples.batch(np.arange(start, min(start + batch, len(examples))))
            if change is None:
                found.append(task.loss(model, tensors))
            else:
                with spliced(model, site, change, skip):
                    found.append(task.loss(model, tensors))
    return torch.cat(found).double().cpu().numpy()


def loss_recovered(
    codec: Any,
    model: nn.Module,
    task: Any,
    examples: Any,
    site: str,
    k: int | None = None,
    skip: Sequence[int] = (),
    mean: np.ndarray | None = None,
    base: dict[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """What share of the loss that an ablation costs is kept when the reconstruction is spliced in.

    (L_ablated − L_spliced) / (L_ablated − L_model), with zero ablation, and with mean ablation when `mean` [d] is
    given. `skip`: positions left to the model in all three, stated in the attributes. base: losses by name
    ("model", "zero", "mean") when they are known already. Also the losses themselves, in nats an example.
    """
    known = dict(base or {})
    was_training = model.training
    model.eval()
    try:
        if "model" not in known:
            known |= baselines(model, task, examples, site, mean, skip)
        spliced_loss = losses(model, task, examples, site, through(codec, k), skip)
    finally:
        model.train(was_training)
    rows = {}
    for name in ("zero", "mean"):
        if name in known:
            rows[f"recovered_{name}"] = intervals.ratio(known[name] - spliced_loss, known[name] - known["model"])
    rows |= {f"loss_{name}": Interval.bootstrap(values) for name, values in known.items()}
    rows["loss_spliced"] = Interval.bootstrap(spliced_loss)
    return table(rows, site=site, examples=len(examples), positions_left_to_the_model=list(skip))


def baselines(
    model: nn.Module, task: Any, examples: Any, site: str, mean: np.ndarray | None, skip: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Losses [n] of the model as it is and under the ablations, which all dictionaries at one site share."""
    found = {
        "model": losses(model, task, examples, site, None, skip),
        "zero": losses(model, task, examples, site, zeros, skip),
    }
    if mean is not None:
        found["mean"] = losses(model, task, examples, site, constant(mean), skip)
    return found
