"""A step of one run, or of many in one program, with its evaluation."""

from collections.abc import Callable
import time
from typing import Any

import jax

from hmpo_jax import base
from hmpo_jax.run import schedule


def make(
  config,
  step: int,
  train: Callable[[bool], tuple[Any, base.Metrics]],
  evaluate: Callable[[base.Params], base.Metrics],
  num_runs: int = 1,
) -> tuple[Any, base.Metrics, base.Metrics | None, dict[str, float]]:
  """Trains a step, and evaluates where the configuration asks for it.

  Args:
    config: of the run.
    step: number of the step, from 1.
    train: state and metrics after the step, of whether it is a measured one.
    evaluate: held-out metrics of the parameters.
    num_runs: that share the seconds.

  Returns:
    The state; on the host its metrics and the held-out ones, None where there
    are none; and the seconds of one run, step_s and, if evaluated, eval_s.
  """
  start = time.perf_counter()
  state, metrics = train(schedule.is_measured(config, step))
  metrics = jax.device_get(metrics)
  timing = {'step_s': (time.perf_counter() - start) / num_runs}
  evaluation = None
  if schedule.is_evaluated(config, step):
    start = time.perf_counter()
    evaluation = jax.device_get(evaluate(state.params))
    timing['eval_s'] = (time.perf_counter() - start) / num_runs
  return state, metrics, evaluation, timing
