"""Are the scores right: evaluation by retraining, by optimisation, by known answers, and by standard errors."""

from whence.cache.statistics import LDS as LDS
from whence.cache.statistics import Difference as Difference

from .agreement import compare as compare
from .agreement import lds as lds
from .errorbars import ErrorBars as ErrorBars
from .errorbars import error_bars as error_bars
from .leave_out import Removals as Removals
from .leave_out import brittleness as brittleness
from .leave_out import brittleness_of_all as brittleness_of_all
from .leave_out import qld as qld
from .mislabelled import Detection as Detection
from .mislabelled import detection as detection
from .mislabelled import flip_labels as flip_labels
from .pbrf import Response as Response
from .pbrf import agreement_with_pbrf as agreement_with_pbrf
from .pbrf import pbrf as pbrf
from .probes import Tail as Tail
from .probes import by_layer as by_layer
from .probes import fictional_facts as fictional_facts
from .probes import power_law as power_law
from .probes import word_order as word_order
from .recall import Recall as Recall
from .recall import recall as recall
