"""Condensation methods, and their registry: what is compared, for which classes together."""

from .dc import DC as DC
from .dc import DSA as DSA
from .dcc import DCC as DCC
from .dcc import DSAC as DSAC
from .dm import DM as DM
from .method import CondensationMethod as CondensationMethod
from .subgroup import Subgroup as Subgroup

METHODS: dict[str, CondensationMethod] = {m.name: m() for m in (DC, DSA, DCC, DSAC, DM, Subgroup)}
