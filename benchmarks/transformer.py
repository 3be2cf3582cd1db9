"""A small decoder of plain torch layers, and the sequences with structure that attribution is timed on."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    d: int = 256
    layers: int = 4
    heads: int = 8
    length: int = 128
    vocabulary: int = 1024
    train: int = 512
    queries: int = 64


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, d)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Decoder(nn.Module):
    """Learned positions start at zero; a bank can train copies of it side by side."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.embed.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.place[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def decoder(size: Size) -> Decoder:
    return Decoder(size.vocabulary, size.d, size.layers, size.heads, size.length)


def sequences(count: int, size: Size, seed: int) -> np.ndarray:
    """[count length] tokens of a sparse random Markov chain, the same chain for every seed."""
    chain = np.random.default_rng(7).integers(0, size.vocabulary, (size.vocabulary, 4))
    rng = np.random.default_rng(seed)
    tokens = np.empty((count, size.length), np.int64)
    tokens[:, 0] = rng.integers(0, size.vocabulary, count)
    for t in range(1, size.length):
        step = chain[tokens[:, t - 1], rng.integers(0, 4, count)]
        tokens[:, t] = np.where(rng.random(count) < 0.1, rng.integers(0, size.vocabulary, count), step)
    return tokens


def briefly_trained(size: Size, steps: int = 60) -> Decoder:
    """A model after a few steps: its gradients are not those of random weights."""
    torch.manual_seed(0)
    model = decoder(size)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        batch = torch.as_tensor(sequences(16, size, 1000 + step))
        optimizer.zero_grad()
        F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()
