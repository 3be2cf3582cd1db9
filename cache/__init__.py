"""The floor: a model and data go in, arrays on disk come out.

Two halves that do not know each other: what watches a model (data, task, sites, capture, bridge) and what keeps
arrays (keys, entries, commits, readers); and the loops that join them (build, bank).
"""

if __name__ != "whence.cache":
    raise ImportError("This package is whence.cache: write `from whence import cache`, not `import cache`.")

# data and models
from .model.capture import Captured as Captured
from .model.capture import borrowed as borrowed
from .model.capture import called_sites as called_sites
from .model.capture import capture as capture
from .model.capture import hook_points as hook_points
from .model.capture import live_outputs_at as live_outputs_at
from .model.capture import outputs_at as outputs_at
from .model.capture import position_mask as position_mask
from .model.examples import Examples as Examples

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
from .jobs.progress import progress as progress
from .jobs.progress import say as say
from .model.sites import Site as Site
from .model.sites import Sites as Sites
from .model.sites import clean_name as clean_name
from .model.sites import find_sites as find_sites
from .model.sites import matrices_of as matrices_of
from .model.stateless import named_parameters as named_parameters
from .model.sites import parameters_of as parameters_of
from .model.task import Classification as Classification
from .model.task import LanguageModelling as LanguageModelling
from .model.task import Regression as Regression
from .model.task import Task as Task
from .model.trained import ModelPass as ModelPass
from .model.trained import TrainedModel as TrainedModel
from .model.task import margin as margin

# loops over data
from .model.gradients import StoredBatches as StoredBatches
from .model.gradients import gradients as gradients
from .model.gradients import open_gradients as open_gradients
from .model.activations import activations as activations

# retraining
from .retrain.bank import Bank as Bank
from .retrain.recipe import SGD as SGD
from .retrain.recipe import AdamW as AdamW
from .retrain.recipe import Recipe as Recipe
from .retrain.recipe import Schedule as Schedule
from .retrain.retrained import oracle_masks as oracle_masks
from .retrain.retrained import subset_masks as subset_masks

# to look at
from .display import Shown as Shown
from .display import heat as heat
from .display import table as table

# the store
from .jobs.cluster import Cluster as Cluster
from .jobs.cluster import connect as connect
from .store.entry import Entry as Entry
from .model.readers import jax_batches as jax_batches
from .model.readers import torch_batches as torch_batches
from .model.fingerprint import Fingerprint as Fingerprint
from .model.fingerprint import model_fingerprint as model_fingerprint
from .store.keys import canonical as canonical
from .store.keys import key_of as key_of
from .store.layout import ArraySpec as ArraySpec
from .store.layout import Shard as Shard
from .jobs.partitions import ordered_sum as ordered_sum
from .jobs.partitions import run_job as run_job
from .jobs.partitions import run_partitions as run_partitions
from .store.store import Event as Event
from .store.store import Store as Store
from .store.writer import Writer as Writer
