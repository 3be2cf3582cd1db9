"""`whence attrib sites` and `whence decomp hooks`: what a model's layers and hook points are called."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._shared import ModelOptions, Tabled

if TYPE_CHECKING:
    from whence.corpora import ImageReader


@dataclass(frozen=True, kw_only=True)
class Sites(ModelOptions, Tabled):
    """List the layers that can be attributed: name, name in the model's own library, kind, parameters, covered share.

    `--sites` of the other commands takes either name.

    Example:

        whence attrib sites --sites "*.mlp.*"
    """

    kept = ""
    sites: tuple[str, ...] = ("*",)
    """Only these, by name."""

    def run(self) -> None:
        from whence.cache import find_sites
        from whence.cache.display import table
        from whence.cache.model.names import site_names
        from whence.inputs import load_model

        model, _ = load_model(self.model, self.open_store(), quiet=self.quiet, loading=self)
        found, others = find_sites(model, list(self.sites), quiet=True), site_names(model)
        rows = []
        for site in found:
            own = next((name for name in others.get(site.name.partition("[")[0], ()) if name != site.name), "")
            rows.append({
                "name": site.name, "own_name": own, "kind": site.kind, "out": site.shape[0], "in": site.shape[1],
                "parameters": site.count, "share": site.count / max(found.total, 1),
            })  # fmt: skip
        shown = []
        for row in rows:
            size = f"{row['out']} x {row['in']}"
            numbers = f"{row['parameters']:,}", f"{row['share']:.1%}"
            shown.append((row["name"], row["own_name"], row["kind"], size, *numbers))
        text = table(("site", "own name", "kind", "out x in", "parameters", "share"), shown).text
        self.show_table({"sites": rows, "coverage": found.coverage}, f"{text}\n{found.summary}", rows)


@dataclass(frozen=True, kw_only=True)
class Hooks(ModelOptions, Tabled):
    """List the hook points: name in the model's own library, in TransformerLens, and shape for one text of 4 tokens, or
    one image.

    `--at` of the other commands takes either name. By default the output of each layer, and of its attention and its
    feed-forward part; --every lists all that one forward pass reaches.

    Example:

        whence decomp hooks --model demo
    """

    kept = ""
    every: bool = False
    """List every hook point."""

    def run(self) -> None:
        from whence.cache.display import table
        from whence.inputs import load_model
        from whence.pretrained import form_of, image_reader

        model, _ = load_model(self.model, self.open_store(), quiet=self.quiet, loading=self)
        reader = image_reader(self.model, self) if form_of(model) == "images" else None
        rows = hook_rows(model, self.every, reader)
        shown = [(row["own_name"], row["name"], " x ".join(map(str, row["shape"]))) for row in rows]
        lines = [{**row, "shape": shape} for row, (*_, shape) in zip(rows, shown)]
        text = table(("own name", "TransformerLens name", "shape"), shown).text
        self.show_table({"hooks": rows}, text, lines)


def hook_rows(model: object, every: bool, reader: "ImageReader | None" = None) -> list[dict]:
    """Own name, name of TransformerLens and shape of each module that a forward pass of four tokens (or of one image,
    read by `reader`) reaches, in its order."""
    import re
    from contextlib import ExitStack, suppress

    import torch
    from torch import nn

    from whence.cache.model.borrowing import borrowed
    from whence.cache.model.names import clean_name, other_names
    from whence.cache.model.outputs import tensor_of
    from whence.pretrained import form_of

    assert isinstance(model, nn.Module)
    shapes: dict[str, list[int]] = {}

    def keep(name: str, out: object) -> None:
        with suppress(Exception):  # what returns no tensor is no hook point
            shapes.setdefault(name, list(tensor_of(out, name).shape))

    with ExitStack() as hooks, borrowed(model), torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out)).remove)
        first = next(model.parameters())
        given = torch.zeros((1, 4), dtype=torch.long, device=first.device)
        if reader is not None:
            given = torch.as_tensor(reader.blank()[None]).to(first)
        model(given, **({"decoder_input_ids": given} if form_of(model) == "pairs" else {}))
    lens = re.compile(r"(blocks\.\d+\.)?(attn\.|mlp\.)?(hook_\w+)|(embed|pos_embed|unembed|ln_final)\.hook_out")
    others: dict[str, list[str]] = {}
    for other, full in other_names(model).items():
        others.setdefault(full, []).append(other)
    rows: list[dict] = []
    for full, shape in shapes.items():
        named = [clean_name(full), *others.get(full, ())]
        known = [name for name in named if "hook_" in name]
        own = [name for name in named if "hook_" not in name and not name.startswith("blocks.")]
        if hasattr(model, "original_model") and not known:
            continue  # its output has a hook point of its own
        main = bool(own) and any(re.fullmatch(r"(blocks\.\d+\.((attn|mlp)\.)?|\w+\.)hook_out", n) for n in known)
        if every or main:
            shortest = min(known, key=lambda n: (not lens.fullmatch(n), len(n)), default="")
            rows.append({"own_name": own[0] if own else "", "name": shortest, "shape": shape})
    return rows
