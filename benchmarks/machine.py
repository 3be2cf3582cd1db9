"""The machine that a table is measured on: processor, cores, memory, accelerator, library versions.

python -m benchmarks.machine
"""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

LIBRARIES = ("torch", "jax", "numpy", "zarr", "transformer-lens")


def processor() -> str:
    """The processor's own name, or what the platform calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator() -> str:
    """The first CUDA device's name; "none" without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def machine() -> str:
    """One line for the head of a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 1e9
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if find_spec(name.replace("-", "_")))
    return (
        f"{processor()}, {cores} cores, {memory:.0f} GB of memory, accelerator: {accelerator()}; "
        f"{platform.system()}, Python {platform.python_version()}, {libraries}"
    )


if __name__ == "__main__":
    print(machine())
