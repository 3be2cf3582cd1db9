"""Without these data: datamodels, unlearning methods, and an evaluation with its noise in every table."""

if __name__ != "whence.unlearn":
    raise ImportError("This package is whence.unlearn: write `from whence import unlearn`, not `import unlearn`.")

from . import audit as audit
from . import forget_sets as forget_sets
from .attacks import membership as membership
from .attacks import u_lira as u_lira
from .attacks import u_lira_cheap as u_lira_cheap

# predictions of outputs without data
from .datamodels import Calibrated as Calibrated
from .datamodels import Datamodel as Datamodel
from .datamodels import Grouped as Grouped
from .datamodels import Influence as Influence
from .datamodels import Pilot as Pilot
from .datamodels import Regression as Regression
from .datamodels import calibrate as calibrate
from .datamodels import ekfac as ekfac
from .datamodels import exact as exact
from .datamodels import grouped as grouped
from .datamodels import lasso as lasso
from .datamodels import lds as lds
from .datamodels import projected as projected
from .datamodels import ridge as ridge

# forgetting
from .deletion import Deletion as Deletion
from .deletion import Ledger as Ledger

# judging
from .evaluate import Panel as Panel
from .evaluate import Rule as Rule
from .evaluate import evaluate as evaluate
from .evaluate import sweep as sweep
from .loop import Method as Method
from .loop import Unlearned as Unlearned
from .loop import run as run
from .lora import lora as lora
from .methods import DMM as DMM
from .methods import NPO as NPO
from .methods import RMU as RMU
from .methods import DescentAscent as DescentAscent
from .methods import DMDirect as DMDirect
from .methods import FineTune as FineTune
from .methods import GradDiff as GradDiff
from .methods import GradientAscent as GradientAscent
from .methods import L1Sparse as L1Sparse
from .methods import Matching as Matching
from .methods import NegGradPlus as NegGradPlus
from .methods import Newton as Newton
from .methods import OracleMatching as OracleMatching
from .methods import Retrain as Retrain
from .methods import SalUn as SalUn
from .methods import Scrub as Scrub
from .methods import SimNPO as SimNPO
from .metrics import KLoM as KLoM
from .metrics import advise as advise
from .metrics import energy_distance as energy_distance
from .metrics import two_sample_test as two_sample_test
from .report import page as page
from .report import plot as plot
from .report import plot_margins as plot_margins
from .results import Evaluation as Evaluation
from .results import table as table
