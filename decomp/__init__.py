"""Which directions: activations in, dictionaries and sparse codes out."""

if __name__ != "whence.decomp":
    raise ImportError("This package is whence.decomp: write `from whence import decomp`, not `import decomp`.")

# activations
from .activations import Activations as Activations
from .activations import Origin as Origin
from .observe import observe as observe

# builders
from .builders import BUILDERS as BUILDERS
from .builders import ITDA as ITDA
from .builders import SAE as SAE
from .builders import Calibrated as Calibrated
from .builders import KMeans as KMeans
from .builders import Partition as Partition
from .builders import Random as Random
from .builders import calibrate as calibrate

# dictionaries
from .autoencoder import SparseAutoencoder as SparseAutoencoder
from .dictionary import Dictionary as Dictionary
from .editing import delete_documents as delete_documents
from .editing import insert as insert
from .editing import merge as merge
from .files import load as load
from .files import save as save
from .provenance import Provenance as Provenance

# questions
from .coefficient import Coefficient as Coefficient
from .diff import difference as difference
from .evaluate import evaluate as evaluate
from .evaluate import loss_recovered as loss_recovered
from .evaluate import sparsity_curve as sparsity_curve
from .features import features as features
from .features import top_contexts as top_contexts
from .overlap import compare as compare
from .splice import spliced as spliced

# to look at
from .pages import page as page
from .show import atom_map as atom_map
from .show import atoms as atoms
from .show import plot_curve as plot_curve
from .show import plot_growth as plot_growth
