"""Sides of a comparison in processes of their own: other libraries are installed for that process alone, into a folder
kept between runs, never into the project's environment; peak memory is the process's own."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

KRONFLUENCE = ("kronfluence==1.0.1", "einconv==0.1.0")


def install(requirements: Sequence[str]) -> str:
    """Install packages without their dependencies, and return the folder (for PYTHONPATH); "" if all are there."""
    if all(_there(requirement) for requirement in requirements):
        return ""
    name = "-".join(requirement.replace("==", "-") for requirement in requirements)
    folder = Path(tempfile.gettempdir()) / "whence-bench" / name
    if not (folder / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
        subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return str(folder)


def _there(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


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


class Kronfluence:
    """EK-FAC by kronfluence for summed cross-entropy, measured by the same loss on a query's own labels. Imported only
    in a process that run_process started with KRONFLUENCE.

    Args:
        model: the network.
        outputs: model, batch -> logits [n c] and labels [n].
        modules: names of the layers.
        folder: where it writes.
        batch: examples and queries per batch.
        cpu: whether it runs on the CPU though there is a GPU.
        strategy: "ekfac", "kfac", "diagonal" or "identity".
    """

    def __init__(
        self,
        model: Any,
        outputs: Callable[[Any, Any], tuple[Any, Any]],
        modules: Sequence[str],
        folder: Path,
        batch: int,
        cpu: bool = True,
        strategy: str = "ekfac",
    ) -> None:
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

        task, self.batch, self.strategy = Loss(), batch, strategy
        where = str(folder / "kronfluence_results")
        self.analyzer = Analyzer(
            "bench", prepare_model(model, task), task, cpu=cpu, output_dir=where, disable_tqdm=True
        )
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))

    def fit(self, train: Any) -> None:
        from kronfluence.arguments import FactorArguments

        self.analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=self.batch, factor_args=FactorArguments(strategy=self.strategy),
            overwrite_output_dir=True,
        )  # fmt: skip

    def pairwise(self, queries: Any, train: Any, damping: float | None = None, rank: int | None = None) -> np.ndarray:
        """[query, train]. damping: None is the paper's, a tenth of the mean eigenvalue."""
        from kronfluence.arguments import ScoreArguments

        name, options = f"pairwise_{rank}", ScoreArguments(damping_factor=damping, query_gradient_low_rank=rank)
        self.analyzer.compute_pairwise_scores(
            name, "factors", queries, train, per_device_query_batch_size=self.batch,
            per_device_train_batch_size=self.batch, score_args=options, overwrite_output_dir=True,
        )  # fmt: skip
        return self.analyzer.load_pairwise_scores(name)["all_modules"].numpy()

    def self_scores(self, train: Any) -> np.ndarray:
        from kronfluence.arguments import ScoreArguments

        self.analyzer.compute_self_scores(
            "self", "factors", train, per_device_train_batch_size=self.batch,
            score_args=ScoreArguments(damping_factor=None), overwrite_output_dir=True,
        )  # fmt: skip
        return self.analyzer.load_self_scores("self")["all_modules"].numpy()
