"""Which data: a trained model in, scores of its training examples out (EK-FAC influence, Grosse et al. 2023)."""

if __name__ != "whence.attrib":
    raise ImportError("This package is whence.attrib: write `from whence import attrib`, not `import attrib`.")

from .curvature import Damping as Damping
from .factors import Factors as Factors
from .fitted import Fitted as Fitted
from .method import CurvatureMethod as CurvatureMethod
from .method import Method as Method
from .methods.diagonal import Diagonal as Diagonal
from .methods.ekfac import EKFAC as EKFAC
from .methods.identity import Identity as Identity
from .methods.kfac import KFAC as KFAC

# to look at
from .reporting import report as report
from .reporting import shown_passages as shown_passages
from .show import influences as influences
from .show import plot_sites as plot_sites
from .show import plot_tail as plot_tail
from .show import token_map as token_map
