"""Which data: a model and its training data in, scores out (EK-FAC influence functions, Grosse et al. 2023)."""

if __name__ != "whence.attrib":
    raise ImportError("This package is whence.attrib: write `from whence import attrib`, not `import attrib`.")

from .factors import Damping as Damping
from .factors import Factors as Factors
from .factors import SiteFactors as SiteFactors
from .method import FitOptions as FitOptions
from .method import Method as Method
from .methods import EKFAC as EKFAC
from .methods import KFAC as KFAC
from .methods import METHODS as METHODS
from .methods import Diagonal as Diagonal
from .methods import Identity as Identity
from .scores import score as score
from .scores import self_influence as self_influence
from .scores import token_scores as token_scores

# to look at
from .reporting import report as report
from .reporting import shown_passages as shown_passages
from .show import influences as influences
from .show import plot_sites as plot_sites
from .show import plot_tail as plot_tail
from .show import token_map as token_map

# with a dictionary's atoms
from .reading import Direction as Direction
from .reading import Reading as Reading
from .through import CONSTANT as CONSTANT
from .through import RESIDUAL as RESIDUAL
from .through import through_atoms as through_atoms

# at scale
from .finite import finite_examples as finite_examples
from .finite import nonfinite_ids as nonfinite_ids
from .groups import group_scores as group_scores
from .groups import groups_by as groups_by
from .heads import find_heads as find_heads
from .heads import head_scores as head_scores
from .relative import relative as relative
from .tokens import input_token_scores as input_token_scores
from .tokens import output_token_scores as output_token_scores
from .topk import top as top
