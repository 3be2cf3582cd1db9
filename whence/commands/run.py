"""A batch job from a TOML file: the same commands, the same options, checked before anything runs."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class RunJob:
    """Run the command, or the commands one after another, that a TOML file describes.

    The file holds `command = "attrib fit"` and that command's options by name; several commands stand in
    [[step]] tables. Everything is read and checked before the first one runs. A job that was stopped is
    run again the same way: what is in the store is not computed twice.

    Example:

        echo 'command = "demo"' > job.toml
        whence run job.toml --dry-run
    """

    job: tyro.conf.Positional[Path]
    """The TOML file."""
    dry_run: bool = False
    """Check it and print the plan, but run nothing."""

    def run(self) -> None:
        from whence.jobs import plan, read_job

        steps = read_job(self.job)
        print(plan(self.job, steps))
        for step in steps if not self.dry_run else ():
            step.work.run()


COMMANDS = {"run": RunJob}
