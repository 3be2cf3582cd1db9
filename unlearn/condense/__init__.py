"""Fewer data: a small synthetic set that trains like the large one.

pool = Pool.of((x_train, y_train))
(small,) = condense(pool, Settings(method="dcc", network=ConvNet(3, 32), per_class=1, outer=100))
evaluate([small], Pool.of((x_test, y_test), scaling=pool.scaling), ConvNet(3, 32))
"""

from . import continual as continual
from . import difficulty as difficulty
from . import pretrained as pretrained
from . import robust as robust
from .adapter import at_equal_size as at_equal_size
from .adapter import condensed_retain as condensed_retain
from .condensed import Condensed as Condensed
from .condensing import condense as condense
from .dynamics import accuracy_curve as accuracy_curve
from .dynamics import kernel_velocity as kernel_velocity
from .evaluate import evaluate as evaluate
from .methods import METHODS as METHODS
from .networks import MLP as MLP
from .networks import ConvNet as ConvNet
from .networks import network as network
from .pool import Pool as Pool
from .selection import select as select
from .settings import Settings as Settings
from .training import Training as Training
