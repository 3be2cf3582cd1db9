"""torch's attention with its projections as products of their own, which its fused function hides."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def split(module: nn.Module) -> Iterator[None]:
    """`nn.MultiheadAttention` computes the same inside by one product for queries, keys and values each, and calls its
    `out_proj` as a module."""
    inner = vars(module).get("forward")  # what another tool has put there
    if inner is not None:
        yield
        return
    vars(module)["forward"] = lambda *args, **kwargs: _forward(module, *args, **kwargs)
    try:
        yield
    finally:
        del vars(module)["forward"]


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The arguments of `nn.MultiheadAttention.forward`. Scores and masks are left to torch's function, which is given
    the projected tensors and identities in place of the projections."""
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
        projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        projected = [F.linear(x, w) + (0 if b is None else b) for x, w, b in zip((query, key, value), weights, biases)]
    turned = module.batch_first and query.ndim == 3
    q, k, v = (x.transpose(0, 1) if turned else x for x in projected)
    same = torch.eye(module.embed_dim, dtype=q.dtype, device=q.device)
    out, scores = F.multi_head_attention_forward(
        q, k, v, module.embed_dim, module.num_heads, None, None, module.bias_k, module.bias_v, module.add_zero_attn,
        module.dropout, same, None, module.training, key_padding_mask, need_weights, attn_mask,
        use_separate_proj_weight=True, q_proj_weight=same, k_proj_weight=same, v_proj_weight=same,
        average_attn_weights=average_attn_weights, is_causal=is_causal,
    )  # fmt: skip
    return module.out_proj(out.transpose(0, 1) if turned else out), scores
