"""`python -m whence`: the command line."""

from .cli import entry

entry()
