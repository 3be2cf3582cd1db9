"""The short form of every proof."""

import pytest

from . import PROOFS


@pytest.mark.parametrize("name", PROOFS)
def test_proof(name, capsys):
    figures = PROOFS[name](False)
    with capsys.disabled():
        print(f"\n  {name}: {figures}", end="")
