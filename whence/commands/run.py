"""A batch job from a TOML file: the same commands, the same options, checked before anything runs."""

import time
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
        from whence.cache.jobs.progress import say
        from whence.jobs import plan, read_job

        steps = read_job(self.job)
        print(plan(self.job, steps), flush=True)
        if self.dry_run:
            return
        began = time.monotonic()
        for number, step in enumerate(steps, 1):
            say(f"step {number} of {len(steps)}: whence {step.command}")
            step.work.run()
        say(f"{self.job}: {len(steps)} of {len(steps)} steps done, {time.monotonic() - began:.1f} s")


COMMANDS = {"run": RunJob}
