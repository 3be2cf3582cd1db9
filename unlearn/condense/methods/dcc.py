"""Dataset condensation with contrastive signals: gradients are averaged over classes before they are compared.

What all classes share cancels in Σ_c (p - 1_c) h when predictions are near uniform, so the one distance of the
summed gradients sees what tells classes apart. Source: Lee et al. 2022, arXiv 2202.02916.
"""

from ..matching import gradient_matching
from .method import Method, together

DCC = Method("dcc", gradient_matching, together)
