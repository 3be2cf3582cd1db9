"""A dictionary: unit atoms, and for each the place in the data that it came from.

    dictionary = ITDA(size=4096, k=16).build(activations)
    code = dictionary.encode(x)                     # indices, values [b k], what is left of every signal
    dictionary.decode(code)
    dictionary.provenance.document[code.indices]    # whence

Tools of the field find `encode`, `decode` and `W_dec` under the names they expect.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from whence.cache.errors import DataError, UsageError

from . import kernels
from .activations import Origin
from .kernels import Basis, Code, Pursuit

PURSUITS: Mapping[str, Callable[..., Pursuit]] = {
    "matching": kernels.matching_pursuit,
    "nonnegative": kernels.nonnegative_matching_pursuit,
    "refit": kernels.refitted_matching_pursuit,
    "orthogonal": kernels.orthogonal_matching_pursuit,
    "gradient": kernels.gradient_pursuit,
}
ENCODE_ROWS = 1024  # signals in one compiled call


class Text(NamedTuple):
    """A token in its context, for people."""

    before: str
    token: str
    after: str


class Provenance(NamedTuple):
    """Where each of a atoms came from; -1 in document and token where an atom is no activation (a centroid).

    document [a], position [a], token [a]: the place; sign [a]: -1 where the atom is its activation reversed;
    norm [a]: of the activation; error [a]: share of its squared norm that the dictionary left unexplained when
    it was inserted, NaN where nothing was asked; seed [a]: inserted without being judged.
    """

    document: np.ndarray
    position: np.ndarray
    token: np.ndarray
    sign: np.ndarray
    norm: np.ndarray
    error: np.ndarray
    seed: np.ndarray

    @staticmethod
    def of(
        document: Any,
        position: Any,
        token: Any,
        norm: Any,
        error: Any = 1.0,
        seed: Any = False,
        sign: Any = 1,
    ) -> "Provenance":
        """Columns of one length and the right type; scalars are repeated."""
        size = len(document)
        return Provenance(
            np.asarray(document, np.int64),
            np.asarray(position, np.int64),
            np.asarray(token, np.int64),
            np.broadcast_to(np.asarray(sign, np.int8), size).copy(),
            np.asarray(norm, np.float32),
            np.broadcast_to(np.asarray(error, np.float32), size).copy(),
            np.broadcast_to(np.asarray(seed, bool), size).copy(),
        )

    @staticmethod
    def unknown(size: int) -> "Provenance":
        """Atoms that come from no place in the data (trained, averaged or imported)."""
        nowhere = np.full(size, -1)
        return Provenance.of(nowhere, nowhere, nowhere, np.ones(size, np.float32))

    def rows(self, which: Any) -> "Provenance":
        return Provenance(*(column[which] for column in self))

    def joined(self, other: "Provenance") -> "Provenance":
        return Provenance(*(np.concatenate(pair) for pair in zip(self, other)))

    @property
    def places(self) -> list[tuple[int, int]]:
        """(document, position) of every atom: its identity across models, layers and checkpoints."""
        return list(zip(self.document.tolist(), self.position.tolist()))


@dataclass(frozen=True, eq=False)
class Dictionary:
    """atoms: [a d] unit rows. centre: [d] taken off before encoding and put back by decoding.

    k: steps that `encode` takes unless told otherwise; pursuit: which, a name of PURSUITS; settings: how it was
    built; log: what was done to it since; text: each atom's context, when it was looked up.
    Raises DataError for atoms that are not finite unit rows, or provenance of another length.

    >>> code = dictionary.encode(read.whole().x[:5])
    >>> code.indices.shape, code.values.shape
    ((5, 4), (5, 4))
    >>> left = read.whole().x[:5] - dictionary.decode(code)
    >>> np.allclose((left**2).sum(1), code.residual, atol=1e-4)
    True
    """

    atoms: Float[np.ndarray, "a d"]
    provenance: Provenance
    k: int
    origin: Origin = field(default_factory=Origin)
    centre: Float[np.ndarray, " d"] | None = None
    pursuit: str = "matching"
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[Mapping[str, Any], ...] = ()
    text: tuple[Text, ...] | None = None

    def __post_init__(self) -> None:
        if self.pursuit not in PURSUITS:
            raise UsageError(f"There is no pursuit {self.pursuit!r}.", f"Choose one of {', '.join(PURSUITS)}.")
        if any(len(column) != len(self.atoms) for column in self.provenance):
            raise DataError("Atoms and provenance differ in length.", "Give every atom its place.")
        norms = np.linalg.norm(self.atoms, axis=1)
        if len(norms) and not np.allclose(norms, 1, atol=1e-4):
            worst = int(np.argmax(np.abs(norms - 1)))
            raise DataError(
                f"Atom {worst} has norm {norms[worst]:.4g}; atoms are unit rows.",
                "Divide each by its norm (and multiply the coefficients).",
            )

    def __len__(self) -> int:
        return len(self.atoms)

    def __repr__(self) -> str:
        where = f" at {self.origin.site}" if self.origin.site else ""
        made = self.settings.get("builder", self.settings.get("imported", "unknown"))
        return f"Dictionary({len(self)} atoms of width {self.width}{where}, {self.pursuit} pursuit k={self.k}, {made})"

    def _repr_html_(self) -> str:
        from .show import about, atoms

        return (about(self) + atoms(self)).html

    @property
    def W_dec(self) -> Float[np.ndarray, "a d"]:
        return self.atoms

    @property
    def width(self) -> int:
        return int(self.atoms.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over atoms, centre, and places."""
        digest = hashlib.sha256(np.ascontiguousarray(self.atoms).tobytes())
        digest.update(b"" if self.centre is None else np.ascontiguousarray(self.centre).tobytes())
        for column in self.provenance:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @cached_property
    def basis(self) -> Basis:
        """Atoms on the device with their Gram matrix, in float32 where that fits, else in bfloat16 where that does;
        made once."""
        whole, half = kernels.gram_pays(len(self)), kernels.gram_pays(len(self), itemsize=2)
        return kernels.basis_of(jnp.asarray(self.atoms), whole or half, jnp.float32 if whole else jnp.bfloat16)

    def pursuit_for(self, k: int | None = None, target: float = 0.0, pursuit: str | None = None) -> Pursuit:
        """The encoder, its choices checked. Raises UsageError for k beyond the dictionary or a bad target."""
        steps, name = self.k if k is None else k, self.pursuit if pursuit is None else pursuit
        if name not in PURSUITS:
            raise UsageError(f"There is no pursuit {name!r}.", f"Choose one of {', '.join(PURSUITS)}.")
        if not 1 <= steps <= len(self):
            raise UsageError(
                f"{steps} steps from a dictionary of {len(self)} atoms.",
                f"Choose k from 1 to {len(self)}, or build a larger dictionary.",
            )
        if not 0 <= target < 1:
            raise UsageError(f"An error target of {target}.", "Give a share of the squared norm, 0 to 1.")
        return PURSUITS[name](steps, float(target))

    def encode(self, x: Any, k: int | None = None, target: float = 0.0, pursuit: str | None = None) -> Code:
        """The sparse code of signals [b d], as numpy arrays [b k].

        target: stop a signal once this share of its squared norm is left. Raises DataError for another width or
        for values that are not finite, UsageError for k beyond the dictionary.
        """
        chosen = self.pursuit_for(k, target, pursuit)
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise DataError(f"Signals of shape {x.shape}.", f"This dictionary encodes [b, {self.width}].")
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        if bad:
            raise DataError(f"{bad} of {len(x)} signals are not finite.", "Leave them out before encoding.")
        x = x if self.centre is None else x - self.centre
        parts = [self._encode(chosen, x[i : i + ENCODE_ROWS]) for i in range(0, len(x), ENCODE_ROWS)]
        if not parts:
            parts = [self._encode(chosen, x)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _encode(self, pursuit: Pursuit, x: np.ndarray) -> Code:
        size = ENCODE_ROWS if len(x) > 64 else 64
        padded = np.zeros((size, x.shape[1]), np.float32)
        padded[: len(x)] = x
        code = kernels.encode(pursuit, jnp.asarray(padded), self.basis)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(x)], code)

    def decode(self, code: Code) -> Float[np.ndarray, "b d"]:
        """What the code stands for, the centre added."""
        x = np.asarray(kernels.decode(jax.tree.map(jnp.asarray, code), jnp.asarray(self.atoms)))
        return x if self.centre is None else x + self.centre

    def reconstruct(self, x: Any, k: int | None = None, pursuit: str | None = None) -> Float[np.ndarray, "b d"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x, k, pursuit=pursuit))

    def rows(self, which: Any, note: Mapping[str, Any] | None = None) -> "Dictionary":
        """Some of its atoms, in the order given; `note` goes to the log."""
        chosen = np.arange(len(self))[which]
        return replace(
            self,
            atoms=self.atoms[chosen],
            provenance=self.provenance.rows(chosen),
            text=None if self.text is None else tuple(self.text[i] for i in chosen),
            log=self.log if note is None else (*self.log, note),
        )

    def with_text(
        self,
        examples: Any,
        decode: Callable[[Sequence[int]], str],
        window: int = 12,
        column: str = "input_ids",
    ) -> "Dictionary":
        """Looks every atom's place up in the data and keeps the text around it.

        examples: `cache.Examples` with token ids; decode: token ids -> text (a tokenizer's).
        Raises DataError for a document that is not among them.
        """
        row = {int(i): n for n, i in enumerate(examples.ids)}
        found = [context(examples.columns[column], row, *place, decode, window) for place in self.provenance.places]
        return replace(self, text=tuple(found))


def context(
    tokens: Any,
    row: Mapping[int, int],
    document: int,
    position: int,
    decode: Callable[[Sequence[int]], str],
    window: int,
) -> Text:
    """The text around one place; empty for an atom that has none."""
    if document < 0:
        return Text("", "", "")
    if document not in row:
        raise DataError(
            f"Document {document} is not among these examples.", "Give the examples the dictionary was built from."
        )
    ids = np.asarray(tokens[row[document]]).tolist()
    return Text(
        decode(ids[max(0, position - window) : position]),
        decode(ids[position : position + 1]),
        decode(ids[position + 1 : position + 1 + window]),
    )
