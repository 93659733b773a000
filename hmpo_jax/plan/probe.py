"""What a run would start from and cost, measured without running it."""

import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from hmpo_jax.run import checkpoint
from hmpo_jax.run import control
from hmpo_jax.run import first_params
from hmpo_jax.tasks import task
from hmpo_jax.training import programs as programs_lib

_STEPS = 3  # timed, of which the first loads the program


class Found(NamedTuple):
  """What was found of a run, whose index it has."""

  run: int
  platform: str
  device: str  # as JAX calls its kind
  start_reward: float  # held-out, greedy
  start_exact: float
  # Highest of a response that ignores its prompt; 0 if no answers are known.
  template_reward: float
  template_exact: float
  constant_groups: float  # share of the prompts whose responses score alike
  compile_s: float  # of the first step; 0 where it wasn't timed
  step_s: float
  eval_s: float
  warm_start_s: float  # of one more warm start; 0 where it wasn't timed
  state_bytes: int  # parameters, optimizer and all else of a run
  temporary_bytes: int  # what a step takes beside it


def probe(index: int, config, folder: str) -> Found:
  """Measures the start of a run and, if the folder is given, some steps.

  Args:
    index: of the run.
    config: valid; its warm start is made, or taken from the cache.
    folder: '' leaves the steps out; else what it is doesn't matter.
  """
  programs = programs_lib.Programs(config)
  control.controller_of(config)  # raises, if the run could not start
  params = first_params.of(config, programs, pathlib.Path('.'), _ignore)
  state = checkpoint.place(programs.first_state(params))
  evaluation = jax.device_get(programs.evaluate(state.params))
  start = time.perf_counter()
  jax.block_until_ready(programs.evaluate(state.params))
  eval_s = time.perf_counter() - start
  _, scores = programs.collect(state)
  baselines = programs.baselines()
  compile_s = step_s = temporary = warm_start_s = 0.0
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  if folder:
    compile_s, step_s, temporary = _steps(programs, state)
    warm_start_s = _warm_start(programs)
  return Found(
    run=index,
    platform=jax.default_backend(),
    device=jax.devices()[0].device_kind,
    start_reward=float(evaluation['eval/reward']),
    start_exact=float(evaluation['eval/exact']),
    template_reward=_of_templates(baselines, 'reward'),
    template_exact=_of_templates(baselines, 'exact'),
    constant_groups=_constant(config, scores.reward),
    compile_s=compile_s,
    step_s=step_s,
    eval_s=eval_s,
    warm_start_s=warm_start_s,
    state_bytes=int(size),
    temporary_bytes=int(temporary),
  )


def _of_templates(baselines, name):
  return max(
    baselines.get(f'{template}_{name}', 0.0) for template in task.TEMPLATES
  )


def _ignore(_):
  pass


def _constant(config, reward):
  groups = np.reshape(jax.device_get(reward), (config.rollout.num_prompts, -1))
  return float(np.mean(np.ptp(groups, axis=1) == 0))


def _steps(programs, state):
  """Seconds of the first step and of another, and bytes of its program."""
  times = []
  for _ in range(_STEPS):
    start = time.perf_counter()
    state, metrics = programs.step(state, False, programs.hparams)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter() - start)
  return times[0] - times[-1], min(times[1:]), _temporary_bytes(programs, state)


def _warm_start(programs):
  """Seconds of a warm start, which the first call may have to compile."""
  times = []
  for _ in range(2):
    start = time.perf_counter()
    jax.block_until_ready(programs.warm_params())
    times.append(time.perf_counter() - start)
  return min(times)


def _temporary_bytes(programs, state):
  """0 where the reward stands on the host or the backend can't tell."""
  program = programs.compiled_step(state)
  analysis = program and program.memory_analysis()
  return analysis.temp_size_in_bytes if analysis else 0
