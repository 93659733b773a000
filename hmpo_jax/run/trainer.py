"""The loop around the learner, of one run: from its folder, into its folder."""

import pathlib

import jax

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.run import control
from hmpo_jax.run import failure
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import interruption as interruption_lib
from hmpo_jax.run import progress as progress_lib
from hmpo_jax.run import schedule
from hmpo_jax.run import session
from hmpo_jax.run import summary as summary_lib
from hmpo_jax.run import timed_step
from hmpo_jax.tasks import rewards as rewards_lib
from hmpo_jax.training import learner
from hmpo_jax.training import programs as programs_lib


class Stopped(Exception):
  """A run that ended early; its folder is sound, and says how far it came."""

  exit_code: int


class NumericalStop(Stopped):
  """Update after update, or every one, was skipped for a numerical cause."""

  exit_code = 3


class RewardStop(Stopped):
  """The reward function failed; repaired, the same command goes on."""

  exit_code = 2


def train(config, workdir: str | pathlib.Path) -> dict:
  """Runs a configuration to its end in a folder, or resumes it there.

  Args:
    config: ConfigDict with the keys of `config.default_config()`.
    workdir: run folder, made if missing; see docs/telemetry.md for the layout.

  Returns:
    The summary that summary.json holds.

  Raises:
    ConfigError: a value that can't run, or a folder of another configuration.
    Interrupted: a signal came; the step was finished and is in a checkpoint.
    NumericalStop: config.train.max_skips updates in a row, or all of the run,
      were skipped for a numerical cause.
    RewardStop: the reward function failed; all steps before are kept.
    OSError: the disk takes no more; what was written is whole.
  """
  with interruption_lib.Interruption(
    progress_lib.tell, 'the start of the run, which compiles'
  ) as interruption:
    return _train(config, run_folder.placed(workdir), interruption)


def _train(config, workdir, interruption):
  config_lib.validate(config)
  programs = programs_lib.Programs(config)
  controller = control.controller_of(config)
  description = run_folder.describe(config)
  # What a run has come to is shown under any settings.
  run_folder.refuse_other_run(
    workdir,
    {part: description[part] for part in description if part != 'settings'},
  )
  summary = summary_lib.read(workdir / run_folder.SUMMARY, config.num_steps)
  if summary is None:
    with run_folder.claimed(workdir, description):
      try:
        summary = _run(config, workdir, programs, controller, interruption)
      except rewards_lib.RewardError as error:
        raise RewardStop(f'held-out prompts: {error}') from error
      except failure.NumericalFault as error:
        if error.summary:
          progress_lib.summary_table(summary_lib.rows(error.summary, workdir))
        raise NumericalStop(str(error)) from error
  else:
    for key in run_folder.changed_functions(workdir, config):
      progress_lib.tell(
        f'warning: the source of config.{key} has changed since '
        'this run ended: the summary is of the former'
      )
  progress_lib.summary_table(summary_lib.rows(summary, workdir))
  return summary


def _run(config, workdir, programs, controller, interruption):
  """Trains from the newest checkpoint, or from the warm start."""
  with (
    progress_lib.Progress(config.num_steps) as progress,
    session.Session(
      config, programs, controller, workdir, progress.note
    ) as run,
  ):
    interruption.tell = progress.note
    state = run.restore()
    if state is None:
      state = run.first_state()
      run.begin(jax.device_get(programs.evaluate(state.params)))
    is_ending, record = interruption.is_asked(), None
    while not run.is_over:
      if is_ending:
        raise base.Interrupted(
          f'interrupted after step {run.step}: the same '
          'command goes on from there'
        )
      interruption.waits_for = f'step {run.step + 1} and its checkpoint' + (
        '' if record else ', while programs compile, which takes up to minutes'
      )
      try:
        state, *results = _step(run, programs, state)
      except rewards_lib.RewardError as error:
        run.save(state)
        raise RewardStop(f'step {run.step + 1}: {error}') from error
      record = run.write(*results)
      if run.early_stop and record['eval/step'] < run.step:
        run.conclude(jax.device_get(programs.evaluate(state.params)))
      _show(progress, record)
      is_ending = interruption.is_asked()
      if is_ending or run.is_over or schedule.is_saved(config, run.step):
        interruption.waits_for = f'the checkpoint of step {run.step}'
        run.save(state)
    return run.finish()


def _step(run, programs, state):
  """The next state, and what `Session.write` wants of the step."""
  config, step = run.config, run.step + 1
  key = learner.step_key(state)
  state, *results = timed_step.make(
    config,
    step,
    lambda is_measured: programs.step(state, is_measured, run.hparams),
    programs.evaluate,
  )
  return state, key, *results


def _show(progress, record):
  progress.update(
    record['step'],
    {
      'reward': float(record['reward/mean']),
      'held-out': float(record['eval/reward']),
      'clip low': float(record['clip/low_frac']),
      'clip high': float(record['clip/high_frac']),
      'max logit': float(record['qk/max_logit']),
      'tokens/s': record['tokens_per_s'],
    },
  )
