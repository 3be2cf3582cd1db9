"""Sparse pursuit in JAX: arrays in, arrays out. Axes: b signal, a atom, d width, k pursuit step."""

from .code import Code as Code
from .code import decode as decode
from .code import densify as densify
from .forms import Basis as Basis
from .forms import append as append
from .forms import basis_of as basis_of
from .forms import gram_pays as gram_pays
from .gradient import gradient_pursuit as gradient_pursuit
from .matching import matching_pursuit as matching_pursuit
from .matching import nonnegative_matching_pursuit as nonnegative_matching_pursuit
from .matching import refitted_matching_pursuit as refitted_matching_pursuit
from .orthogonal import orthogonal_matching_pursuit as orthogonal_matching_pursuit
from .orthogonal_basis import least_squares as least_squares
from .pursuit import Pursuit as Pursuit
from .pursuit import encode as encode
from .pursuit import chunk_rows as chunk_rows
