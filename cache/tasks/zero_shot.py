"""Images against fixed texts: what an image of a CLIP-like pair is taken for.

    task = tasks.ZeroShot.of(["a photo of a cat", "a photo of a dog"], tokenizer)
    trained = TrainedModel(clip, Examples.of((pixels, classes)), task, sites="vision_model.*")

A pair's own training compares all images and texts of a batch, so an example has no loss of its own. Against fixed
texts it has one: the cross-entropy of its class over them (Radford et al. 2021, arXiv 2103.00020, Section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import DataError
from ..model.task import Batch, Classification, column
from .text import encoded


@dataclass(frozen=True)
class ZeroShot(Classification):
    """`Classification` of images `x` [b c h w] by a model with an image side and a text side: class c has the logit
    scale * cosine(image, text c).

    It is the training loss of a pair that was fine-tuned on labelled images with these texts. Each text runs without
    padding. At sites of the text side every example has a gradient too, for which the examples run one at a time; leave
    these sites out if that side was frozen.

    Args:
        texts: the tokens of each class's text, as `of` gives them.
    """

    texts: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, **settings: Any) -> "ZeroShot":
        """For texts, one a class in the order of the classes, with the special tokens that the tokenizer adds."""
        tokens = tuple(tuple(encoded(tokenizer, text, special=True).tolist()) for text in texts)
        return cls(texts=tokens, **settings)

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b c"]:
        own: Any = model
        if not hasattr(own, "get_image_features"):  # outputs alone, of which a loss is a function
            return super().logits(model, batch)
        if len(self.texts) < 2:
            raise DataError(f"There are {len(self.texts)} texts to compare an image with.", "Give one a class.")
        x = column(batch, "x")
        sides = [own.get_text_features(input_ids=torch.tensor([t], device=x.device)) for t in self.texts]
        texts, images = torch.cat([_unit(side) for side in sides]), _unit(own.get_image_features(pixel_values=x))
        return own.logit_scale.exp() * images @ texts.T


def _unit(features: Any) -> Float[Tensor, "b d"]:
    """The vectors of one side, of length one."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)
