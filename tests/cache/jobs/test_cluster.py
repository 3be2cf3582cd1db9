"""Addresses of clusters and SLURM settings."""

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
