"""Addresses of clusters, SLURM settings, and workers that cannot start."""

import subprocess
import sys

import dask
import pytest

from whence.cache import errors
from whence.cache.jobs.cluster import connect, slurm_cluster, slurm_settings


@pytest.mark.parametrize("address", ["local", "local:", "local:0", "local:x", "mpi:3", "inline:2"])
def test_malformed_addresses(address):
    with pytest.raises(errors.UsageError, match=r"local|worker count"), connect(address):
        pass


def test_slurm_jobs_are_rendered(tmp_path):
    path = tmp_path / "slurm.toml"
    path.write_text(
        'jobs = 0\ncores = 8\nmemory = "32GB"\nqueue = "gpu"\nwalltime = "04:00:00"\n'
        'job_extra_directives = ["--gres=gpu:1"]\n'
    )
    with slurm_cluster(str(path))[0] as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 04:00:00",
                 "#SBATCH --gres=gpu:1", "distributed.cli.dask_worker"):  # fmt: skip
        assert line in script
    path.write_text('cores = 8\nmemroy = "32GB"\n')
    with pytest.raises(errors.UsageError, match=r"no setting 'memroy'(.|\n)*'memory'"):
        slurm_settings(str(path))
    path.write_text("cores = 8\n")
    with pytest.raises(errors.UsageError, match="lacks 'memory'"):
        slurm_settings(str(path))
    with pytest.raises(errors.UsageError, match="cannot be read"):
        slurm_settings(str(tmp_path / "none.toml"))


STARTS = "with connect('local:1') as cluster:\n    print('workers', cluster.workers)\n"


@pytest.mark.parametrize(
    ("script", "works"),
    [
        (STARTS, False),
        ("def main():\n    " + STARTS.replace("\n", "\n    ") + "\nmain()\n", False),
        ("if __name__ == '__main__':\n    pass\n" + STARTS, False),
        ("if __name__ == '__main__':\n    " + STARTS.replace("\n", "\n    "), True),
    ],
)
def test_a_script_that_starts_workers_needs_a_main_guard(tmp_path, script, works):
    path = tmp_path / "script.py"
    path.write_text("from whence.cache.jobs.cluster import connect\n" + script)
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    if works:
        assert "workers 1" in run.stdout
        return
    assert 'Put it under `if __name__ == "__main__":`' in run.stderr
    assert len(run.stderr.splitlines()) < 20


def test_a_worker_that_dies_at_its_start(tmp_path, monkeypatch):
    (tmp_path / "preload.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(tmp_path / "preload.py"))
    preload = dask.config.set({"distributed.worker.preload": [str(tmp_path / "preload.py")]})
    with preload, pytest.raises(errors.ResourceError, match="worker process ended"), connect("local:1"):
        pass
