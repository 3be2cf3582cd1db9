"""EK-FAC side by side with kronfluence 1.0.1: same model, same data, same statistics, one run.

    python -m benchmarks.attribution [--quick] [--many 512]

--many scores as many queries besides, and builds and asks an index of 2048 numbers an example. kronfluence passes
over the training data once for every 32 queries: its seconds for the many are those of the pairwise job, multiplied up.

Each side is a process of its own (peak memory is its own); times are inside the process, imports not counted,
compilation counted. The Markov-chain data need no download.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import install, kronfluence_analyzer, peak_bytes, run_side
from benchmarks.tiny_gpt import Size, TinyGPT, sequences, trained


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        return result


def load(out: Path) -> tuple[Size, TinyGPT]:
    size = Size(**json.loads((out / "size.json").read_text()))
    model = TinyGPT(size)
    model.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    return size, model.eval()


def whence_side(out: Path, many: int) -> None:
    from whence import attrib
    from whence.attrib import FitOptions
    from whence.attrib.method import make_run
    from whence.cache import Examples, LanguageModelling, Store, find_sites, gradients

    size, model = load(out)
    train = Examples.of({"input_ids": sequences(size.train, size, 0)})
    queries = Examples.of({"input_ids": sequences(size.queries, size, 1)})
    task, sites = LanguageModelling(), find_sites(model, ["*.up", "*.down"])
    clock, store = Clock(), Store(out / "cache")
    factors = clock.time("fit", lambda: attrib.EKFAC().fit(model, task, train, sites=sites, store=store))
    scores = clock.time("pairwise", lambda: attrib.score(factors, model, task, queries, train))
    self_scores = clock.time("self", lambda: attrib.self_influence(factors, model, task, train))
    clock.time("keep gradients", lambda: gradients(make_run(model, task, train, sites, "loss", 0, FitOptions()), store))
    clock.time("pairwise, stored", lambda: attrib.score(factors, model, task, queries, train, store=store))
    clock.time("self, stored", lambda: attrib.self_influence(factors, model, task, train, store=store))
    part = attrib.EKFAC(basis_examples=size.train // 8)
    other = clock.time("fit, basis from an eighth", lambda: part.fit(model, task, train, sites=sites, store=store))
    basis = attrib.score(other, model, task, queries, train, store=store)
    recall = many_queries(clock, factors, model, task, train, store, size, many) if many else np.zeros(0)
    finish(
        out / "whence", clock, scores=scores.values, self_scores=self_scores.values, basis=basis.values, recall=recall
    )


def many_queries(
    clock: Clock, factors: Any, model: TinyGPT, task: Any, train: Any, store: Any, size: Size, many: int
) -> np.ndarray:
    """Times of many queries in one pass, from the model and from stored gradients, and of an index; recall@10 of the
    index alone and of its 100 best."""
    from whence import attrib
    from whence.attrib.index import build_index, recall_of
    from whence.cache import Examples

    asked = Examples.of({"input_ids": sequences(many, size, 2)})
    exact = clock.time("many", lambda: attrib.score(factors, model, task, asked, train, rank=None))
    clock.time("many, stored", lambda: attrib.score(factors, model, task, asked, train, rank=None, store=store))
    index = clock.time("index", lambda: build_index(factors, model, task, train, store))
    hits = clock.time("index, asked", lambda: index.search(model, task, asked, 100))
    return np.array([recall_of(hits.ids[:, :k], exact, 10).mean() for k in (10, 100)])


def kronfluence_side(out: Path) -> None:
    from kronfluence.arguments import FactorArguments, ScoreArguments

    size, model = load(out)
    train, queries = (torch.as_tensor(sequences(n, size, s)) for n, s in ((size.train, 0), (size.queries, 1)))
    modules = [f"blocks.{i}.{name}" for i in range(size.layers) for name in ("up", "down")]

    def outputs(model: Any, batch: Any) -> tuple[Any, Any]:
        return model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()

    analyzer = kronfluence_analyzer(model, outputs, modules, out)
    clock = Clock()
    clock.time(
        "fit",
        lambda: analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=32, factor_args=FactorArguments(strategy="ekfac")
        ),
    )
    found = {}
    for name, rank in (("pairwise", None), ("pairwise rank 32", 32)):
        arguments = ScoreArguments(damping_factor=None, query_gradient_low_rank=rank)

        def pairwise(name: str = name, arguments: Any = arguments) -> Any:
            return analyzer.compute_pairwise_scores(
                name.replace(" ", "_"), "factors", queries, train, per_device_query_batch_size=32,
                per_device_train_batch_size=32, score_args=arguments, overwrite_output_dir=True,
            )  # fmt: skip

        clock.time(name, pairwise)
        found[name] = analyzer.load_pairwise_scores(name.replace(" ", "_"))["all_modules"].numpy()
    clock.time(
        "self",
        lambda: analyzer.compute_self_scores(
            "self", "factors", train, per_device_train_batch_size=32, score_args=ScoreArguments(damping_factor=None)
        ),
    )
    finish(
        out / "kronfluence", clock, scores=found["pairwise"], rank=found["pairwise rank 32"],
        self_scores=analyzer.load_self_scores("self")["all_modules"].numpy(),
    )  # fmt: skip


def finish(stem: Path, clock: Clock, **arrays: Any) -> None:
    np.savez(stem.with_suffix(".npz"), **arrays)
    peak = peak_bytes()
    stem.with_suffix(".json").write_text(json.dumps({"seconds": clock.seconds, "peak": peak}))


def fit_operations(size: Size) -> float:
    """Floating-point operations of the fit: model passes, both moments, rotation of positions, contraction."""
    d, positions = size.d, size.train * size.length
    layer = 0.0
    for i, o in ((d + 1, 4 * d), (4 * d + 1, d)):
        layer += 2 * (i * i + o * o)  # moments
        layer += 2 * (i * i + o * o) + 2 * i * o  # eigenvalues
    model = 2 * 2 * (12 * d * d * size.layers + d * size.vocabulary)  # forward and the backward of activations
    return positions * (size.layers * layer + model)


def product_rate() -> float:
    """The machine's best matrix-product rate, operations a second: the better of torch and JAX, 2048 squared."""
    import jax
    import jax.numpy as jnp

    a, x = torch.randn(2048, 2048), jnp.ones((2048, 2048))
    multiply = jax.jit(lambda x: x @ x)
    best = 0.0
    for work in (lambda: a @ a, lambda: jax.block_until_ready(multiply(x))):
        for _ in range(5):
            start = time.perf_counter()
            work()
            best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


