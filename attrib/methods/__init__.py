"""The methods, one file each."""

from .diagonal import Diagonal as Diagonal
from .ekfac import EKFAC as EKFAC
from .identity import Identity as Identity
from .kfac import KFAC as KFAC

METHODS = {"identity": Identity, "diagonal": Diagonal, "kfac": KFAC, "ekfac": EKFAC}
