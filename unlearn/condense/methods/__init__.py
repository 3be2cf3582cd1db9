"""Condensation methods, and their registry: what is compared, for which classes together."""

from .dm import DM as DM
from .gradients import DC, DCC, DSA, DSAC, Subgroup
from .linear import LGM
from .method import CondensationMethod as CondensationMethod
from .method import CondensationRule as CondensationRule
from .method import SetMethod as SetMethod
from .trajectory import AST, MTT

METHODS: dict[str, CondensationRule] = {m.name: m() for m in (DC, DSA, DCC, DSAC, DM, Subgroup, LGM, MTT, AST)}
