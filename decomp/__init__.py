"""Which directions: activations in, dictionaries and sparse codes out."""

if __name__ != "whence.decomp":
    raise ImportError("This package is whence.decomp: write `from whence import decomp`, not `import decomp`.")

# activations
from .activations import Activations as Activations
from .observe import observe as observe

# builders
from .builders import BUILDERS as BUILDERS
from .builders import ITDA as ITDA
from .builders import MPSAE as MPSAE
from .builders import SAE as SAE
from .builders import Calibrated as Calibrated
from .builders import KMeans as KMeans
from .builders import Partition as Partition
from .builders import Random as Random
from .builders import calibrate as calibrate

# dictionaries
from .autoencoder import SparseAutoencoder as SparseAutoencoder
from .dictionary import Dictionary as Dictionary
from .files import load as load
from .files import save as save
from .provenance import Provenance as Provenance

# questions
from .coefficient import Coefficient as Coefficient
from .diff import difference as difference
from .evaluate import evaluate as evaluate
from .evaluate import loss_recovered as loss_recovered
from .features import features as features
from .overlap import compare as compare
from .splice import spliced as spliced

# several hook points in one pass
from . import streaming as streaming

# to look at
from . import show as show
from .pages import page as page
