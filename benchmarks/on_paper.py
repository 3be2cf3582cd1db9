"""What large jobs would take, by the planner's own formulas: operations, memory, disk, time and price, on paper.

    python -m benchmarks.on_paper --rate 2e14 --price 2.5

No model is loaded: shapes come from configurations on torch's meta device, the stages from `attrib.plan`. The rate
(operations a second of one device in use, model passes and kernels alike) and the price of a device hour are yours
to give; the defaults are assumptions about one H100, a fifth of its published dense bfloat16 peak. The last column
is the time at the matrix-product rate measured here, now. Factors that exceed a device's memory are fitted in groups
of sites, each with passes of its own over the data.
"""

import argparse
import math
from dataclasses import dataclass

import torch
import transformers
from torch import nn

from whence.attrib import contraction
from whence.attrib.plan import Stage, duration, everything, fit_stages, size
from whence.attrib.room import fit_bytes
from whence.cache import Sites, find_sites

from .attribution import product_rate


@dataclass(frozen=True)
class Paper:
    """A job on paper. tokens: of training data, in sequences of `length`; sites: a glob over the model's layers."""

    name: str
    model: nn.Module
    sites: str
    tokens: float
    length: int


def jobs() -> list[Paper]:
    """The two of the documentation."""
    llama = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        return [
            Paper("GPT-2 on OpenWebText", transformers.GPT2LMHeadModel(transformers.GPT2Config()),
                  "transformer.h.*", 9e9, 1024),
            Paper("8 B model on 1 B tokens", transformers.LlamaForCausalLM(llama), "model.layers.*", 1e9, 2048),
        ]  # fmt: skip


def site_groups(sites: Sites, memory: float) -> int:
    """How many groups of sites it takes for each group's factors to stay within `memory` bytes."""
    return max(1, math.ceil(fit_bytes(sites) / memory))


def stages(job: Paper, queries: int, rank: int, memory: float) -> list[Stage]:
    """Fit, score and top-level index of the job, repeated passes of site groups counted."""
    sites = find_sites(job.model, job.sites, quiet=True)
    examples, tokens, model = int(job.tokens / job.length), int(job.tokens), everything(job.model)
    groups = site_groups(sites, memory)
    fit = [
        Stage(s.name, s.passes * groups, s.operations + (groups - 1) * s.passes * model * tokens,
              math.ceil(s.memory / groups), s.disk)
        for s in fit_stages(sites, examples, tokens, job.length, model)
    ]  # fmt: skip
    works = contraction.choose(sites, queries, job.length, max(1, 8192 // job.length), rank, int(memory) // 2)
    per_example = sum(work.operations for work in works.values())
    values = queries * examples * 4
    score = Stage("score", 1, model * tokens + per_example * examples, contraction.total_bytes(works), values)
    return [*fit, score]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2e14, help="operations a second of one device, in use")
    parser.add_argument("--price", type=float, default=2.5, help="of one device for an hour")
    parser.add_argument("--memory", type=float, default=60e9, help="bytes of one device for factors and queries")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    here = product_rate()
    print(f"one device: {options.rate:.3g} operations/s, {size(options.memory)}, {options.price} an hour (assumed); "
          f"here: {here:.3g} operations/s (measured)")  # fmt: skip
    for job in jobs():
        sites = find_sites(job.model, job.sites, quiet=True)
        covered = sum(site.count for site in sites)
        print(f"\n{job.name}: {len(sites)} sites, {covered:,} of {sites.total:,} parameters; {job.tokens:.3g} tokens "
              f"in sequences of {job.length}; {options.queries} queries at rank {options.rank}; "
              f"{site_groups(sites, options.memory)} groups of sites\n")  # fmt: skip
        print("| stage | passes | operations | memory | disk | device time | price | here |")
        print("|---|---|---|---|---|---|---|---|")
        found = stages(job, options.queries, options.rank, options.memory)
        rows = [(s.name, s.passes, s.operations, s.memory, s.disk) for s in found]
        rows.append(("all", sum(s.passes for s in found), sum(s.operations for s in found),
                     max(s.memory for s in found), sum(s.disk for s in found)))  # fmt: skip
        for name, passes, operations, memory, disk in rows:
            seconds = operations / options.rate
            print(f"| {name} | {passes} | {operations:.3g} | {size(memory)} | {size(disk)} | {duration(seconds)} | "
                  f"{seconds / 3600 * options.price:,.0f} | {operations / here / 86400:,.0f} days |")  # fmt: skip


if __name__ == "__main__":
    main()
