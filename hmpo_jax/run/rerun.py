"""Steps of a finished or interrupted run, recomputed from its checkpoints."""

from collections.abc import Iterator
import contextlib
import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.kernels import ratios
from hmpo_jax.optim import factory
from hmpo_jax.run import checkpoint
from hmpo_jax.run import control
from hmpo_jax.run import first_params
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import schedule
from hmpo_jax.run import session
from hmpo_jax.run import telemetry
from hmpo_jax.run import tensorboard
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import programs as programs_lib
from hmpo_jax.training import update

_REWARD = 'reward.function'


class Check(NamedTuple):
  """What `verify` found."""

  start: int  # finished steps before the first that was recomputed
  end: int  # the last one
  num_arrays: int  # of the state, compared at the end
  difference: str  # the first that differs and how; '' if all is equal


class Suspect(NamedTuple):
  """An array of a step with values that are not finite."""

  place: str  # 'rollout' or the number of the update, from 0
  name: str
  num_bad: int  # values that are not finite
  first: tuple[int, ...]  # index of the first


class Start(NamedTuple):
  """What an update starts from."""

  learned: update.Learned
  batch: base.Batch


class Recorded:
  """A run folder, held against others while it is read."""

  def __init__(self, workdir: pathlib.Path, note):
    if not (workdir / run_folder.CONFIG).is_file():
      raise config_lib.ConfigError(
        f'--workdir={workdir} holds no run: there is no {run_folder.CONFIG}'
      )
    self._workdir = workdir
    self._note = note
    self.config = config_files.load(str(workdir / run_folder.CONFIG), {})
    self.programs = programs_lib.Programs(self.config)
    self._first = control.first_settings(self.config)
    self._records = run_records.read(workdir)

  def verify(self) -> Check:
    """Does the steps between two checkpoints again and compares all bits.

    From the oldest checkpoint, or from the warm start if there is only one, to
    the newest.

    Raises:
      ConfigError: there is no checkpoint.
    """
    changed = run_folder.last_change(self._workdir, _REWARD)
    with self._checkpoints() as saver:
      steps = [step for step in saver.steps() if step >= changed]
      if len(steps) < (2 if changed else 1):
        since = changed and (
          f' of steps since {changed}, after which config.{_REWARD} was changed'
        )
        raise config_lib.ConfigError(
          f'{self._workdir} has no checkpoint to verify{since or ""}'
        )
      start = steps[0] if len(steps) > 1 else 0
      state = self._at(start, saver)
      recorded = saver.restore(state, steps[-1]).state
    records = self._records
    if len(records) < steps[-1]:
      raise config_lib.ConfigError(
        f'{self._workdir} holds records of {len(records)} steps and a '
        f'checkpoint of {steps[-1]}'
      )
    for step in range(start + 1, steps[-1] + 1):
      state, values = self._step(state, step)
      if records[step - 1]['eval/step'] == step:
        values |= self.programs.evaluate(state.params)
      values |= telemetry.cut(values, self._settings(step).agm_iterations)
      previous = records[step - 2] if step > 1 else {}
      values |= telemetry.histories(
        values, previous, self.config.control.history
      )
      difference = _record_difference(step, values, records[step - 1])
      if difference:
        return Check(start, step, 0, difference)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return Check(
      start,
      steps[-1],
      len(leaves),
      _state_difference(leaves, jax.tree.leaves(recorded)),
    )

  def suspects(self, step: int) -> Iterator[Suspect]:
    """Does one step again and finds what was not finite, in order.

    Raises:
      ConfigError: the run did not reach that step.
    """
    last = len(self._records)
    if not 1 <= step <= last:
      raise config_lib.ConfigError(
        f'--step={step}: must be from 1 to {last}, the steps of the run'
      )
    with self._checkpoints() as saver:
      before = [s for s in saver.steps() if s < step]
      start = before[-1] if before else 0
      state = self._at(start, saver)
    for earlier in range(start + 1, step):
      state, _ = self._step(state, earlier)
    yield from self._suspects_after(state)

  def updates(self, num_steps: int = 1) -> Iterator[list[Start]]:
    """Does the steps after the last checkpoint.

    Args:
      num_steps: how many.

    Yields:
      For each step, what each of its updates starts from.

    Raises:
      ConfigError: there is no checkpoint.
    """
    with self._checkpoints() as saver:
      steps = saver.steps()
      if not steps:
        raise config_lib.ConfigError(f'{self._workdir} has no checkpoint')
      state = self._at(steps[-1], saver)
    for step in range(steps[-1] + 1, steps[-1] + 1 + num_steps):
      yield list(self._updates(state, *self.programs.collect(state)))
      if step < steps[-1] + num_steps:
        # The program takes the arrays, which the caller may have kept.
        state, _ = self._step(jax.tree.map(jax.numpy.copy, state), step)

  def log_ratio(self, start: Start) -> jax.Array:
    """[B, T] how far each token has left the sampler, in nats.

    0 off the mask, and everywhere on the first update of a rollout.
    """
    return _log_ratio(self.programs.static, self.programs.hparams, start)

  def _suspects_after(self, state):
    rollout, scores = self.programs.collect(state)
    yield from _nonfinite('rollout', rollout)
    yield from _nonfinite('rollout', scores)
    static, hparams = self.programs.static, self._during(state)
    updates = self._updates(state, rollout, scores)
    for number, (learned, minibatch) in enumerate(updates):
      yield from _nonfinite(
        str(number), _trace(static, learned, hparams, minibatch)
      )

  def _updates(self, state, rollout, scores):
    """What each update of a step starts from."""
    static, hparams = self.programs.static, self._during(state)
    batch, orders, _ = _prepare(static, state, hparams, rollout, scores)
    learned = learner.at_first_update(hparams, state)
    for number, rows in enumerate(orders):
      minibatch = learner.take(
        static, batch, rows, jax.numpy.asarray(number == 0)
      )
      yield Start(learned, minibatch)
      learned, _ = _update(static, learned, hparams, minibatch)

  def _checkpoints(self):
    return checkpoint.Checkpointer(
      self._workdir / session.CHECKPOINTS,
      self.config.checkpoint.keep,
      self._note,
    )

  def _at(self, step, saver):
    """State after a step of which there is a checkpoint, or after none."""
    params = first_params.of(
      self.config, self.programs, self._workdir, self._note
    )
    state = checkpoint.place(self.programs.first_state(params))
    return saver.restore(state, step).state if step else state

  def _step(self, state, step):
    return self.programs.step(
      state, self._is_measured(step), self._hparams(step)
    )

  def _is_measured(self, step):
    """Also where its record says so: the run may have ended there once."""
    records = self._records[step - 1 : step]
    return schedule.is_measured(self.config, step) or any(
      record.get('mechanism/step') == step for record in records
    )

  def _settings(self, step):
    """What held in a step; after the last record, what held there."""
    if not self._records:
      return self._first
    record = self._records[min(step, len(self._records)) - 1]
    return control.settings_of(record, self._first)

  def _during(self, state):
    """What the updates of the step after a state use."""
    return factory.rates_at(self._hparams(int(state.step) + 1), state.step)

  def _hparams(self, step):
    return control.applied(
      self.programs.hparams, self._first, self._settings(step)
    )


