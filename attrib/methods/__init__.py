"""The methods, one file each. Some fit Factors, some solve with factors, some score in their own way."""

from .bm25 import BM25 as BM25
from .cg import CG as CG
from .datainf import DataInf as DataInf
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

METHODS = {
    "identity": Identity,
    "diagonal": Diagonal,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "shampoo": Shampoo,
    "cg": CG,
    "astra": ASTRA,
    "lissa": LiSSA,
    "datainf": DataInf,
    "tracin": TracIn,
    "trak": TRAK,
    "logra": LoGra,
    "source": SOURCE,
    "magic": MAGIC,
    "representation": Representation,
    "grand": GraNd,
    "el2n": EL2N,
    "bm25": BM25,
}
