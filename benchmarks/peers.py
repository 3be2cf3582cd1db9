"""Other people's libraries for side-by-side runs: each in a folder of its own, never in the project's environment."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


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


def run_side(module: str, side: str, out: Path, extra_path: str = "", *arguments: str) -> None:
    """Run one side of a comparison as a process of its own, so that peak memory is its own too."""
    path = os.pathsep.join(p for p in (extra_path, os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": path, "WHENCE_QUIET": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", module, "--side", side, "--out", str(out), *arguments]
    subprocess.run(command, check=True, env=environment)
