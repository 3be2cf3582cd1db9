"""DC with differentiable Siamese augmentation (Zhao and Bilen 2021): see augment.py."""

from dataclasses import replace

from .dc import DC

DSA = replace(DC, name="dsa", augmented=True)
