"""What large jobs would take, by the planner's own formulas: operations, memory, disk, time and price, on paper.

No model is loaded: shapes come from configurations on torch's meta device, the stages from `attrib.plan`. The rate
(operations per second of one device in use, model passes and kernels alike) and the price of a device hour are yours
to choose; the defaults are assumptions about one H100, a fifth of its published dense bfloat16 peak. The last column
is the time at the matrix-product rate measured here, now. Factors that exceed a device's memory are fitted in groups
of sites, each with passes of its own over the data.
"""

import math
from dataclasses import dataclass

import torch
import transformers
from torch import nn

from whence.attrib.memory import fit_bytes
from whence.attrib.plan import Stage, duration, fit_stages, model_operations
from whence.attrib.scoring import contraction
from whence.cache import Sites, find_sites
from whence.cache.store.store import human

from .harness import Benchmark, Run
from .timing import product_rate

bench = Benchmark(__file__, __doc__, example="--rate 2e14 --price 2.5")


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


def stages(job: Paper, queries: int, rank: int, limit: float) -> list[Stage]:
    """Fit, score and top-level index of the job, repeated passes of site groups counted."""
    sites = find_sites(job.model, job.sites, quiet=True)
    examples, tokens, model = int(job.tokens / job.length), int(job.tokens), model_operations(job.model)
    groups = site_groups(sites, limit)
    fit = [
        Stage(s.name, s.passes * groups, s.operations + (groups - 1) * s.passes * model * tokens,
              math.ceil(s.memory / groups), s.disk)
        for s in fit_stages(sites, examples, tokens, job.length, model)
    ]  # fmt: skip
    works = contraction.choose(sites, queries, job.length, max(1, 8192 // job.length), rank, int(limit) // 2)
    operations = model * tokens + sum(work.operations for work in works.values()) * examples
    memory = sum(work.nbytes for work in works.values())
    return [*fit, Stage("score", 1, operations, memory, queries * examples * 4)]


@bench.case()
def paper(
    run: Run, rate: float = 2e14, price: float = 2.5, memory: float = 60e9, queries: int = 64, rank: int = 32
) -> None:
    """The stages of each job.

    Args:
        rate: operations per second of one device, in use.
        price: of one device for an hour.
        memory: bytes of one device for factors and queries.
        queries: queries.
        rank: of the preconditioned queries.
    """
    here = product_rate(2048)
    run.say(f"one device: {rate:.3g} operations/s, {human(memory)}, {price} an hour (assumed); "
            f"here: {here:.3g} operations/s (measured)")  # fmt: skip
    for job in jobs():
        sites = find_sites(job.model, job.sites, quiet=True)
        covered = sum(site.count for site in sites)
        title = (
            f"{job.name}: {len(sites)} sites, {covered:,} of {sites.total:,} parameters; {job.tokens:.3g} tokens "
            f"in sequences of {job.length}; {queries} queries at rank {rank}; "
            f"{site_groups(sites, memory)} groups of sites"
        )
        table = run.table(
            "stage", "passes", "operations|.3g", "memory", "disk", "device time", "price|,.0f", "here, days|,.0f",
            title=title,
        )  # fmt: skip
        found = stages(job, queries, rank, memory)
        whole = Stage("all", *(sum(getattr(s, f) for s in found) for f in ("passes", "operations")),
                      max(s.memory for s in found), sum(s.disk for s in found))  # fmt: skip
        for s in (*found, whole):
            seconds = s.operations / rate
            cost, days = seconds / 3600 * price, s.operations / here / 86400
            table.row(s.name, s.passes, s.operations, human(s.memory), human(s.disk), duration(seconds), cost, days)


if __name__ == "__main__":
    bench.main()
