"""A small decoder. This file imports torch only, so that a process without JAX can load it."""

import torch.nn.functional as F
from torch import Tensor, nn


class SmallTransformer(nn.Module):
    """Decoder-only, learned positions, plain torch, so that copies of it can be trained side by side."""

    def __init__(self, vocabulary: int, width: int = 32, context: int = 32, layers: int = 2, heads: int = 2):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for part in (self.embed, self.place, self.head):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.place.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, d))
        return x + self.down(F.gelu(self.up(self.second(x))))
