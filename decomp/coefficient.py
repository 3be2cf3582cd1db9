"""An atom's activation as a function that can be differentiated.

A pursuit chooses atoms and gives them coefficients. While the choices stay as they are, which they do for almost every
small change of the signal, the coefficients are linear in it: for matching pursuit each is the correlation with what
the steps before have left, L v = D x with L the lower triangle of the chosen atoms' Gram matrix; if a support is
solved at the end, v = (D Dᵀ)⁺ D x. That is the derivative given here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whence.cache.errors import UsageError
from whence.cache.model.bridge import to_torch

from .dictionary import Dictionary
from .splice import signals

BY_STEPS, BY_SUPPORT = ("matching", "nonnegative"), ("orthogonal", "refit")


@dataclass(frozen=True, eq=False)
class Coefficient:
    """The coefficient of one atom in the code of every signal: x [p d] -> [p], zero if it is not chosen.

    k, pursuit: the dictionary's own unless given. Raises UsageError for an atom that is not there, or a pursuit whose
    coefficients are not linear in the signal (gradient).

    >>> x = torch.tensor(read.whole().x[:5], requires_grad=True)
    >>> Coefficient(dictionary, atom=0)(x).shape
    torch.Size([5])
    """

    dictionary: Dictionary
    atom: int
    k: int | None = None
    pursuit: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.atom < len(self.dictionary):
            raise UsageError(
                f"There is no atom {self.atom} among {len(self.dictionary)}.", "Atoms are numbered from 0."
            )
        if self._pursuit not in BY_STEPS + BY_SUPPORT:
            raise UsageError(
                f"Coefficients of {self._pursuit} pursuit are not linear in the signal.",
                f"Measure the atom with pursuit= one of {', '.join(BY_STEPS + BY_SUPPORT)}.",
            )

    @property
    def _pursuit(self) -> str:
        return self.dictionary.pursuit if self.pursuit is None else self.pursuit

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the measurement, for keys."""
        return {
            "dictionary": self.dictionary.fingerprint,
            "atom": self.atom,
            "k": self.dictionary.k if self.k is None else self.k,
            "pursuit": self._pursuit,
        }

    def __call__(self, x: Float[Tensor, "p d"]) -> Float[Tensor, " p"]:
        given, x = x.dtype, x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        code = self.dictionary.encode_array(signals(x, self.dictionary.width), self.k, pursuit=self._pursuit)
        indices, taken = to_torch(code.indices).long(), to_torch(code.values) != 0
        here = ((indices == self.atom) & taken).any(1).nonzero()[:, 0]
        values = x.new_zeros(len(x))
        if not len(here):
            return (values + 0 * x.sum(1)).to(given)  # zero, and differentiable
        indices, taken = indices[here], taken[here]
        signal = x[here]
        if self.dictionary.centre is not None:
            signal = signal - torch.tensor(self.dictionary.centre).to(x)
        atoms = torch.tensor(self.dictionary.atoms).to(x)[indices] * taken[..., None].to(x)
        found = torch.einsum("pkd,pd->pk", atoms, signal)
        gram = atoms @ atoms.mT
        if self._pursuit in BY_STEPS:
            triangle = gram.tril(-1) + torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
            found = torch.linalg.solve_triangular(triangle, found[..., None], upper=False)[..., 0]
        else:
            found = (torch.linalg.pinv(gram, hermitian=True) @ found[..., None])[..., 0]
        own = (found * ((indices == self.atom) & taken).to(x)).sum(1)
        return values.index_add(0, here, own).to(given)
