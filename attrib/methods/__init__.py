"""The methods, one file each. METHODS is their only list: a new one is one more line in it."""

from ..method import Method
from .adamw import AdamWInfluence as AdamWInfluence
from .bif import BIF as BIF
from .bm25 import BM25 as BM25
from .cg import CG as CG
from .datainf import DataInf as DataInf
from .daunce import Daunce as Daunce
from .diagonal import Diagonal as Diagonal
from .early import EL2N as EL2N
from .early import GraNd as GraNd
from .ekfac import EKFAC as EKFAC
from .identity import Identity as Identity
from .kfac import KFAC as KFAC
from .logra import LoGra as LoGra
from .magic import MAGIC as MAGIC
from .neumann import ASTRA as ASTRA
from .neumann import LiSSA as LiSSA
from .representation import Representation as Representation
from .shampoo import Shampoo as Shampoo
from .source import SOURCE as SOURCE
from .source import Segment as Segment
from .tracin import TracIn as TracIn
from .trak import TRAK as TRAK

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Identity,
        Diagonal,
        KFAC,
        EKFAC,
        Shampoo,
        CG,
        ASTRA,
        LiSSA,
        DataInf,
        TracIn,
        TRAK,
        LoGra,
        SOURCE,
        MAGIC,
        AdamWInfluence,
        BIF,
        Daunce,
        Representation,
        GraNd,
        EL2N,
        BM25,
    )
}
