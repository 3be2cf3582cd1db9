"""Attribution on a GPU beside kronfluence 1.0.1: EK-FAC fit, pairwise and self-influence at the shape of GPT-2 small.

    python -m benchmarks.gpu [--layers 12] [--train 256] [--queries 32] [--sides whence kronfluence]

Each side is a process of its own, in float32 and in TF32. Times are inside the process: the first fit counts its
compilation, the second does not. The model has random weights, so the correlation of scores between the sides says
that they compute the same thing, with labels of their own sampling.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import kronfluence_analyzer, run_side
from benchmarks.tiny_gpt import Size, TinyGPT, sequences

BATCH = 32


def timed(clock: dict[str, float], name: str, work: Any) -> Any:
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    clock[name] = time.perf_counter() - began
    return result


def load(out: Path) -> tuple[Size, TinyGPT]:
    size = Size(**json.loads((out / "size.json").read_text()))
    model = TinyGPT(size)
    model.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    return size, model.eval()


def whence_side(out: Path) -> None:
    from whence import attrib
    from whence.cache import Examples, LanguageModelling, TrainedModel

    size, model = load(out)
    train = Examples.of({"input_ids": sequences(size.train, size, 0)})
    queries = Examples.of({"input_ids": sequences(size.queries, size, 1)})
    trained = TrainedModel(model, train, LanguageModelling(), sites=["*.up", "*.down"], device="cuda", quiet=True)
    clock: dict[str, float] = {}
    found: dict[str, np.ndarray] = {}
    for products in ("float32", "tf32"):
        method = attrib.EKFAC(products=products, redraw=False)  # type: ignore[arg-type]
        factors = timed(clock, f"fit, first, {products}", lambda method=method: method.fit(trained))
        timed(clock, f"fit, {products}", lambda method=method: method.fit(trained))
        for name in (f"pairwise, first, {products}", f"pairwise, {products}"):
            scores = timed(clock, name, lambda p=products, f=factors: f.score(queries, precision=p, rank=None))
        found[f"scores_{products}"] = scores.values
        for name in (f"self, first, {products}", f"self, {products}"):
            own = timed(clock, name, lambda f=factors: f.self_influence())
        found[f"self_{products}"] = own.values
    finish(out / "whence", clock, found)


def kronfluence_side(out: Path) -> None:
    from kronfluence.arguments import FactorArguments, ScoreArguments

    size, model = load(out)
    train, queries = (torch.as_tensor(sequences(n, size, s)) for n, s in ((size.train, 0), (size.queries, 1)))
    modules = [f"blocks.{i}.{name}" for i in range(size.layers) for name in ("up", "down")]

    def outputs(model: Any, batch: Any) -> tuple[Any, Any]:
        return model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()

    clock: dict[str, float] = {}
    found: dict[str, np.ndarray] = {}
    analyzer = kronfluence_analyzer(model, outputs, modules, out, cpu=False)
    for products in ("float32", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
        for name in (f"fit, first, {products}", f"fit, {products}"):
            timed(clock, name, lambda: analyzer.fit_all_factors(
                "factors", train, per_device_batch_size=BATCH, factor_args=FactorArguments(strategy="ekfac"),
                overwrite_output_dir=True,
            ))  # fmt: skip
        arguments = ScoreArguments(damping_factor=None)
        for name in (f"pairwise, first, {products}", f"pairwise, {products}"):
            timed(clock, name, lambda: analyzer.compute_pairwise_scores(
                "pairwise", "factors", queries, train, per_device_query_batch_size=BATCH,
                per_device_train_batch_size=BATCH, score_args=arguments, overwrite_output_dir=True,
            ))  # fmt: skip
        found[f"scores_{products}"] = analyzer.load_pairwise_scores("pairwise")["all_modules"].numpy()
        for name in (f"self, first, {products}", f"self, {products}"):
            timed(clock, name, lambda: analyzer.compute_self_scores(
                "self", "factors", train, per_device_train_batch_size=BATCH, score_args=arguments,
                overwrite_output_dir=True,
            ))  # fmt: skip
        found[f"self_{products}"] = analyzer.load_self_scores("self")["all_modules"].numpy()
    finish(out / "kronfluence", clock, found)


def finish(stem: Path, clock: dict[str, float], arrays: dict[str, np.ndarray]) -> None:
    np.savez(stem.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    facts = {"seconds": clock, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    stem.with_suffix(".json").write_text(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["whence", "kronfluence"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sides", nargs="*", default=["whence", "kronfluence"])
    parser.add_argument("--peer", default="", help="a folder with kronfluence in it")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--queries", type=int, default=32)
    options = parser.parse_args()
    if options.side:
        {"whence": whence_side, "kronfluence": kronfluence_side}[options.side](options.out)
        return
    size = Size(d=768, layers=options.layers, heads=12, length=512, vocabulary=50257, train=options.train,
                queries=options.queries)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "size.json").write_text(json.dumps(size.__dict__))
        torch.manual_seed(0)
        torch.save(TinyGPT(size).state_dict(), out / "model.pt")
        for side in options.sides:
            run_side("benchmarks.gpu", side, out, options.peer)
        report(out, size, options.sides)


def report(out: Path, size: Size, names: list[str]) -> None:
    print(f"{torch.cuda.get_device_name()}; {size}\n")
    sides = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    if len(names) < 2:
        print(json.dumps(sides, indent=1))
        return
    ours, theirs = sides["whence"]["seconds"], sides["kronfluence"]["seconds"]
    print("| what | Whence, s | kronfluence 1.0.1, s | ratio |\n|---|---|---|---|")
    for name in ours:
        print(f"| {name} | {ours[name]:.1f} | {theirs[name]:.1f} | {theirs[name] / ours[name]:.2f} |")
    a, b = (np.load(out / f"{name}.npz") for name in ("whence", "kronfluence"))
    for name in a.files:
        print(f"correlation of {name}: {np.corrcoef(a[name].ravel(), b[name].ravel())[0, 1]:.4f}")
    peaks = ", ".join(f"{n} {s['peak_gb']:.1f} GB" for n, s in sides.items())
    print(f"torch's peak memory: {peaks}")


if __name__ == "__main__":
    main()
