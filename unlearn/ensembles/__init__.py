"""Evaluation of anybody's unlearned models from arrays of their outputs: `compare(unlearned, oracles)`.

`margins_of` reads .npz, .npy, .safetensors, Zarr and folders of one .npy a model; `EasyDUB` reads and writes the layout
of that benchmark.
"""

from .arrays import forget_indices as forget_indices
from .arrays import margins_of as margins_of
from .compare import Comparison as Comparison
from .compare import compare as compare
from .easydub import EasyDUB as EasyDUB
