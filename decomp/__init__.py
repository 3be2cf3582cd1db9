"""Which directions: activations in, dictionaries and sparse codes out."""

from .activations import ActivationBatch as ActivationBatch
from .activations import Activations as Activations
from .activations import Origin as Origin
from .builders import ITDA as ITDA
from .builders import Calibration as Calibration
from .builders import KMeans as KMeans
from .builders import Partition as Partition
from .builders import Random as Random
from .builders import calibrate as calibrate
from .dictionary import Dictionary as Dictionary
from .dictionary import Provenance as Provenance
from .dictionary import Text as Text
from .editing import delete_documents as delete_documents
from .editing import insert as insert
from .editing import merge as merge
from .files import load as load
from .files import save as save
