"""The suite checks what functions are given: arrays' shapes, and everything else."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from whence.attrib import fit
from whence.cache import Recipe


def test_shapes_of_arrays_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        fit._eigh(np.zeros((2, 3), np.float32))


def test_arguments_that_are_no_arrays_are_checked() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        fit.partition_count("many")  # type: ignore[arg-type]
    with pytest.raises((TypeCheckError, BeartypeCallHintParamViolation)):
        Recipe(epochs="many")  # type: ignore[arg-type]
