"""The loop around the learner: folders, checkpoints, evaluation, progress."""

import contextlib
import hashlib
import json
import pathlib
import time

import jax

from hmpo_jax import base
from hmpo_jax import checkpoint
from hmpo_jax import config as config_lib
from hmpo_jax import interruption as interruption_lib
from hmpo_jax import learner
from hmpo_jax import metrics as metrics_lib
from hmpo_jax import programs as programs_lib
from hmpo_jax import progress as progress_lib
from hmpo_jax import run_folder
from hmpo_jax import summary as summary_lib
from hmpo_jax import update
from hmpo_jax.tasks import reward as reward_lib

CHECKPOINTS = 'checkpoints'  # folder in the run folder
# Ratios this close to 1 in a whole rollout are rounding, not learning.
_SAME_POLICY = 1e-6
_PATIENCE = 5  # steps without a moving ratio before the run says so


class Stopped(Exception):
  """A run that ended early; its folder is sound, and says how far it came."""
  exit_code: int


class Interrupted(Stopped):
  """A signal asked for the end; the same command goes on from there."""
  exit_code = interruption_lib.EXIT_CODE


class NumericalStop(Stopped):
  """Update after update was skipped for a numerical cause."""
  exit_code = 3


class RewardStop(Stopped):
  """The reward function failed; repaired, the same command goes on."""
  exit_code = 2


def train(config, workdir: str | pathlib.Path) -> dict:
  """Runs a configuration to its end in a folder, or resumes it there.

  Args:
    config: ConfigDict with the keys of `config.default_config()`.
    workdir: run folder, made if missing; the layout stands in the README.

  Returns:
    The summary that summary.json holds.

  Raises:
    ConfigError: a value that can't run, or a folder of another configuration.
    Interrupted: a signal came; the step was finished and is in a checkpoint.
    NumericalStop: see config.train.max_skips.
    RewardStop: the reward function failed; all steps before are kept.
    OSError: the disk takes no more; what was written is whole.
  """
  with interruption_lib.Interruption() as interruption:
    return _train(config, pathlib.Path(workdir).absolute(), interruption)


def is_due(step: int, every: int, last: int) -> bool:
  """Whether something that is done every so many steps is done now."""
  return step % every == 0 or step == last


def is_measured(config, step: int) -> bool:
  """Whether a step compares means and what its QK-clip does to the policy."""
  return step == 1 or is_due(step, config.mechanism.every, config.num_steps)


def warm_params(config, programs: programs_lib.Programs, workdir: pathlib.Path,
                note) -> base.Params:
  """Parameters of the warm start, from the cache where it holds them.

  Args:
    config: of the run.
    programs: of the configuration.
    workdir: run folder, where the cache lies if the configuration names none.
    note: takes a line for the user.
  """
  warm, static = config.warm_start, programs.static
  folder = pathlib.Path(warm.folder or workdir / 'warm_start').absolute()
  identity = {
      'model': static.model.to_dict(),
      'task': static.task.to_dict(),
      'warm_start': [warm.num_steps, warm.batch_size, warm.learning_rate],
      'seed': config.seed,
      'inputs': run_folder.inputs(config),
      'versions': run_folder.versions(),
      'backend': jax.default_backend(),
  }
  digest = hashlib.sha256(json.dumps(identity,
                                     sort_keys=True).encode()).hexdigest()[:16]
  target = jax.eval_shape(programs.warm_params)
  params = checkpoint.restore_tree(folder / digest, target, note)
  if params is None:
    # What fails in the computation is no fault of the disk.
    params = jax.block_until_ready(programs.warm_params())
    checkpoint.save_tree(folder / digest, params)
  return params


def _train(config, workdir, interruption):
  config_lib.validate(config)
  programs = programs_lib.Programs(config)
  description = run_folder.describe(config)
  run_folder.refuse_other_run(workdir, description)
  file = workdir / 'summary.json'
  summary = summary_lib.read(file)
  if summary is None:
    with run_folder.claimed(workdir, description):
      try:
        summary = _run(config, workdir, programs, interruption)
      except reward_lib.RewardError as error:
        raise RewardStop(str(error)) from error
      run_folder.write_json(file, summary)
  progress_lib.summary_table(summary_lib.rows(summary, workdir))
  return summary


