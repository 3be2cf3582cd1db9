"""Sides of a comparison in processes of their own: other libraries are installed for that process alone, into a folder
kept between runs, never into the project's environment; peak memory is the process's own."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KRONFLUENCE = ("kronfluence==1.0.1", "einconv==0.1.0")


def install(requirements: Sequence[str]) -> str:
    """Install packages without their dependencies, and return the folder (for PYTHONPATH); "" for no packages."""
    if not requirements:
        return ""
    name = "-".join(requirement.replace("==", "-") for requirement in requirements)
    folder = Path(tempfile.gettempdir()) / "whence-bench" / name
    if not (folder / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
        subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return str(folder)


def run_process(
    module: str, side: str, folder: Path, packages: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run one side of a script. If a failure is a result (not `check`), its stderr is captured instead of shown."""
    path = os.pathsep.join(p for p in (install(packages), os.environ.get("PYTHONPATH", "")) if p)
    quiet = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "WHENCE_QUIET": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", module, "--side", side, "--out", str(folder)]
    errors = None if check else subprocess.PIPE
    return subprocess.run(command, check=check, env={**os.environ, **quiet}, stderr=errors, text=True)


def peak_bytes() -> int:
    """This process's largest resident memory. On Linux not by getrusage, which starts with the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kronfluence_analyzer(
    model: Any, outputs: Callable[[Any, Any], tuple[Any, Any]], modules: Sequence[str], folder: Path
) -> Any:
    """kronfluence's Analyzer of these modules for summed cross-entropy, measured by the same loss on a query's own
    labels.

    Args:
        model: the network.
        outputs: model, batch -> logits [n c] and labels [n].
        modules: names of the layers.
        folder: where it writes.
    """
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
    analyzer = Analyzer("bench", prepare_model(model, task), task, cpu=True, output_dir=results, disable_tqdm=True)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
    return analyzer
