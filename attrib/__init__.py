"""Which data: a model and its training data in, scores out (EK-FAC influence functions, Grosse et al. 2023)."""

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
