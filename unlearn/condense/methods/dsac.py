"""DCC with differentiable Siamese augmentation; every class keeps its own draw (Lee et al. 2022)."""

from dataclasses import replace

from .dcc import DCC

DSAC = replace(DCC, name="dsac", augmented=True)
