"""Other people's libraries for side-by-side runs: each in a folder of its own, never in the project's environment."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def install(*requirements: str) -> str:
    """Install packages, without their dependencies, into a folder kept between runs; returns it, for PYTHONPATH."""
    name = "-".join(r.replace("==", "-") for r in requirements)
    folder = Path(tempfile.gettempdir()) / "whence-bench" / name
    if not (folder / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
        subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return str(folder)


def run_side(
    module: str, side: str, out: Path, extra_path: str = "", *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run one side of a comparison as a process of its own, so that peak memory is its own too. Where a failure is a
    result (not `check`), what it said on stderr is kept, not shown."""
    path = os.pathsep.join(p for p in (extra_path, os.environ.get("PYTHONPATH", "")) if p)
    quiet = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "WHENCE_QUIET": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", module, "--side", side, "--out", str(out), *arguments]
    errors = None if check else subprocess.PIPE
    return subprocess.run(command, check=check, env={**os.environ, **quiet}, stderr=errors, text=True)


def peak_bytes() -> int:
    """The most memory this process has held. Not getrusage's figure, which a child begins with its parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # elsewhere than on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kronfluence_analyzer(
    model: Any, outputs: Callable[[Any, Any], tuple[Any, Any]], modules: Sequence[str], folder: Path, cpu: bool = True
) -> Any:
    """kronfluence's Analyzer of these modules for summed cross-entropy, measured by the same loss on a query's own
    labels. `outputs`: model, batch -> logits [n c] and labels [n]."""
    import torch
    import torch.nn.functional as F
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Loss(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            logits, labels = outputs(model, batch)
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.softmax(-1), 1).flatten()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return list(modules)

    task = Loss()
    results = str(folder / "kronfluence_results")
    analyzer = Analyzer("bench", prepare_model(model, task), task, cpu=cpu, output_dir=results, disable_tqdm=True)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
    return analyzer
