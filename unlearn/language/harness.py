"""Utility on public benchmarks by lm-eval (EleutherAI's evaluation harness), where it is installed."""

from collections.abc import Sequence
from typing import Any

from whence.cache import UsageError


def harness(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    limit: int | None = None,
    batch: int = 8,
    device: str = "cpu",
    folder: str | None = None,
) -> dict[str, dict[str, float]]:
    """Results of lm-eval by task and metric, such as {"mmlu": {"acc,none": 0.31, ...}}.

    Args:
        model: a folder or hub name that transformers opens, or a transformers model.
        tasks: names of lm-eval (mmlu, wmdp_bio, hellaswag).
        tokenizer: of a model that is given as an object.
        limit: examples of each task; all by default.
        batch: examples at once.
        device: where the model runs.
        folder: with tasks of one's own, as YAML.

    Raises UsageError if lm-eval is not installed, or does not know a task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(f"Public benchmarks need the package lm-eval ({error}).", "pip install lm-eval[hf]") from error
    known = TaskManager(include_path=folder)
    unknown = [name for name in tasks if name not in known.all_tasks]
    if unknown:
        raise UsageError(f"lm-eval has no task {unknown[0]!r}.", "`lm-eval ls tasks` lists them.")
    reader = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device=device)
    found = simple_evaluate(reader, tasks=list(tasks), limit=limit, task_manager=known, bootstrap_iters=0)
    return {
        task: {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        for task, values in found["results"].items()
    }
