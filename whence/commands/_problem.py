"""Problems on the command line: a model that can be trained again, embedded or of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.options import Columns, Count

if TYPE_CHECKING:
    from whence.problems.problem import Problem


@dataclass(frozen=True, kw_only=True)
class ProblemOptions(Columns):
    """A problem of your own. The command says where its name and its data are (`on`, `data`)."""

    training: Path | None = None
    """A folder that `cache.runs` recorded (a plain loop, or transformers' Trainer): its model is the trained one, and
    retraining takes its steps again."""
    length: Count | None = None
    """Tokens at which texts are cut; 128 by default."""

    def problem(self, **more: Any) -> "Problem":
        """The problem of `on`. Raises UsageError for an unknown name."""
        from whence.problems.registry import problem_of

        on, data = vars(self)["on"], vars(self)["data"]
        given = {"data": data, "training": self.training, "columns": self.columns, **more}
        return problem_of(on, **given, length=self.length or 128)
