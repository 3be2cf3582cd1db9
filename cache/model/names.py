"""The names of a model's modules: those of its own library, and those of TransformerLens.

A bridge of TransformerLens is a tree of modules under that library's names (`blocks.2.hook_out`) around a model whose
own library calls the same modules otherwise (`model.layers.2`). A plain transformers model has its own names only;
those of TransformerLens are derived from its stack of layers.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, near_names
from .stateless import unwrapped

WRAPPERS = ("_original_component", "base_model", "_orig_mod", "_fsdp_wrapped_module")
OUT = ".hook_out"
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def clean_name(name: str) -> str:
    """A module's name without the wrappers that libraries put around modules.

    >>> clean_name("blocks.0._original_component.mlp")
    'blocks.0.mlp'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def hook_points(model: nn.Module) -> dict[str, str]:
    """Clean name -> full name of every module whose output can be captured.

    >>> sorted(hook_points(model))
    ['0', '1', '2']
    """
    return {clean_name(name): name for name, _ in reversed(list(model.named_modules())) if name}


def full_name(model: nn.Module, name: str) -> str:
    """The full name of a module by any of its names: full, clean, its own library's, TransformerLens's.

    Raises ModelError, with near names, if there is none.
    """
    points = hook_points(model)
    if name and name in points.values():
        return name
    found = points.get(name) or (other_names(model).get(name) if name else None)
    if found is None:
        raise ModelError(f"The model has no module or hook point {name!r}.", near_names(name, list(points)))
    return found


def known_as(model: nn.Module, name: str) -> str:
    """The name under which results of a hook point are stored: the given one if the tree of modules has it, else the
    clean name of the module that it is another name of. Raises ModelError for an unknown name."""
    full = full_name(model, name)
    return name if name in (full, clean_name(full)) else clean_name(full)


def other_names(model: nn.Module) -> dict[str, str]:
    """Further names -> full names of modules: of a bridge those that the model inside has, and TransformerLens's own
    aliases; of a plain model with a stack of layers those of TransformerLens. A bridge's module stands for its output.
    """
    inner = getattr(model, "original_model", None)
    found = _of_bridge(model, inner) if isinstance(inner, nn.Module) else _of_stack(unwrapped(model))
    names: dict[str, str] = {}
    for other, full in found:
        names.setdefault(other, full)
    return names


def site_names(model: nn.Module) -> dict[str, list[str]]:
    """Clean name of a module -> its other names, as far as they are of the whole module."""
    names: dict[str, list[str]] = {}
    for other, full in other_names(model).items():
        names.setdefault(clean_name(full).removesuffix(OUT), []).append(other.removesuffix(OUT))
    return names


def own_parameters(model: nn.Module) -> dict[str, str]:
    """Full name of each parameter -> its name in the model's own library: another one in a bridge only."""
    inner = getattr(model, "original_model", None)
    own = _own_paths(inner) if isinstance(inner, nn.Module) else {}
    found = {}
    for name, _ in nn.Module.named_parameters(model, remove_duplicate=False):
        module, _, attribute = name.rpartition(".")
        path = own.get(id(model.get_submodule(module)), clean_name(module))
        found[name] = f"{path}.{attribute}".lstrip(".")
    return found


def parts_of(model: nn.Module) -> dict[str, str]:
    """Parameters that are a part of a larger one in memory -> that one: of GPT-2 in a bridge, queries, keys and values
    of their joint map."""
    own = dict(nn.Module.named_parameters(model))
    return {
        part: whole
        for whole, matrix in own.items()
        for part, p in own.items()
        if p.numel() < matrix.numel() and _inside(p, matrix)
    }


def _inside(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return whole.is_contiguous() and part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _own_paths(inner: nn.Module) -> dict[int, str]:
    """id of each module in a bridge's inner tree -> its path in the words of the inner library."""
    own: dict[str, str] = {}
    found: dict[int, str] = {}
    for path, module in inner.named_modules():
        parent, _, last = path.rpartition(".")
        remote = getattr(module, "name", None) if _is_component(module) else None
        last = remote.rpartition(".")[2] if isinstance(remote, str) and remote else last
        own[path] = clean_name(f"{own.get(parent, '')}.{last}").lstrip(".")
        found[id(module)] = own[path]
    return found


def _is_component(module: nn.Module) -> bool:
    return isinstance(getattr(module, "hook_out", None), nn.Module)


def _of_bridge(model: Any, inner: nn.Module) -> Iterator[tuple[str, str]]:
    full = {id(module): (name, module) for name, module in reversed(list(model.named_modules()))}
    for number, own in _own_paths(inner).items():
        if number in full and own:
            name, module = full[number]
            yield own, f"{name}{OUT}" if _is_component(module) else name
    for alias, module in getattr(model, "hook_dict", {}).items():
        if id(module) in full:
            yield alias, full[id(module)][0]


def _of_stack(model: nn.Module) -> Iterator[tuple[str, str]]:
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    modules = dict(model.named_modules())
    stack = next((n for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) == layers), None)
    if stack is None:
        return
    for name in modules:
        if name.startswith(f"{stack}."):
            layer, _, rest = name[len(stack) + 1 :].partition(".")
            kinds = {"attn": rest in ATTENTION, "mlp": rest in FEED_FORWARD}
            short = next((kind for kind, same in kinds.items() if same), "")
            if not rest:
                yield from ((f"blocks.{layer}.{hook}", name) for hook in ("hook_out", "hook_resid_post"))
            if short:
                yield f"blocks.{layer}.{short}{OUT}", name
                yield f"blocks.{layer}.hook_{short}_out", name
            yield f"blocks.{layer}.{rest}".rstrip("."), name
    parent = stack.rpartition(".")[0]
    norms = [f"{parent}.{last}".lstrip(".") for last in FINAL_NORM]
    yield from ((f"ln_final{OUT}", name) for name in norms if name in modules)
    full = {id(module): name for name, module in modules.items()}
    for name, getter in (("embed", "get_input_embeddings"), ("unembed", "get_output_embeddings")):
        module = getattr(model, getter, lambda: None)()
        if id(module) in full:
            yield f"{name}{OUT}", full[id(module)]
            yield f"hook_{name}", full[id(module)]
