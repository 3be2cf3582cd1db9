"""On a GPU, beside the peers: EK-FAC, matching pursuit, a bank, condensation; and a model fitted in groups of sites.

In `gpt2` each side is a process of its own, in float32 and in TF32. Times are inside the process: the first call counts
its compilation, the second does not. The model has random weights, and each side samples its own labels; correlations
of scores say whether both compute the same. Peak memory is what torch and JAX allocated on the GPU.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .harness import Benchmark, Run
from .timing import best, paired, timed
from .transformer import Side, Size, bound, correlation, outcomes, peak_on, sequences

bench = Benchmark(__file__, __doc__, example="--layers 2 --train 64")
PRODUCTS = ("float32", "tf32")


def twice(side: Side, name: str, work: Callable[[], Any]) -> Any:
    """With compilation, then without."""
    side.time(f"{name}, first", work)
    return side.time(name, work)


def whence_side(folder: Path) -> None:
    from whence import attrib

    side, found = Side(folder), {}
    trained, queries = bound(side.model, side.size, device=side.device)
    for products in PRODUCTS:
        method = attrib.EKFAC(products=products, redraw=False)  # type: ignore[arg-type]
        factors = twice(side, f"fit, {products}", lambda method=method: method.fit(trained))

        def score(factors: Any = factors, products: str = products) -> Any:
            return factors.score(queries, precision=products, rank=None)

        found[f"scores, {products}"] = twice(side, f"pairwise, {products}", score).values
        found[f"self-influence, {products}"] = twice(side, f"self, {products}", factors.self_influence).values
    side.finish("whence", **found)


def kronfluence_side(folder: Path) -> None:
    side, found = Side(folder), {}
    peer, train, queries = side.kronfluence()
    for products in PRODUCTS:
        torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
        twice(side, f"fit, {products}", lambda: peer.fit(train))
        found[f"scores, {products}"] = twice(side, f"pairwise, {products}", lambda: peer.pairwise(queries, train))
        found[f"self-influence, {products}"] = twice(side, f"self, {products}", lambda: peer.self_scores(train))
    side.finish("kronfluence", **found)


bench.side("whence", whence_side)
bench.side("kronfluence", kronfluence_side)


@bench.case(quick={"layers": 1, "width": 96, "length": 32, "vocabulary": 128, "train": 32, "queries": 4})
def gpt2(
    run: Run, layers: int = 12, width: int = 768, length: int = 512, vocabulary: int = 50257, train: int = 256,
    queries: int = 32, device: Literal["cuda", "cpu"] = "cuda",
    sides: tuple[Literal["whence", "kronfluence"], ...] = ("whence", "kronfluence"),
) -> None:  # fmt: skip
    """Seconds of both sides, their ratio, agreement and memory.

    Args:
        layers: blocks; the two layers of each block's MLP are attributed to.
        width: of the model, in twelve heads.
        length: tokens of a sequence.
        vocabulary: tokens.
        train: training sequences.
        queries: queries.
        device: cpu only to try the script.
        sides: which ones run.
    """
    if device == "cuda" and not torch.cuda.is_available():
        run.say("torch sees no CUDA device: nothing is measured. --device cpu --quick tries the script.")
        return
    size = Size(width, layers, 12, length, vocabulary, train, queries)
    torch.manual_seed(0)
    found = outcomes(bench, size, size.model(), sides, device=device)
    ratio = len(found) == 2
    table = run.table("job", *(f"{name}, s|.2f" for name in found), *["ratio|.2f"] * ratio, title=f"{device}: {size}")
    for name in next(iter(found.values())).seconds:
        seconds = [outcome.seconds[name] for outcome in found.values()]
        ratios = [found["kronfluence"].seconds[name] / found["whence"].seconds[name]] if ratio else []
        table.row(name, *seconds, *ratios)
    run.say("\npeak memory: " + ", ".join(f"{name} {outcome.peak / 1e9:.2f} GB" for name, outcome in found.items()))
    run.say(f"JAX's devices: {', '.join(outcome.jax for outcome in found.values() if outcome.jax)}")
    for name, ours in found["whence"].arrays.items() if ratio else ():
        run.say(f"correlation of {name}: {correlation(ours, found['kronfluence'].arrays[name]):.4f}")


PURSUITS = ((1024, 8192, 256, 32), (4096, 16384, 768, 32), (8192, 32768, 1024, 32))


@bench.case(quick={"shapes": ((64, 128, 32, 4),), "device": "cpu"})
def pursuit(
    run: Run, shapes: tuple[tuple[int, int, int, int], ...] = PURSUITS, device: Literal["cuda", "cpu"] = "cuda"
) -> None:
    """Matching pursuit with the Gram matrix against the published loop in torch.

    Args:
        shapes: (signals, atoms, width, steps) of every row.
        device: cpu only to try the script.
    """
    import jax

    from whence.decomp import kernels

    from .decomposition import published_loop, signals, unexplained_share

    def encoded(k: int, x: Any, basis: Any) -> Any:
        return jax.block_until_ready(kernels.encode(kernels.matching_pursuit(k), x, basis, chunk=len(x)))

    def finished_loop(x: torch.Tensor, atoms: torch.Tensor, k: int) -> None:
        published_loop(x, atoms, k)[0, 0].item()  # waits for the device

    table = run.table("B, N, d, k", "ours, ms|.1f", "published, ms|.1f", "ratio|.1f", "published in TF32, ms|.1f",
                      "ratio|.1f", "unexplained, ours|.4f", "published|.4f", title="Matching pursuit")  # fmt: skip
    for b, n, d, k in shapes:
        x, atoms = signals(b, n, d)
        xs, basis = jax.numpy.asarray(x), kernels.basis_of(jax.numpy.asarray(atoms), gram=True)
        code = encoded(k, xs, basis)
        ours = best(partial(encoded, k, xs, basis), rounds=5)
        xt, at = torch.as_tensor(x, device=device), torch.as_tensor(atoms, device=device)
        seconds = []
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            seconds.append(best(partial(finished_loop, xt, at, k), rounds=5))
        torch.backends.cuda.matmul.allow_tf32 = False
        theirs = (published_loop(xt, at, k) @ at).cpu().numpy()
        errors = (unexplained_share(x, np.asarray(kernels.decode(code, basis.atoms))), unexplained_share(x, theirs))
        full, tf = seconds
        table.row(f"{b}, {n}, {d}, {k}", 1e3 * ours, 1e3 * full, full / ours, 1e3 * tf, tf / ours, *errors)


@bench.case(quick={"models": 4, "alone": 1, "device": "cpu"})
def bank(run: Run, models: int = 64, alone: int = 2, device: Literal["cuda", "cpu"] = "cuda") -> None:
    """A bank of small models against the same training one by one in eager torch.

    Args:
        models: of the bank.
        alone: models that are trained one by one; their time is scaled.
        device: cpu only to try the script.
    """
    from dataclasses import replace

    from whence.cache import subset_masks

    from .bank import MODELS, bank_of, compare

    table = run.table("model", "copies", "one by one, s|.1f", "bank, s|.2f", "ratio", "largest difference|.0e",
                      title="Bank of small models")  # fmt: skip
    for name, build in MODELS.items():
        models_there = replace(bank_of(build), device=device)
        models_there.run(subset_masks(400, models, 0.5), quiet=True)
        found = compare(build, models_there, models, alone, rounds=1)
        table.row(name, models, found.alone, found.bank, str(found.ratio), found.off)


@bench.case(quick={"layers": 2, "width": 64, "mlp": 256, "heads": 2, "vocabulary": 64, "length": 8, "limit": "3MB",
                   "device": "cpu"})  # fmt: skip
def llama(
    run: Run, layers: int = 16, width: int = 2048, mlp: int = 8192, heads: int = 32, vocabulary: int = 128256,
    length: int = 512, train: int = 16, limit: str = "24GB", device: Literal["cuda", "cpu"] = "cuda",
) -> None:  # fmt: skip
    """EK-FAC of every MLP layer of a Llama with random weights, in as many groups of sites as the limit makes.

    Args:
        layers: blocks.
        width: of the model.
        mlp: width inside a block.
        heads: of attention; a quarter of them, at least one, have keys and values of their own.
        vocabulary: tokens.
        length: tokens of a sequence.
        train: training sequences; two queries are scored.
        limit: memory beside the model.
        device: cpu only to try the script.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from whence import attrib
    from whence.attrib.plan import make_plan
    from whence.cache import Examples, LanguageModelling, Store, TrainedModel
    from whence.commands._shared import read_bytes

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1), vocab_size=vocabulary, max_position_embeddings=length,
    )  # fmt: skip
    size = Size(width, layers, heads, length, vocabulary, train)
    data, queries = (Examples.of({"input_ids": sequences(n, size, s)}) for s, n in enumerate((train, 2)))
    with tempfile.TemporaryDirectory() as folder:
        trained = TrainedModel(
            LlamaForCausalLM(config).eval(), data, LanguageModelling(), sites="*.mlp.*", store=Store(folder),
            device=device, memory=read_bytes(limit), quiet=True,
        )  # fmt: skip
        plan = make_plan(trained, len(queries), measure=False)
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        fit, factors = timed(lambda: attrib.EKFAC().fit(trained))
        score, scores = timed(lambda: factors.score(queries))
        table = run.table("parameters, M|.0f", "sites", "groups", "fit, s|.1f", "score, s|.1f", "limit", "peak, GB|.2f",
                          title="A Llama in groups of sites")  # fmt: skip
        parameters = sum(p.numel() for p in trained.model.parameters()) / 1e6
        peak = peak_on(device) - held
        table.row(parameters, len(factors.sites), plan.groups, fit, score, limit, peak / 1e9)
        run.claim("every score is finite", bool(np.isfinite(scores).all()))


