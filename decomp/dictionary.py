"""A dictionary: unit atoms, and for each the place in the data that it came from.

    dictionary = ITDA(size=4096, k=16).build(activations)
    code = dictionary.encode(x)                     # indices, values [b k], what is left of every signal
    dictionary.decode(code)
    dictionary.provenance.document[code.indices]    # whence

Tools of the field find `encode`, `decode` and `W_dec` under the names they expect.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from whence.cache.errors import DataError, UsageError, check_known
from whence.cache.model.ids import as_ids

from . import kernels
from .activations import Origin, numbers
from .codec import Codec, bucketed
from .kernels import Basis, Code, Pursuit
from .kernels.forms import BLOCK, resized, whole_blocks
from .provenance import Provenance, Text, places_in

PURSUITS: Mapping[str, Callable[..., Pursuit]] = {
    "matching": kernels.matching_pursuit,
    "nonnegative": kernels.nonnegative_matching_pursuit,
    "refit": kernels.refitted_matching_pursuit,
    "orthogonal": kernels.orthogonal_matching_pursuit,
    "gradient": kernels.gradient_pursuit,
}
SHOWN = 50  # atoms that a notebook shows


@dataclass(frozen=True, eq=False)
class Dictionary(Codec):
    """Unit atoms, each with the place in the data that it came from, and a pursuit that encodes.

    Args:
        atoms: [a d], unit rows.
        provenance: the place of each.
        k: steps that `encode` takes by default.
        origin: hook point, model and data that it was built from.
        centre: [d], subtracted before encoding and added by decoding.
        pursuit: the encoder, a name of PURSUITS.
        settings: how it was built.
        log: edits since then.
        text: the context of each atom, once it was looked up.

    Raises DataError for atoms that are not finite unit rows, or provenance of another length; UsageError for an
    unknown pursuit.

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
        check_known("pursuit", self.pursuit, PURSUITS)
        if any(len(column) != len(self.atoms) for column in self.provenance):
            raise DataError("Atoms and provenance differ in length.", "Give every atom its place.")
        norms = np.linalg.norm(self.atoms, axis=1)
        if len(norms) and not np.allclose(norms, 1, atol=1e-4):
            worst = int(np.argmax(np.abs(norms - 1)))
            raise DataError(
                f"Atom {worst} has norm {norms[worst]:.4g}; atoms are unit rows.",
                "Divide each by its norm (and multiply the coefficients).",
            )

    def __repr__(self) -> str:
        where = f" at {self.origin.site}" if self.origin.site else ""
        by = self.settings.get("builder", self.settings.get("imported", "unknown"))
        return f"Dictionary({len(self)} atoms of width {self.width}{where}, {self.pursuit} pursuit k={self.k}, {by})"

    def _repr_html_(self) -> str:
        from whence.cache.display import facts, table

        return (facts(repr(self), facts_of(self)) + table(*atom_rows(self))).html

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
        """Atoms on the device with their Gram matrix, in float32 if that fits, else in bfloat16 if that does; computed
        once."""
        whole, half = kernels.gram_pays(len(self)), kernels.gram_pays(len(self), itemsize=2)
        return kernels.basis_of(jnp.asarray(self.atoms), whole or half, jnp.float32 if whole else jnp.bfloat16)

    def pursuit_for(self, k: int | None = None, target: float = 0.0, pursuit: str | None = None) -> Pursuit:
        """The encoder, its choices checked. Raises UsageError for k beyond the dictionary or a bad target."""
        steps, name = self.k if k is None else k, self.pursuit if pursuit is None else pursuit
        check_known("pursuit", name, PURSUITS)
        if not 1 <= steps <= len(self):
            raise UsageError(
                f"{steps} steps from a dictionary of {len(self)} atoms.",
                f"Choose k from 1 to {len(self)}, or build a larger dictionary.",
            )
        if not 0 <= target < 1:
            raise UsageError(f"An error target of {target}.", "Give a share of the squared norm, 0 to 1.")
        return PURSUITS[name](steps, float(target))

    def encode(self, x: Any, k: int | None = None, target: float = 0.0, pursuit: str | None = None, **how: Any) -> Code:
        """The sparse code of signals [b d], as numpy arrays [b k].

        Args:
            x: the signals.
            k: steps; by default the dictionary's own.
            target: stop a signal once this share of its squared norm is left.
            pursuit: another encoder, a name of PURSUITS.

        Raises DataError for another width, for values that are not finite and for signals of a size that float32
        cannot square, UsageError for k beyond the dictionary.
        """
        return super().encode(x, k, target=target, pursuit=pursuit, **how)

    def encode_array(
        self, x: Float[Array, "b d"], k: int | None = None, target: float = 0.0, pursuit: str | None = None
    ) -> Code:
        chosen = self.pursuit_for(k, target, pursuit)
        padded = bucketed(x if self.centre is None else x - jnp.asarray(self.centre))
        code = kernels.encode(chosen, padded, self.basis, kernels.chunk_rows())
        return code if len(padded) == len(x) else jax.tree.map(lambda leaf: leaf[: len(x)], code)

    def decode_array(self, code: Code) -> Float[Array, "b d"]:
        known = self.basis.atoms if "basis" in self.__dict__ else jnp.asarray(self.atoms)
        x = kernels.decode(code, known)
        return x if self.centre is None else x + jnp.asarray(self.centre)

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
        decode: Callable[[Sequence[int]], str] | None,
        window: int = 12,
        column: str = "input_ids",
    ) -> "Dictionary":
        """Looks every atom's place up in the data and keeps the text around it.

        examples: `cache.Examples` with token ids; decode: token ids -> text (a tokenizer's), None for examples without
        tokens, such as images, whose places are their titles and positions.
        Raises DataError for a document that is not among them.
        """
        look = places_in(examples, decode, window, column)
        return replace(self, text=tuple(look(*place) for place in self.provenance.places))

    def insert(self, x: Any, provenance: Provenance, unexplained: float = 0.0) -> "Dictionary":
        """With activations [m d] added as atoms, those whose unexplained share exceeds a threshold.

        The rows are judged together against the dictionary as it is. The log records this edit, as every other, and the
        Gram matrix gets rows and columns instead of being computed anew.

        Args:
            x: the activations.
            provenance: the place of each.
            unexplained: the threshold; 0 inserts everything that is not already an atom (up to rounding).

        Raises DataError for rows that are zero or not finite, UsageError for a threshold outside 0 to 1.
        """
        if not 0 <= unexplained < 1:
            raise UsageError(f"An unexplained share of {unexplained}.", "Give a number from 0 to below 1.")
        x = np.asarray(numbers(x), np.float32)
        energy = np.sum(np.asarray(x, np.float64) ** 2, axis=1)
        if not (np.isfinite(energy) & (energy > 0)).all():
            raise DataError("Some rows are zero or not finite.", "Leave them out before inserting.")
        centred = x if self.centre is None else x - self.centre
        k = min(self.k, len(self))
        share = np.asarray(self.encode(x, k=k).unexplained) if k else np.ones(len(x))
        keep = share > max(unexplained, 1e-6)
        norm = np.linalg.norm(centred, axis=1)
        atoms = (centred / norm[:, None])[keep]
        added = provenance._replace(norm=norm.astype(np.float32), error=share.astype(np.float32)).rows(keep)
        note = {"edit": "insert", "offered": len(x), "inserted": int(keep.sum()), "unexplained": unexplained}
        return self._joined(atoms, added, None, note)

    def merge(self, other: "Dictionary", same: float = 0.999) -> "Dictionary":
        """With the atoms of another; one that has |cosine| above `same` with an atom of this is left out, as is one
        from the same place.

        Raises ModelError when they come from different models or hook points, DataError when centred differently.

        >>> len(dictionary.merge(dictionary)) == len(dictionary)  # an atom that is there already is not added
        True
        """
        self.origin.check_same(other.origin)
        mine, theirs = (np.zeros(d.width) if d.centre is None else d.centre for d in (self, other))
        if not np.array_equal(mine, theirs):
            raise DataError("The dictionaries are centred differently.", "Build both with one centre.")
        known = set(self.provenance.places) - {(-1, -1)}
        keep = (largest_cosine(other.atoms, self.atoms) <= same) & np.array(
            [place not in known for place in other.provenance.places], bool
        )
        note = {"edit": "merge", "with": other.fingerprint, "inserted": int(keep.sum()), "same": same}
        text = None if other.text is None else tuple(other.text[n] for n in np.flatnonzero(keep))
        return self._joined(other.atoms[keep], other.provenance.rows(keep), text, note)

    def delete_documents(self, documents: Iterable[int | str]) -> "Dictionary":
        """Without any atom that came from these documents, named by number or by the texts that were their ids.

        Other atoms are activations of other documents and stay as they are, bit for bit. Raises DataError when nothing
        would be left.

        >>> 0 in dictionary.delete_documents([0]).provenance.document
        False
        """
        listed = sorted(set(as_ids(list(documents)).tolist()))
        gone = np.isin(self.provenance.document, listed)
        if gone.all():
            raise DataError("Every atom comes from these documents.", "Build a dictionary without them.")
        left = self.rows(~gone, {"edit": "delete documents", "documents": listed, "deleted": int(gone.sum())})
        if "basis" in self.__dict__:
            rows = np.flatnonzero(~gone)
            gram = None if self.basis.gram is None else self.basis.gram[rows][:, rows]
            left._carry(Basis(self.basis.atoms[rows], gram))
        return left

    def _joined(
        self, atoms: np.ndarray, provenance: Provenance, text: tuple[Text, ...] | None, note: Mapping[str, Any]
    ) -> "Dictionary":
        """Atoms whose text is not known get an empty one."""
        new = (Text("", "", ""),) * len(atoms) if text is None else text
        both = replace(
            self,
            atoms=np.concatenate([self.atoms, atoms]),
            provenance=self.provenance.joined(provenance),
            text=None if self.text is None else (*self.text, *new),
            log=(*self.log, note),
        )
        if "basis" in self.__dict__ and len(atoms):
            large = resized(self.basis, whole_blocks(len(both) + BLOCK))
            both._carry(kernels.append(large, jnp.asarray(atoms), jnp.int32(len(self))))
        return both

    def _carry(self, basis: Basis) -> None:
        """Take a basis that is known already, cut or filled up to whole blocks, into the cached property."""
        self.__dict__["basis"] = resized(basis, whole_blocks(len(self)))


