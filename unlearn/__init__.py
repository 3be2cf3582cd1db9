"""Without these data: datamodels, unlearning methods, and an evaluation with its noise in every table."""

if __name__ != "whence.unlearn":
    raise ImportError("This package is whence.unlearn: write `from whence import unlearn`, not `import unlearn`.")

from . import audit as audit
from . import forget_sets as forget_sets
from .attacks import membership as membership

# predictions of outputs without data
from .datamodels import Averaged as Averaged
from .datamodels import Influence as Influence
from .datamodels import calibrate as calibrate
from .datamodels import exact as exact
from .datamodels import grouped as grouped
from .datamodels import lasso as lasso
from .datamodels import lds as lds
from .datamodels import projected as projected
from .datamodels import ridge as ridge

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
from .metrics import advise as advise
from .planner import candidates as candidates
from .planner import pilot_factors as pilot_factors
from .planner import plan_deletion as plan_deletion
from .report import plot as plot
from .report import plot_margins as plot_margins

# forgetting
from .request import UnlearningRequest as UnlearningRequest
from .results import table as table
from .traces import traces as traces
