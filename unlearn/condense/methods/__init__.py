"""Condensation methods, and their registry: what is compared, for which classes together."""

from .dm import DM as DM
from .gradients import DC, DCC, DSA, DSAC, Subgroup
from .method import CondensationMethod as CondensationMethod

METHODS: dict[str, CondensationMethod] = {m.name: m() for m in (DC, DSA, DCC, DSAC, DM, Subgroup)}
