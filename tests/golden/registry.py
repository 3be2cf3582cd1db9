"""What an artefact of the golden tests is, and the registry of them.

The files that call the library (tasks.py, attribution.py, decomposition.py, retraining.py, unlearning.py,
condensing.py) follow it when a call changes; what was frozen (keys.json, values.npz, store.zip) stays. A row of
ARTEFACTS computes one artefact in the store that it is given and says what it is; a row of READERS reads one back from
its key alone.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence.cache import Store
from whence.cache.store.keys import canonical
from whence.cache.store.layout import FORMERLY

HERE = Path(__file__).parent


class Made(NamedTuple):
    """One artefact.

    kind, key: its entry in the store; without an entry, kind is "settings" (inputs are in the keys of others; key is
    that of an entry which is too large to compute here, or empty) or "values" (inputs are in no key).
    inputs: what it is computed from, as JSON. values: what the calls returned, beside the entry's own arrays.
    """

    kind: str
    key: str
    inputs: Any
    values: dict[str, np.ndarray]


# artefacts that have another key now: old entries are read by their key, and not found under the new one
OTHER_KEY = {
    "dictionary/by hand": "the fingerprint that is the key left out the steps, the pursuit and the settings",
    "attrib/merge squares": "the data of merged sums were named by their ids alone",
    "datamodel/ridge": "the seed and the penalties to choose from were not in the key",
    "datamodel/lasso": "the penalties to choose from were not in the key",
} | {
    f"whence/demo {part}": "the report has another format"
    for part in ("influence", "atoms", "forgetting", "condensing")
}
# methods whose definition was corrected: their numbers are others
REDEFINED = {
    "unlearn/RMU": "the random direction had negative entries; the target's length was the same for all tokens"
}
# arrays that an entry has no more
DROPPED = {name: {"stored losses"} for name in ("bank/models", "unlearn/GradDiff + bank")}
# names of artefacts whose kind in the store has another name since -> that name; see FORMERLY
RENAMED = {"datamodel/": "datamodel", "condense/": "condensed"}
# methods that came after the freeze, of which nothing is frozen
NEWER = {"adamw", "ast", "bif", "daunce", "lgm", "mpsae", "mtt"}
ARTEFACTS: dict[str, Callable[[Store], Made]] = {}
READERS: dict[str, Callable[[Store, str], dict[str, np.ndarray]]] = {}


def artefact(name: str) -> Callable[[Callable[[Store], Made]], Callable[[Store], Made]]:
    def keep(make: Callable[[Store], Made]) -> Callable[[Store], Made]:
        ARTEFACTS[name] = make
        return make

    return keep


def stored(store: Store, kind: str, key: str, **values: Any) -> Made:
    return Made(kind, key, store.header(kind, key).inputs, arrays(values))


def last(store: Store, kind: str, **values: Any) -> Made:
    """The entry of this kind, or its former name, that was queried last."""
    kinds = (kind, FORMERLY.get(kind))
    event = next(event for event in reversed(store.events) if event.kind in kinds)
    return stored(store, event.kind, event.key, **values)


def settings(inputs: Any, key: str = "", **values: Any) -> Made:
    return Made("settings", key, plain(inputs), arrays(values))


def only(inputs: Any, **values: Any) -> Made:
    return Made("values", "", plain(inputs), arrays(values))


def plain(value: Any) -> Any:
    return json.loads(canonical(value))


def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value.detach().cpu() if hasattr(value, "detach") else value) for name, value in values.items()
    }