def score_operations(size: Size) -> tuple[float, float, float]:
    """Floating-point operations of preconditioning a query, of forming an example's gradients, and of the product of
    the two."""
    d, s = size.d, size.length
    precondition = form = product = 0.0
    for i, o in ((d + 1, 4 * d), (4 * d + 1, d)):
        precondition += size.layers * 2.0 * (s * (i * i + o * o) + s * i * o + o * i * (o + i))
        form += size.layers * 2.0 * s * i * o
        product += size.layers * 2.0 * i * o
    return precondition, form, product


def forming_rate(size: Size) -> float:
    """Operations a second of forming per-example gradients of the first site, one after the other."""
    import jax

    from whence.attrib import kernels

    a, g = (jax.numpy.ones((64, size.length, w)) for w in (size.d + 1, 4 * size.d))
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(kernels.gradients(a, g))
        best = max(best, 2 * 64 * size.length * (size.d + 1) * 4 * size.d / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["whence", "kronfluence"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a quarter of the data, for trying the script")
    parser.add_argument("--many", type=int, default=0, help="score as many queries besides, and an index")
    options = parser.parse_args()
    if options.side:
        if options.side == "whence":
            whence_side(options.out, options.many)
        else:
            kronfluence_side(options.out)
        return
    size = Size(train=128, queries=16) if options.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "size.json").write_text(json.dumps(size.__dict__))
        torch.save(trained(size).state_dict(), out / "model.pt")
        peer = install("kronfluence==1.0.1", "einconv==0.1.0")
        for side in ("kronfluence", "whence"):
            run_side("benchmarks.attribution", side, out, peer, "--many", str(options.many))
        report(out, size, options.many)


def report(out: Path, size: Size, many: int) -> None:
    sides = {n: json.loads((out / f"{n}.json").read_text()) for n in ("whence", "kronfluence")}
    arrays = {n: np.load(out / f"{n}.npz") for n in sides}
    ours, theirs = sides["whence"]["seconds"], sides["kronfluence"]["seconds"]
    best_pairwise = min(theirs["pairwise"], theirs["pairwise rank 32"])
    print(f"{size}\n")
    print("| what | Whence, s | kronfluence 1.0.1, s | ratio |\n|---|---|---|---|")
    rows = [
        ("fit", theirs["fit"]),
        ("fit, basis from an eighth", theirs["fit"]),
        ("pairwise", best_pairwise),
        ("pairwise, stored", best_pairwise),
        ("self", theirs["self"]),
        ("self, stored", theirs["self"]),
    ]
    if "many" in ours:
        best_many = best_pairwise * many / size.queries
        rows += [("many", best_many), ("many, stored", best_many)]
    for name, other in rows:
        print(f"| {name} | {ours[name]:.1f} | {other:.1f} | {other / ours[name]:.2f} |")
    print(f"\nkronfluence pairwise: full {theirs['pairwise']:.1f} s, rank 32 {theirs['pairwise rank 32']:.1f} s")
    if "many" in ours:
        print(f"many: {many} queries; kronfluence's seconds are its pairwise ones times {many / size.queries:g}")
        alone, among = arrays["whence"]["recall"]
        print(f"index: built in {ours['index']:.1f} s, asked in {ours['index, asked']:.1f} s; recall@10 {alone:.3f}, "
              f"among its 100 best {among:.3f}")  # fmt: skip
    peaks = ", ".join(f"{n} {s['peak'] / 1e9:.2f} GB" for n, s in sides.items())
    print(f"peak memory: {peaks}; keeping the gradients took {ours['keep gradients']:.1f} s")
    full, part = (arrays["whence"][name].ravel() for name in ("scores", "basis"))
    print(f"correlation of scores, basis from an eighth with full: {np.corrcoef(full, part)[0, 1]:.4f}")
    for name in ("scores", "self_scores"):
        a, b = arrays["whence"][name].ravel(), arrays["kronfluence"][name].ravel()
        print(f"correlation of {name}: {np.corrcoef(a, b)[0, 1]:.4f}")
    full, rank = (arrays["kronfluence"][name].ravel() for name in ("scores", "rank"))
    print(f"kronfluence's rank 32 with its own full: {np.corrcoef(full, rank)[0, 1]:.4f}")
    rate, work = product_rate(), fit_operations(size)
    print(
        f"fit: {work / 1e12:.2f} T operations, {work / ours['fit'] / 1e9:.0f} G/s, "
        f"{work / ours['fit'] / rate:.0%} of this machine's product rate ({rate / 1e9:.0f} G/s)"
    )
    query, form, product = score_operations(size)
    print(
        f"scores: {query / 1e9:.1f} G operations to precondition a query, {form / 1e9:.2f} G to form an example's "
        f"gradients (at {forming_rate(size) / 1e9:.0f} G/s), {product / 1e9:.3f} G a pair"
    )


if __name__ == "__main__":
    main()
