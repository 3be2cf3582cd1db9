"""The floor: a model and data go in, arrays on disk come out.

Two halves that do not know each other: what watches a model (data, task, sites, capture, bridge) and what keeps
arrays (keys, entries, commits, readers); and the loops that join them (build, bank).
"""

# data and models
from .capture import Captured as Captured
from .capture import borrowed as borrowed
from .capture import called_sites as called_sites
from .capture import capture as capture
from .capture import hook_points as hook_points
from .capture import live_outputs_at as live_outputs_at
from .capture import outputs_at as outputs_at
from .capture import position_mask as position_mask
from .data import Examples as Examples

# errors
from .errors import CorruptEntry as CorruptEntry
from .errors import DataError as DataError
from .errors import Interrupted as Interrupted
from .errors import ModelError as ModelError
from .errors import NewerFormat as NewerFormat
from .errors import NotCached as NotCached
from .errors import NumericalError as NumericalError
from .errors import ResourceError as ResourceError
from .errors import StoreError as StoreError
from .errors import UsageError as UsageError
from .errors import WhenceError as WhenceError
from .progress import progress as progress
from .progress import say as say
from .sites import Site as Site
from .sites import Sites as Sites
from .sites import clean_name as clean_name
from .sites import find_sites as find_sites
from .sites import matrices_of as matrices_of
from .sites import named_parameters as named_parameters
from .sites import parameters_of as parameters_of
from .task import Classification as Classification
from .task import LanguageModelling as LanguageModelling
from .task import Regression as Regression
from .task import Task as Task
from .task import margin as margin

# loops over data
from .gradients import StoredFrames as StoredFrames
from .gradients import gradients as gradients
from .gradients import open_gradients as open_gradients
from .hooked import activations as activations

# to look at
from .show import Shown as Shown
from .show import heat as heat
from .show import table as table

# the store
from .cluster import Cluster as Cluster
from .cluster import connect as connect
from .entry import Entry as Entry
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import model_fingerprint as model_fingerprint
from .keys import canonical as canonical
from .keys import key_of as key_of
from .layout import ArraySpec as ArraySpec
from .layout import Shard as Shard
from .partitions import ordered_sum as ordered_sum
from .partitions import run_job as run_job
from .partitions import run_partitions as run_partitions
from .store import Event as Event
from .store import Store as Store
from .writer import Writer as Writer
