"""Dataset condensation by gradient matching: the loss is Σ over classes of the distance of class gradients.

Source: Zhao, Mopuri and Bilen 2021, "Dataset condensation with gradient matching".
"""

from ..matching import gradient_matching
from .method import Method, by_class

DC = Method("dc", gradient_matching, by_class)