def _run(config, workdir, programs, interruption):
  """Trains from the newest checkpoint, or from the warm start."""
  with contextlib.ExitStack() as stack:
    progress = stack.enter_context(progress_lib.Progress(config.num_steps))
    saver = stack.enter_context(
        checkpoint.Checkpointer(workdir / CHECKPOINTS, config.checkpoint.keep,
                                progress.note))
    loop = _Loop(config, programs, workdir, progress)
    start, state, extra = loop.start(saver)
    writer = stack.enter_context(
        metrics_lib.Writer(
            workdir, start, config_text=config.to_json_best_effort(indent=2)))
    asked = interruption.is_asked()
    for step in range(start + 1, config.num_steps + 1):
      if asked:
        raise Interrupted(f'interrupted after step {step - 1}: the same '
                          'command goes on from there')
      key = jax.random.key_data(learner.step_key(state)).tolist()
      try:
        state, extra, record, timing = loop.step(state, extra, step)
      except reward_lib.RewardError:
        if saver.latest_step() != step - 1 > 0:
          saver.save(step - 1, state, extra, extra['eval']['eval/reward'])
        raise
      causes = _numerical_skips(record)
      if causes:
        writer.write_fault(step, {'skipped': causes, 'key': key})
        progress.note(f'warning: step {step} skipped updates, {causes}; look '
                      'with python experiments/replay.py --workdir='
                      f'{workdir} --step={step}')
      writer.write(step, record, timing)
      _stop_if_numerical(config, step, record)
      asked = interruption.is_asked()
      if asked or is_due(step, config.checkpoint.every, config.num_steps):
        saver.save(step, state, extra, extra['eval']['eval/reward'])
  return summary_lib.make(
      metrics_lib.read(workdir), extra, programs.baselines(), config)


def _numerical_skips(record):
  """Updates of a step that were skipped for a numerical fault, by cause."""
  counts = {c: int(record[f'skipped/{c}']) for c in update.NUMERICAL_CAUSES}
  return {cause: count for cause, count in counts.items() if count}


def _stop_if_numerical(config, step, record):
  skips = int(record['skipped/in_a_row'])
  if skips >= config.train.max_skips:
    raise NumericalStop(
        f'step {step}: {skips} updates in a row were skipped for a numerical '
        'cause, see skipped/* in metrics.jsonl; a skipped update changes '
        'nothing, so the checkpoints are sound')


class _Loop:
  """One step at a time: train, evaluate when due, show, warn."""

  def __init__(self, config, programs, workdir, progress):
    self._config = config
    self._programs = programs
    self._workdir = workdir
    self._progress = progress
    self._still = 0  # steps in a row in which no ratio left 1

  def start(self, saver):
    """Finished steps, with what the checkpoint or the warm start gives."""
    note = self._progress.note
    params = warm_params(self._config, self._programs, self._workdir, note)
    state = checkpoint.place(self._programs.first_state(params))
    restored = saver.restore(state)
    if restored is not None:
      return restored
    first = self._evaluate(params, 0)
    return 0, state, {'tokens': 0, 'eval': first, 'first_eval': first}

  def step(self, state, extra, step):
    """Returns the next state, what a checkpoint adds to it, record, timing."""
    config = self._config
    start = time.perf_counter()
    state, metrics = self._programs.step(state, is_measured(config, step))
    metrics = jax.device_get(metrics)
    timing = {'step_s': time.perf_counter() - start}
    tokens = int(metrics['rollout/tokens'])
    timing['tokens_per_s'] = tokens / timing['step_s']
    extra = extra | {'tokens': extra['tokens'] + tokens}
    if is_due(step, config.eval.every, config.num_steps):
      start = time.perf_counter()
      extra['eval'] = self._evaluate(state.params, step)
      timing['eval_s'] = time.perf_counter() - start
    record = metrics | extra['eval'] | {
        'total/episodes':
            step * config.rollout.num_prompts * config.rollout.group_size,
        'total/tokens':
            extra['tokens'],
    }
    self._show(step, record, timing)
    return state, extra, record, timing

  def _evaluate(self, params, step):
    """Held-out metrics as floats, with the step they were made at."""
    values = jax.device_get(self._programs.evaluate(params))
    return {
        name: metrics_lib.plain(value) for name, value in values.items()
    } | {
        'eval/step': step
    }

  def _show(self, step, record, timing):
    self._progress.update(
        step, {
            'reward': float(record['reward/mean']),
            'held-out': float(record['eval/reward']),
            'clip low': float(record['clip/low_frac']),
            'clip high': float(record['clip/high_frac']),
            'max logit': float(record['qk/max_logit']),
            'tokens/s': timing['tokens_per_s'],
        })
    # Where updates were skipped there is a reason that a note names already.
    moved = (
        record['log_ratio/abs_max'] > _SAME_POLICY or
        bool(_numerical_skips(record)))
    self._still = 0 if moved else self._still + 1
    if self._still == _PATIENCE:
      self._progress.note(
          f'warning: no importance ratio left 1 in {_PATIENCE} steps, so every '
          'mean is the same algorithm here; reuse rollouts (config.train.'
          'num_epochs, num_minibatches) or raise the learning rate')
