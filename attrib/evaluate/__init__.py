"""Are the scores right: judged by retraining, by optimisation, and by what is known to be true."""

from whence.cache.statistics import LDS as LDS
from whence.cache.statistics import Difference as Difference

from .agreement import compare as compare
from .agreement import lds as lds
from .leave_out import Removals as Removals
from .leave_out import brittleness as brittleness
from .leave_out import leave_out_masks as leave_out_masks
from .leave_out import qld as qld
from .mislabelled import Detection as Detection
from .mislabelled import detection as detection
from .mislabelled import flip_labels as flip_labels
from .pbrf import Response as Response
from .pbrf import agreement_with_pbrf as agreement_with_pbrf
from .pbrf import pbrf as pbrf
from .recall import Recall as Recall
from .recall import recall as recall
