"""Which directions: activations in, dictionaries and sparse codes out."""

if __name__ != "whence.decomp":
    raise ImportError("This package is whence.decomp: write `from whence import decomp`, not `import decomp`.")

from .activations import ActivationBatch as ActivationBatch
from .activations import Activations as Activations
from .activations import Origin as Origin
from .builders import ITDA as ITDA
from .builders import Calibrated as Calibrated
from .builders import Calibration as Calibration
from .builders import KMeans as KMeans
from .builders import Partition as Partition
from .builders import Random as Random
from .builders import calibrate as calibrate
from .dictionary import Dictionary as Dictionary
from .dictionary import Provenance as Provenance
from .dictionary import Text as Text
from .diff import difference as difference
from .editing import delete_documents as delete_documents
from .editing import insert as insert
from .editing import merge as merge
from .evaluate import evaluate as evaluate
from .evaluate import loss_recovered as loss_recovered
from .files import load as load
from .files import save as save
from .observe import observe as observe
from .overlap import compare as compare
from .readout import Coefficient as Coefficient
from .sae import SAE as SAE
from .sae import SparseAutoencoder as SparseAutoencoder
from .pages import page as page
from .show import atom_map as atom_map
from .show import atoms as atoms
from .show import plot_curve as plot_curve
from .show import plot_growth as plot_growth
from .splice import spliced as spliced
from .splice import through as through
