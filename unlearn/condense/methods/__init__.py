"""Condensation methods, one file each: what is compared, for which classes together."""

from .dc import DC as DC
from .dcc import DCC as DCC
from .dm import DM as DM
from .dsa import DSA as DSA
from .dsac import DSAC as DSAC
from .method import Method as Method
from .subgroup import SUBGROUP as SUBGROUP

METHODS: dict[str, Method] = {method.name: method for method in (DC, DSA, DCC, DSAC, DM, SUBGROUP)}
