"""Unlearning methods, one file each, and their registry: the command line, documents and tests read it."""

from .descent import GradientAscent as GradientAscent
from .descent import DescentAscent as DescentAscent
from .dm_direct import DMDirect as DMDirect
from .dmm import DMM as DMM
from .descent import FineTune as FineTune
from .grad_diff import GradDiff as GradDiff
from .descent import L1Sparse as L1Sparse
from .matching import Matching as Matching
from .method import UnlearningMethod as UnlearningMethod
from .descent import NegGradPlus as NegGradPlus
from .newton import Newton as Newton
from .npo import NPO as NPO
from .npo import SimNPO as SimNPO
from .oracle_matching import OracleMatching as OracleMatching
from .retrain import Retrain as Retrain
from .rmu import RMU as RMU
from .salun import SalUn as SalUn
from .scrub import Scrub as Scrub
from .undial import UNDIAL as UNDIAL

METHODS: dict[str, type[UnlearningMethod]] = {
    method.name: method
    for method in (
        Retrain, FineTune, GradientAscent, DescentAscent, NegGradPlus, Scrub, SalUn, L1Sparse, Newton, GradDiff, NPO,
        SimNPO, RMU, UNDIAL, OracleMatching, DMDirect, DMM,
    )
}  # fmt: skip
