"""Without these data: datamodels, unlearning methods, and an evaluation with its noise in every table."""

if __name__ != "whence.unlearn":
    raise ImportError("This package is whence.unlearn: write `from whence import unlearn`, not `import unlearn`.")

from . import audit as audit
from . import datamodels as datamodels
from . import forget_sets as forget_sets
from . import planner as planner

# predictions of outputs without data
from .datamodels import Influence as Influence

# judging
from .evaluate import OracleSplit as OracleSplit
from .evaluate import evaluate as evaluate
from .evaluate import sweep as sweep
from .loop import run as run
from .lora import lora as lora
from .methods import DMM as DMM
from .methods import METHODS as METHODS
from .methods import DescentAscent as DescentAscent
from .methods import FineTune as FineTune
from .methods import Matching as Matching
from .methods import Newton as Newton
from .methods import OracleMatching as OracleMatching
from .methods import Retrain as Retrain
from .methods import Scrub as Scrub
from .methods import UnlearningMethod as UnlearningMethod
from .metrics import KLoM as KLoM

# forgetting
from .request import UnlearningRequest as UnlearningRequest
from .traces import traces as traces
