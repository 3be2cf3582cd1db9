"""Ways to make a dictionary from a stream of activations, one file each."""

from .calibrate import Calibrated as Calibrated
from .calibrate import Calibration as Calibration
from .calibrate import calibrate as calibrate
from .itda import ITDA as ITDA
from .kmeans import KMeans as KMeans
from .partition import Partition as Partition
from .random import Random as Random
