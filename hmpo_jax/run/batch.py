"""Runs of one static configuration, trained in one program, each in its folder.

They differ in what is traced: seed, order of the mean, clip range, learning
rate. Each folder is that of a run by itself and, where the runs go through the
program one by one (on CPU), has its bits.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.run import checkpoint
from hmpo_jax.run import control
from hmpo_jax.run import failure
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import interruption as interruption_lib
from hmpo_jax.run import schedule
from hmpo_jax.run import session
from hmpo_jax.run import timed_step
from hmpo_jax.tasks import rewards as rewards_lib
from hmpo_jax.training import learner
from hmpo_jax.training import programs as programs_lib
from hmpo_jax.training import run_axis

# What depends on the loop and not on a run, so that a group has it in common.
_SHARED = ('num_steps', 'eval', 'checkpoint', 'mechanism')


class Report(NamedTuple):
  """What a group tells of itself while it trains."""

  kind: str  # step, note, failed, refused, done
  run: int = -1  # index of the run; a step is all runs'
  text: str = ''  # of a note, or why a run failed or was refused
  step: int = 0  # finished


Tell = Callable[[Report], None]


def key(config):
  """What configurations must have in common to be trained as a group.

  Hashable; a run with a reward function on the host is a group of its own.
  """
  shared = [config[name] for name in _SHARED if name in config]
  plain = tuple(
    tuple(part.items()) if hasattr(part, 'items') else part for part in shared
  )
  replay = config.exponent.kind == 'replayed'
  alone = config.reward.function and config.to_json_best_effort()
  return traced.static(config), plain, replay, alone


def train(members: Sequence[tuple], tell: Tell) -> None:
  """Trains runs to their ends, or resumes them where all of them have been.

  A run that can't start or ends for a numerical cause or that of its reward
  function is told as 'failed', one whose folder can't be opened as 'refused';
  the others go on.

  Args:
    members: (configuration, run folder) of each run, of one `key`; finished
      ones are not among them.
    tell: takes reports.

  Raises:
    Interrupted: a signal came; the step was finished and is in checkpoints.
    OSError: the disk takes no more; what was written is whole.
  """
  with (
    interruption_lib.Interruption() as interruption,
    contextlib.ExitStack() as stack,
  ):
    opened = {}
    for index, (config, folder) in enumerate(members):
      try:
        programs = programs_lib.Programs(config)
        controller = control.controller_of(config)
      except config_lib.ConfigError as error:
        tell(Report('failed', index, str(error)))
        continue
      try:
        opened[index] = _open(
          stack, config, programs, controller, folder, _noting(tell, index)
        )
      except config_lib.ConfigError as error:
        # Another process or environment has the folder: no fault of the run.
        tell(Report('refused', index, str(error)))
    if not opened:
      return
    started = _Group(opened, tell)
    try:
      started.train(interruption.is_asked)
    except rewards_lib.RewardError as error:
      for index in opened:
        tell(Report('failed', index, str(error), started.finished))


class _Group:
  """The runs of a group that are still going, and their stacked state."""

  def __init__(self, opened, tell):
    self._opened, self._runs = opened, dict(opened)
    self._tell = tell
    first = next(iter(opened.values()))
    self._config, self._static = first.config, first.programs.static
    is_judged_here = bool(self._config.reward.function)
    self._devices = jax.devices()[: 1 if is_judged_here else None]
    self._place = functools.partial(
      _placed, list(opened), devices=self._devices
    )
    self._slots = {index: slot for slot, index in enumerate(opened)}
    over_runs = functools.partial(run_axis.over_runs, devices=self._devices)
    self._step: Callable = jax.jit(
      over_runs(functools.partial(learner.train_step, self._static)),
      donate_argnums=0,
    )
    evaluate = lambda params, hparams, prompts: learner.evaluate(
      self._static, params, prompts, hparams.pays_exact
    )
    self._evaluate: Callable = jax.jit(over_runs(evaluate))
    if is_judged_here:
      self._step, self._evaluate = _on_host(first.programs)
    self._prompts = first.programs.prompts
    self._hparams: Any = None
    self._states: Any = None
    self.finished = 0

  def train(self, is_asked):
    """Makes all steps that are left."""
    self._start()
    while self._runs and self.finished < self._config.num_steps:
      if is_asked():
        self._save()
        raise base.Interrupted
      try:
        self._make_step()
      except rewards_lib.RewardError as error:
        self._save()
        raise rewards_lib.RewardError(
          f'step {self.finished + 1}: {error}'
        ) from error
      if schedule.is_saved(self._config, self.finished):
        self._save()
    for index, run in self._runs.items():
      try:
        run.finish()
      except failure.NumericalFault as error:
        self._tell(Report('failed', index, str(error), self.finished))
      else:
        self._tell(Report('done', index))

  def _start(self):
    """From the last step of which all runs have a checkpoint."""
    saved = [set(run.saved_steps()) for run in self._runs.values()]
    self.finished = max(set.intersection(*saved), default=0)
    states = {
      i: run.restore(self.finished) if self.finished else run.first_state()
      for i, run in self._runs.items()
    }
    self._states = self._place(states)
    self._take_settings()
    if not self.finished:
      evaluations = jax.device_get(self._evaluations(self._states.params))
      for run, evaluation in self._each(evaluations):
        run.begin(evaluation)

  def _make_step(self):
    step = self.finished + 1
    keys = self._states.key
    # The program takes the arrays of the states.
    keys = jax.vmap(jax.random.fold_in)(keys, self._states.step)
    self._states, metrics, evaluations, timing = timed_step.make(
      self._config,
      step,
      lambda is_measured: self._step(
        self._states, self._hparams, jnp.asarray(is_measured)
      ),
      self._evaluations,
      num_runs=len(self._slots),
    )
    self.finished = step
    self._write(keys, metrics, evaluations, timing)
    if any(run.steering.controller for run in self._runs.values()):
      self._take_settings()
    self._tell(Report('step', step=step))

  def _write(self, keys, metrics, evaluations, timing):
    for index, run in list(self._runs.items()):
      slot = self._slots[index]
      evaluation = evaluations and run_axis.take(evaluations, slot)
      try:
        run.write(keys[slot], run_axis.take(metrics, slot), evaluation, timing)
      except failure.NumericalFault as error:
        # Its place in the program stays: another number is another program.
        del self._runs[index]
        self._tell(Report('failed', index, str(error), self.finished))

  def _take_settings(self):
    """The traced parts of all runs, as their controllers left them."""
    self._hparams = self._place(
      {i: run.hparams for i, run in self._opened.items()}
    )

  def _save(self):
    for index, run in self._runs.items():
      run.save(
        checkpoint.place(run_axis.take(self._states, self._slots[index]))
      )

  def _evaluations(self, params):
    return self._evaluate(params, self._hparams, self._prompts)

  def _each(self, values):
    for index, run in self._runs.items():
      yield run, run_axis.take(values, self._slots[index])


def _on_host(programs):
  """Step and evaluation of a group of one run, around its reward function."""
  alone = lambda stacked: run_axis.take(stacked, 0)

  def step(states, hparams, measured):
    state, metrics = programs.step(
      alone(states), bool(measured), alone(hparams)
    )
    return run_axis.stack([state]), run_axis.stack([metrics])

  def evaluate(params, *_):
    return run_axis.stack([programs.evaluate(alone(params))])

  return step, evaluate


def _placed(indices, trees, *, devices):
  """Trees stacked, in memory where the program wants them.

  The last one is repeated until the devices divide their number.
  """
  ordered = [trees[index] for index in indices]
  ordered += ordered[-1:] * (-len(ordered) % len(devices))
  return run_axis.place(run_axis.stack(ordered), devices)


def _open(stack, config, programs, controller, folder, note):
  folder = pathlib.Path(folder).absolute()
  description = run_folder.describe(config)
  run_folder.refuse_other_run(folder, description)
  with contextlib.ExitStack() as own:
    own.enter_context(run_folder.claimed(folder, description))
    run = own.enter_context(
      session.Session(config, programs, controller, folder, note)
    )
    stack.push(own.pop_all())
  return run


def _noting(tell, index):
  return lambda text: tell(Report('note', index, text))
