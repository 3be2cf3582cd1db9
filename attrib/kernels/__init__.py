"""The hot loops of attribution: JAX functions of arrays, without I/O and without torch.

Axes: b example, s position, i layer input (bias appended), o layer output, q query. The gradient of example b at a site
is G_b = sum over s of g[b s] a[b s]^T, [o i]; it is never formed for more than a few examples or a tile at a time. All
functions keep the dtype of their inputs, except that products of bfloat16 arrays are summed, and returned, in float32;
sums over many batches are carried as two numbers (`Sum`).
"""

from .rotations import Order as Order
from .rotations import absolute_sums as absolute_sums
from .rotations import add_rotated_squares as add_rotated_squares
from .rotations import add_squares as add_squares
from .rotations import gradients as gradients
from .rotations import preconditioned as preconditioned
from .rotations import rotate as rotate
from .rotations import rotate_back as rotate_back
from .rotations import rotated as rotated
from .rotations import rotation_order as rotation_order
from .rotations import weighted_squares as weighted_squares
from .eigen import checked_eigh as checked_eigh
from .lowrank import leading_pairs as leading_pairs
from .lowrank import truncated_pairs as truncated_pairs
from .pairs import atom_products as atom_products
from .pairs import pair_products as pair_products
from .pairs import position_products as position_products
from .pairs import rank_products as rank_products
from .pairs import rebuilt_products as rebuilt_products
from .sketches import whitened as whitened
from .sketches import whitened_coordinates as whitened_coordinates
from .sketches import whitened_pairs as whitened_pairs
from .sketches import whitened_projection as whitened_projection
from .sums import SYMMETRIC_WIDTH as SYMMETRIC_WIDTH
from .sums import Sum as Sum
from .sums import add as add
from .sums import add_gradient as add_gradient
from .sums import add_gram as add_gram
from .sums import add_moment as add_moment
from .sums import add_term as add_term
from .sums import symmetric_product as symmetric_product
from .sums import zero_sum as zero_sum