@bench.case(quick={"sizes": ("digits-convnet",), "rounds": 1, "device": "cpu"})
def condensation(
    run: Run, sizes: tuple[str, ...] = ("cifar", "cifar-128"), rounds: int = 3, device: Literal["cuda", "cpu"] = "cuda"
) -> None:
    """The outer loop of DCC beside the same loop in eager torch, in turn.

    Args:
        sizes: of benchmarks.condensation.
        rounds: of one outer loop of each side.
        device: cpu only to try the script.
    """
    from whence.unlearn.condense import condense

    from .condensation import SIZES, eager, problem

    def finished(loop: Callable[[], None]) -> None:
        with torch.device(device):
            loop()
        if device == "cuda":
            torch.cuda.synchronize()

    table = run.table("case", "eager, s|.3f", "ours, s|.3f", "ratio", title="Condensation, one outer loop")
    for name in sizes:
        pool, settings = problem(SIZES[name], "dcc", None)
        with torch.device(device):
            loop, _ = eager(SIZES[name], "dcc", None)
        sides: dict[str, Callable[[], Any]] = {
            "eager": lambda loop=loop, loops=SIZES[name].loops: [finished(loop) for _ in range(loops)],
            "ours": lambda pool=pool, settings=settings: condense(pool, settings, device=device, quiet=True),
        }
        times = paired(sides, rounds)
        each = [times.median(side) / SIZES[name].loops for side in sides]
        table.row(name, *each, str(times.ratio("eager", "ours")))


if __name__ == "__main__":
    bench.main()
