"""Finding candidates without scoring every example: a compressed index of gradients, and lexical prefilters."""

from .neighbours import Lists as Lists
from .search import build_index as build_index
from .sketches import Sketch as Sketch
