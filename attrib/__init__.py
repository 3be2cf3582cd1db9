"""Which data: a trained model in, scores of its training examples out (EK-FAC influence, Grosse et al. 2023)."""

if __name__ != "whence.attrib":
    raise ImportError("This package is whence.attrib: write `from whence import attrib`, not `import attrib`.")

# methods, and what a fit returns
from .curvature import Damping as Damping
from .factors import Factors as Factors
from .factors import load as load
from .fitted import Fitted as Fitted
from .method import CurvatureMethod as CurvatureMethod
from .method import Method as Method
from .methods import EKFAC as EKFAC
from .methods import KFAC as KFAC
from .methods import MAGIC as MAGIC
from .methods import METHODS as METHODS
from .methods import TracIn as TracIn
from .methods import Shampoo as Shampoo
from .methods import Representation as Representation
from .methods import LoGra as LoGra
from .methods import LiSSA as LiSSA
from .methods import GraNd as GraNd
from .methods import Diagonal as Diagonal
from .methods import DataInf as DataInf
from .methods import TRAK as TRAK
from .methods import SOURCE as SOURCE
from .methods import EL2N as EL2N
from .methods import CG as CG
from .methods import Daunce as Daunce
from .methods import BIF as BIF
from .methods import AdamWInfluence as AdamWInfluence
from .methods import BM25 as BM25
from .methods import ASTRA as ASTRA
from .methods import Identity as Identity

# what is measured
from .measurement import ActivationMeasurement as ActivationMeasurement
from .measurement import Direction as Direction

# to look at
from .reporting import report as report

# at scale, and more to look at
from . import finite as finite
from . import index as index
from . import plan as plan
from . import show as show
