"""The tests of tests/devices_away.py, in a process of their own: torch fixes its devices at its first backward pass."""

import subprocess
import sys
from pathlib import Path


def test_every_tensor_is_where_its_model_is() -> None:
    path = Path(__file__).with_name("devices_away.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=path.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
