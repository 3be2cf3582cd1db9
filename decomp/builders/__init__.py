"""Ways to build a dictionary from activations, one file each. `BUILDERS` is the list that the command line, the
documents and the tests read."""

from collections.abc import Mapping
from typing import Any

from .builder import Builder as Builder
from .calibrate import Calibrated as Calibrated
from .calibrate import Calibration as Calibration
from .calibrate import calibrate as calibrate
from .itda import ITDA as ITDA
from .kmeans import KMeans as KMeans
from .mpsae import MPSAE as MPSAE
from .partition import Partition as Partition
from .random import Random as Random
from .sae import SAE as SAE

BUILDERS: Mapping[str, type[Builder[Any]]] = {
    builder.name: builder for builder in (ITDA, Calibrated, Random, Partition, KMeans, SAE, MPSAE)
}
