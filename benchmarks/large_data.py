"""Data larger than memory: the peak memory of reading, fitting, scoring, indexing and observing, at two sizes.

Each row is a process of its own. A small transformer reads a file of JSON lines; the memory limit of a trained model
is 128 MB. What grows with the data is what an example takes: its ids and places, and of a result a number per example
and query.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .harness import Benchmark, Run
from .peers import peak_bytes

bench = Benchmark(__file__, __doc__, example="memory --quick")
STAGES = ("read", "fit", "top", "self", "index", "observe", "build")
TOKENS, LENGTH, WORDS, LIMIT = 60, 64, 500, 128 << 20


def write(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for n in range(rows):
            text = " ".join(f"w{word}" for word in rng.integers(0, WORDS, TOKENS))
            file.write(json.dumps({"id": n, "title": f"title {n}", "text": text}) + "\n")


def stage(name: str, folder: Path) -> None:
    """One stage on the file in the folder; its peak is written beside it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from whence import attrib, decomp
    from whence.cache import LanguageModelling, Store, TrainedModel
    from whence.corpora import Vocabulary, load

    words = Vocabulary.words([" ".join(f"w{n}" for n in range(WORDS))])
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": LENGTH, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS + 1, **shape))
    data = load(folder / "rows.jsonl", words, length=LENGTH).train
    store = Store(folder / "store")
    trained = TrainedModel(
        model, data, LanguageModelling(), sites="*c_fc", store=store, quiet=True, memory=LIMIT, check=False
    )
    queries, found = data.select([0, 1]), Any
    if name not in ("read", "observe", "build"):
        found = attrib.EKFAC().fit(trained)
    if name == "top":
        found.top(queries, 10)
    if name == "self":
        found.self_influence()
    if name == "index":
        attrib.index.build_index(found, sketch=attrib.index.Sketch("random", 64)).search(queries, 10)
    if name in ("observe", "build"):
        activations = decomp.observe(trained, at="transformer.h.0.mlp")
        if name == "build":
            decomp.ITDA(size=64, k=4).build(activations)
    (folder / f"{name}.json").write_text(json.dumps({"peak": peak_bytes(), "examples": len(data)}))


for each in STAGES:
    bench.side(each, partial(stage, each))


@bench.case(quick={"rows": (200, 800)})
def memory(run: Run, rows: tuple[int, ...] = (3_000, 30_000)) -> None:
    """Peak memory of each stage, at every size.

    Args:
        rows: sizes of the corpus, in texts of 60 tokens.
    """
    names = [f"{count:,} texts, MB|.0f" for count in rows]
    table = run.table(
        "stage", *names, "growth, bytes a text|.0f", title="Peak memory of the process, libraries included"
    )
    peaks: dict[str, list[int]] = {name: [] for name in STAGES}
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "rows.jsonl", count)
            for name in run.selected(STAGES):
                bench.run_side(name, Path(folder))
                peaks[name].append(json.loads((Path(folder) / f"{name}.json").read_text())["peak"])
    for name in run.selected(STAGES):
        grown = (peaks[name][-1] - peaks[name][0]) / (rows[-1] - rows[0])
        table.row(name, *(peak / 1e6 for peak in peaks[name]), grown)


if __name__ == "__main__":
    bench.main()
