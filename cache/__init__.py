"""The floor: a model and data go in, arrays on disk come out.

Two halves that do not know each other: what watches a model (data, task, sites, capture, bridge) and what keeps
arrays (keys, entries, commits, readers); and the loops that join them (build, bank).
"""

if __name__ != "whence.cache":
    raise ImportError("This package is whence.cache: write `from whence import cache`, not `import cache`.")

# data and models
from .model.capture import capture as capture
from .model.examples import Examples as Examples

# errors
from .errors import DataError as DataError
from .errors import Interrupted as Interrupted
from .errors import ModelError as ModelError
from .errors import NotCached as NotCached
from .errors import NumericalError as NumericalError
from .errors import ResourceError as ResourceError
from .errors import UsageError as UsageError
from .errors import WhenceError as WhenceError
from .model.sites import Sites as Sites
from .model.sites import find_sites as find_sites
from .model.task import Classification as Classification
from .model.task import LanguageModelling as LanguageModelling
from .model.task import Regression as Regression
from .model.task import Task as Task
from .model.trained import TrainedModel as TrainedModel

# loops over data
from .model.gradients import gradients as gradients
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

# the store
from .store.entry import Entry as Entry
from .model.readers import jax_batches as jax_batches
from .model.readers import torch_batches as torch_batches
from .store.layout import ArraySpec as ArraySpec
from .store.store import Store as Store
