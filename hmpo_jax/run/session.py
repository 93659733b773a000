"""A run folder while its run goes on: where it resumes, what it is given.

It makes no step itself: `trainer` makes them one run at a time, `batch` those
of many runs at once, and both hand each step's metrics to this.
"""

import contextlib
import pathlib

import jax

from hmpo_jax import base
from hmpo_jax.run import checkpoint
from hmpo_jax.run import control
from hmpo_jax.run import failure
from hmpo_jax.run import files
from hmpo_jax.run import first_params
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import schedule
from hmpo_jax.run import steering
from hmpo_jax.run import summary as summary_lib
from hmpo_jax.run import telemetry
from hmpo_jax.run import tensorboard
from hmpo_jax.training import learner
from hmpo_jax.training import programs as programs_lib

CHECKPOINTS = 'checkpoints'  # folder in the run folder
START = 'start.json'
# Ratios this close to 1 in a whole rollout are rounding, not learning.
_SAME_POLICY = 1e-6
_PATIENCE = 5  # steps without a moving ratio before the run says so


class Session(contextlib.AbstractContextManager):
  """The folder of one run, whose steps come one after the other.

  First `restore`, or `first_state` and `begin`; then for each step `write`,
  and `save` where it is due; after the last one `finish`.
  """

  def __init__(
    self,
    config,
    programs: programs_lib.Programs,
    controller: control.Controller | None,
    workdir: pathlib.Path,
    note,
  ):
    """Opens the checkpoints, and no other file yet.

    Args:
      config: valid, of the run.
      programs: of the configuration.
      controller: of the configuration, which has seen no record yet.
      workdir: absolute run folder, which the caller has claimed.
      note: takes a line for the user.
    """
    self.config, self.programs, self.workdir = config, programs, workdir
    self.steering = steering.Steering(config, controller, workdir, note)
    self.step = 0  # finished
    self._note = note
    # What a checkpoint holds beside the state.
    self._extra: dict = {}
    self._score: float | None = None  # held-out reward after the last step
    self._still = 0  # steps in a row in which no ratio left 1
    self._writer: run_records.Writer  # once it is known where to go on
    self._stack = contextlib.ExitStack()
    self._saver = self._stack.enter_context(
      checkpoint.Checkpointer(
        workdir / CHECKPOINTS, config.checkpoint.keep, note
      )
    )

  def __exit__(self, *error):
    return self._stack.__exit__(*error)

  @property
  def hparams(self) -> base.HParams:
    """The traced part of the configuration for the next step."""
    return self.steering.applied(self.programs.hparams)

  @property
  def early_stop(self) -> str:
    """Why a controller has ended the run; '' if none has."""
    return self._extra['early_stop']

  @property
  def is_over(self) -> bool:
    """Whether no step is left."""
    return self.step >= self.config.num_steps or bool(self.early_stop)

  def saved_steps(self) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return self._saver.steps()

  def first_state(self) -> learner.TrainState:
    """The state before the first step."""
    params = first_params.of(
      self.config, self.programs, self.workdir, self._note
    )
    return checkpoint.place(self.programs.first_state(params))

  def begin(self, evaluation: base.Metrics) -> None:
    """Starts from `first_state`, with its held-out metrics."""
    first = _plain(evaluation) | {'eval/step': 0}
    self._extra = {
      'tokens': 0,
      'eval': first,
      'first_eval': first,
      'settings': self.steering.settings._asdict(),
      'early_stop': '',
    }
    if line := run_records.start_over(
      self.workdir, self.config.checkpoint.every
    ):
      self._note(line)
    files.write_json(self.workdir / START, first)
    run_folder.write_functions(self.workdir, self.config, 0)
    self._open_writer()
    self._writer.show(0, evaluation)

  def restore(self, step: int | None = None) -> learner.TrainState | None:
    """The state of a checkpoint, from which the run goes on.

    Args:
      step: of `saved_steps`; None for the newest.

    Returns:
      None if there is no checkpoint; then all is as it was.
    """
    if not self.saved_steps():
      return None
    restored = self._saver.restore(self.first_state(), step)
    self.step, self._extra = restored.step, restored.extra
    self.steering.settings = control.Settings(**self._extra['settings'])
    for line in run_folder.write_functions(
      self.workdir, self.config, self.step
    ):
      self._note(line)
    self._open_writer()
    self.steering.catch_up(self.step)
    doubts = run_folder.doubts(self.workdir)
    if doubts:
      self._note(
        f'warning: from step {self.step + 1} on the run may have other '
        f'bits than it would have had: {doubts}'
      )
    return restored.state

  def write(
    self,
    key: jax.Array,
    metrics: base.Metrics,
    evaluation: base.Metrics | None,
    timing: dict[str, float],
  ) -> dict:
    """Takes the next step.

    Args:
      key: [] that decided its randomness.
      metrics: of the step, on the host.
      evaluation: held-out metrics after it, on the host, where there are some:
        see `schedule.is_evaluated`.
      timing: seconds by name, of which 'step_s' gives tokens_per_s.

    Returns:
      What the record and timing.jsonl hold of the step.

    Raises:
      NumericalFault: see config.train.max_skips; the record is written, and
        the reason to failed.json.
    """
    step = self.step = self.step + 1
    tokens = int(metrics['rollout/tokens'])
    # Not in place: a checkpoint may still be writing what was there.
    self._extra = self._extra | {'tokens': self._extra['tokens'] + tokens}
    self._take_evaluation(evaluation)
    record = self._record(metrics, evaluation)
    causes = failure.numerical_skips(record)
    timing = timing | {'tokens_per_s': tokens / timing['step_s']}
    self._writer.write(step, record, timing, self._fault(causes, key))
    self._warn_if_still(record, causes)
    self._refuse_skips(int(record['skipped/in_a_row']))
    self._ask()
    return {'step': step} | record | timing

  def conclude(self, evaluation: base.Metrics) -> None:
    """Takes held-out metrics after the last step, for the summary."""
    self._extra['eval'] = _plain(evaluation) | {'eval/step': self.step}
    self._score = self._extra['eval']['eval/reward']

  def save(self, state: learner.TrainState) -> None:
    """Makes a checkpoint after the step, unless there is one."""
    if self._saver.latest_step() != self.step > 0:
      self._saver.save(self.step, state, self._extra, self._score)

  def finish(self) -> dict:
    """The summary of all steps, as it is written to summary.json.

    Raises:
      NumericalFault: every update was skipped for a numerical cause: there is
        nothing to sum up. The reason stands in failed.json.
      SaveError: the last checkpoint failed.
    """
    self._saver.wait()
    summary = summary_lib.make(
      run_records.read_measured(self.workdir),
      self._extra,
      self.programs.baselines(),
      self.config,
    )
    if not summary_lib.num_sound(summary):
      self._fail(
        'every update of the run was skipped for a numerical cause, see '
        'skipped/* in metrics.jsonl; nothing was learned',
        summary,
      )
    files.write_json(self.workdir / run_folder.SUMMARY, summary)
    return summary

  def _open_writer(self):
    self._writer = self._stack.enter_context(
      run_records.Writer(self.workdir, self.step, config=self.config)
    )
    # It can go on: no word of how it ended holds any longer.
    (self.workdir / failure.FAILED).unlink(missing_ok=True)
    run_folder.lengthen(self.workdir, self.config.num_steps)

  def _take_evaluation(self, evaluation):
    """Scores the next checkpoint, and keeps what records show until the next."""
    self._score = None
    if evaluation is None:
      return
    plain = _plain(evaluation)
    self._score = plain['eval/reward']
    if schedule.is_recorded(self.config, self.step):
      self._extra |= {'eval': plain | {'eval/step': self.step}}

  def _record(self, metrics, evaluation):
    """What the record of the last step holds."""
    config, step = self.config, self.step
    is_recorded = schedule.is_recorded(config, step)
    episodes = config.rollout.num_prompts * config.rollout.group_size
    record = (
      metrics
      | ((evaluation or {}) if is_recorded else {})
      | self._extra['eval']
      | {
        'total/episodes': step * episodes,
        'total/tokens': self._extra['tokens'],
      }
    )
    record |= telemetry.fields(
      record,
      self._writer.last,
      step=step,
      iterations=self.steering.settings.agm_iterations,
      history=config.control.history,
    )
    return record | self.steering.held()

  def _refuse_skips(self, count):
    """Ends a run that skips update after update."""
    if count < self.config.train.max_skips:
      return
    self._fail(
      f'{count} updates in a row were skipped for a numerical cause, see '
      'skipped/* in metrics.jsonl; a skipped update changes nothing, so the '
      'checkpoints are sound'
    )

  def _fail(self, reason, summary=None):
    reason = f'step {self.step}: {reason}'
    failure.fail(self.workdir, reason, self.step, is_final=True)
    fault = failure.NumericalFault(reason)
    fault.summary = summary
    raise fault

  def _ask(self):
    """What the controller makes of the last record holds from now on."""
    answer = self.steering.ask(self._writer.last)
    if answer is None:
      return
    may_stop = self.config.control.may_stop
    self._writer.write_control(self.step, answer.line(may_stop))
    self._extra |= {
      'settings': answer.settings._asdict(),
      'early_stop': answer.stop if may_stop else '',
    }
    if answer.lost:
      self.steering.catch_up(self.step)

  def _fault(self, causes, key):
    """What faults.jsonl holds of the step's skips; {} without any."""
    if not causes:
      return {}
    self._note(
      f'warning: step {self.step} skipped updates, {causes}; look '
      'with python experiments/replay.py --workdir='
      f'{self.workdir} --step={self.step}'
    )
    return {'skipped': causes, 'key': jax.random.key_data(key).tolist()}

  def _warn_if_still(self, record, causes):
    # Where updates were skipped there is a reason that a note names already.
    moved = record['log_ratio/abs_max'] > _SAME_POLICY or bool(causes)
    self._still = 0 if moved else self._still + 1
    if self._still == _PATIENCE:
      self._note(
        f'warning: no importance ratio left 1 in {_PATIENCE} steps, so every '
        'mean is the same algorithm here; reuse rollouts (config.train.'
        'num_epochs, num_minibatches) or raise the learning rate'
      )


def _plain(evaluation):
  """What records and checkpoints hold of an evaluation."""
  return {
    name: run_records.plain(value)
    for name, value in evaluation.items()
    if not tensorboard.is_for_board(name)
  }
