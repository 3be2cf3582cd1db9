"""Datamodels: predictions of how outputs change when training examples are left out."""

from .base import Calibrated as Calibrated
from .base import Cost as Cost
from .base import Datamodel as Datamodel
from .base import Pilot as Pilot
from .base import calibrate as calibrate
from .base import lds as lds
from .base import lds_of as lds_of
from .grouped import Grouped as Grouped
from .grouped import grouped as grouped
from .grouped import nearest as nearest
from .grouped import neighbourhood_masks as neighbourhood_masks
from .influence import Averaged as Averaged
from .influence import Influence as Influence
from .inverse import InverseProduct as InverseProduct
from .inverse import exact as exact
from .influence import Removal as Removal
from .inverse import inverse_product as inverse_product
from .inverse import projected as projected
from .regression import Regression as Regression
from .regression import lasso as lasso
from .regression import ridge as ridge
