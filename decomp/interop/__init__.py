"""Dictionaries in the tools that people already use, and theirs here."""

from . import saelens as saelens
from . import sparsify as sparsify
from .mirror import mirrored as mirrored
from .saebench import adapter as adapter