def largest_cosine(atoms: Float[np.ndarray, "a d"], others: Float[np.ndarray, "c d"]) -> Float[np.ndarray, " a"]:
    """Of each atom with any of the others, without sign; 0 if there are none. A block of atoms at a time."""
    if not len(others) or not len(atoms):
        return np.zeros(len(atoms), np.float32)
    basis = kernels.basis_of(jnp.asarray(others), gram=False)
    return np.abs(np.asarray(kernels.encode(kernels.matching_pursuit(1), jnp.asarray(atoms), basis).values[:, 0]))


def quoted(text: Text) -> str:
    """A token in its context, the token marked."""
    return f"{text.before}⟦{text.token}⟧{text.after}"


def facts_of(dictionary: Dictionary) -> list[tuple[str, Any]]:
    """Where a dictionary comes from and how it was built, as name and value."""
    return [
        ("model", dictionary.origin.model[:12] or "unknown"),
        ("data", dictionary.origin.data[:12] or "unknown"),
        ("fingerprint", dictionary.fingerprint[:12]),
        *((name, value) for name, value in dictionary.settings.items() if name != "curve"),
        *(("then", str(dict(note))) for note in dictionary.log),
    ]


def atom_rows(
    dictionary: Dictionary, density: Float[np.ndarray, " a"] | None = None, most: int = SHOWN
) -> tuple[list[str], list[list[Any]], str]:
    """Head, rows and title of a table of atoms: the place and text of each, its activation's norm, and the share of its
    squared norm that was unexplained. density: share of activations that each fires on; the densest come first."""
    places, text = dictionary.provenance, dictionary.text
    order = np.arange(len(dictionary)) if density is None else np.argsort(-density, kind="stable")
    rows = []
    for a in order[:most].tolist():
        fires = [] if density is None else [100 * float(density[a])]
        place = [int(places.document[a]), int(places.position[a]), float(places.norm[a]), float(places.error[a])]
        rows.append([a, *fires, *place, *([] if text is None else [quoted(text[a])])])
    head = ["atom", *([] if density is None else ["fires on, %"]), "document", "position", "norm", "unexplained"]
    title = f"{min(most, len(dictionary))} of {len(dictionary)} atoms"
    return [*head, *([] if text is None else ["text"])], rows, title