@functools.partial(jax.jit, static_argnums=0)
def _log_ratio(static, hparams, start):
  batch = start.batch
  logprobs, *_ = policy.forward(
    static,
    start.learned.params,
    batch.tokens,
    batch.valid,
    batch.mask,
    hparams.temperature,
  )
  old_logprobs = jax.numpy.where(
    batch.is_on_policy, logprobs, batch.old_logprobs
  )
  return ratios.log_ratio(
    logprobs, old_logprobs, batch.mask, hparams.loss['log_ratio_max']
  ).x


_prepare = jax.jit(learner.prepare, static_argnums=0)
_trace = jax.jit(update.trace, static_argnums=0)
_update = jax.jit(update.update, static_argnums=0)


@contextlib.contextmanager
def opened(workdir: str | pathlib.Path, note) -> Iterator[Recorded]:
  """Opens a run folder to do steps of it again; locks it meanwhile.

  Args:
    workdir: run folder.
    note: takes a line for the user.

  Raises:
    ConfigError: no run folder, one that a process is writing, or one of other
      versions or inputs than these: its bits can't be expected again.
  """
  workdir = run_folder.placed(workdir)
  recorded = Recorded(workdir, note)
  with run_folder.claimed(workdir, run_folder.describe(recorded.config)):
    if _REWARD in run_folder.changed_functions(workdir, recorded.config):
      raise config_lib.ConfigError(
        f'{workdir}: the source of config.{_REWARD} = '
        f'{recorded.config.reward.function!r} is not what its last steps '
        'were made with: put it back'
      )
    yield recorded


def _nonfinite(place, arrays):
  """Suspects among a tree of arrays, in its order."""
  for path, array in jax.tree_util.tree_leaves_with_path(arrays):
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
      yield Suspect(place, _name(path), len(bad), tuple(bad[0].tolist()))


def _record_difference(step, values, record):
  """Whether metrics recomputed are those of the record, as it writes them."""
  for name, value in values.items():
    if tensorboard.is_for_board(name):
      continue
    again = run_records.plain(jax.device_get(value))
    finite = np.all(np.isfinite(again))  # else the record holds an older one
    if finite and again != record[name]:
      return f'{name} of step {step}: {again} again, {record[name]} recorded'
  return ''


def _state_difference(leaves, recorded):
  for (path, array), there in zip(leaves, recorded, strict=True):
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
      array, there = jax.random.key_data(array), jax.random.key_data(there)
    again, there = np.asarray(array), np.asarray(there)
    if again.tobytes() != there.tobytes():
      gap = np.max(np.abs(again.astype(np.float64) - there))
      return f'{_name(path)}: largest difference {gap:.3g}'
  return ''


def _name(path):
  return (
    jax.tree_util.keystr(path).replace("['", '/').replace("']", '').lstrip('./')
  )
