"""The training loop of JAX programs: one scan over steps, with an optax optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class Run(NamedTuple):
    """Where a run is: parameters, the optimiser's state, and what else the caller carries from step to step."""

    parameters: Any
    moments: Any
    carried: Any = None


def descend(
    optimiser: optax.GradientTransformation,
    gradient_of: Callable[[Any, Any, Any], tuple[Any, Any]],
    start: Run,
    inputs: Any,
    project: Callable[[Any], Any] | None = None,
) -> Run:
    """The run after one step per leading row of `inputs`.

    Args:
        gradient_of: (parameters, carried, input) -> (gradient, carried).
        project: applied to the parameters after every step.
    """

    def step(run: Run, given: Any) -> tuple[Run, None]:
        gradient, carried = gradient_of(run.parameters, run.carried, given)
        updates, moments = optimiser.update(gradient, run.moments, run.parameters)
        parameters = optax.apply_updates(run.parameters, updates)
        return Run(parameters if project is None else project(parameters), moments, carried), None

    return jax.lax.scan(step, start, inputs)[0]
