"""The loop around the learner: folders, checkpoints, evaluation, progress."""

import contextlib
import functools
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp

from hmpo_jax import checkpoint
from hmpo_jax import config as config_lib
from hmpo_jax import interruption as interruption_lib
from hmpo_jax import learner
from hmpo_jax import metrics as metrics_lib
from hmpo_jax import policy
from hmpo_jax import progress as progress_lib
from hmpo_jax import run_folder
from hmpo_jax import summary as summary_lib
from hmpo_jax import warm_start
from hmpo_jax.tasks import reward as reward_lib
from hmpo_jax.tasks import task as task_lib

# One compiled program for each static part, whatever the variant.
_train_step = jax.jit(learner.train_step, static_argnums=0, donate_argnums=1)
_evaluate = jax.jit(learner.evaluate, static_argnums=0)
# The same in parts, around a reward on the host; the state must outlive a
# reward function that fails, so that nothing is donated.
_collect = jax.jit(learner.collect, static_argnums=0)
_learn = jax.jit(learner.learn, static_argnums=0)
_respond = jax.jit(learner.respond, static_argnums=0)
_warm_start = jax.jit(warm_start.train, static_argnums=0)
_init = jax.jit(learner.init, static_argnums=0)

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
  config_lib.validate(config)
  workdir = pathlib.Path(workdir).absolute()
  judge = _judge(config)
  description = run_folder.describe(config)
  run_folder.refuse_other_run(workdir, description)
  summary_file = workdir / 'summary.json'
  if not summary_file.exists():
    prompts = _held_out_prompts(config)
    with run_folder.claimed(workdir, description):
      try:
        summary = _run(config, workdir, prompts, judge)
      except reward_lib.RewardError as error:
        raise RewardStop(str(error)) from error
      run_folder.write_json(summary_file, summary)
  summary = json.loads(summary_file.read_text(encoding='utf-8'))
  progress_lib.summary_table(summary_lib.rows(summary, workdir))
  return summary


def _run(config, workdir, prompts, judge):
  """Trains from the newest checkpoint, or from the warm start."""
  with contextlib.ExitStack() as stack:
    interruption = stack.enter_context(interruption_lib.Interruption())
    progress = stack.enter_context(progress_lib.Progress(config.num_steps))
    saver = stack.enter_context(
        checkpoint.Checkpointer(workdir / 'checkpoints', config.checkpoint.keep,
                                progress.note))
    loop = _Loop(config, prompts, judge, progress)
    start, state, extra = _start(config, workdir, loop, saver, progress.note)
    writer = stack.enter_context(
        metrics_lib.Writer(
            workdir, start, config_text=config.to_json_best_effort(indent=2)))
    asked = interruption.is_asked()
    for step in range(start + 1, config.num_steps + 1):
      if asked:
        raise Interrupted(f'interrupted after step {step - 1}: the same '
                          'command goes on from there')
      try:
        state, extra, record, timing = loop.step(state, extra, step)
      except reward_lib.RewardError:
        if saver.latest_step() != step - 1 > 0:
          saver.save(step - 1, state, extra, extra['eval']['eval/reward'])
        raise
      writer.write(step, record, timing)
      _stop_if_numerical(config, step, record)
      asked = interruption.is_asked()
      if asked or _is_due(step, config.checkpoint.every, config.num_steps):
        saver.save(step, state, extra, extra['eval']['eval/reward'])
  baselines = task_lib.baselines(
      policy.make_task(config_lib.static(config)), prompts, judge)
  return summary_lib.make(metrics_lib.read(workdir), extra, baselines, config)


def _start(config, workdir, loop, saver, note):
  """Finished steps, and what a checkpoint or the warm start gives for them."""
  warm_key, run_key = jax.random.split(jax.random.key(config.seed))
  params = _warm_params(config, warm_key, workdir, note)
  state = checkpoint.place(
      _init(
          config_lib.static(config), config_lib.hparams(config), params,
          run_key))
  restored = saver.restore(state)
  if restored is not None:
    return restored
  first = loop.evaluate(params, 0)
  return 0, state, {'tokens': 0, 'eval': first, 'first_eval': first}


def _stop_if_numerical(config, step, record):
  skips = int(record['skipped/in_a_row'])
  if skips >= config.train.max_skips:
    raise NumericalStop(
        f'step {step}: {skips} updates in a row were skipped for a numerical '
        'cause, see skipped/* in metrics.jsonl; a skipped update changes '
        'nothing, so the checkpoints are sound')


class _Loop:
  """One step at a time: train, evaluate when due, show, warn."""

  def __init__(self, config, prompts, judge, progress):
    self._config = config
    self._judge = judge if config.reward.function else None
    self._static = config_lib.static(config)
    self._hparams = config_lib.hparams(config)
    self._prompts = prompts
    self._progress = progress
    self._still = 0  # steps in a row in which no ratio left 1

  def evaluate(self, params, step):
    """Held-out metrics as floats, with the step they were made at."""
    if self._judge is None:
      values = _evaluate(self._static, params, self._prompts)
    else:
      rollout = _respond(self._static, params, self._prompts)
      values = learner.heldout_metrics(rollout, self._judge(rollout))
    values = jax.device_get(values)
    return {
        name: float(value) for name, value in values.items()
    } | {
        'eval/step': step
    }

  def step(self, state, extra, step):
    """Returns the next state, what a checkpoint adds to it, record, timing."""
    config = self._config
    is_due = _is_due(step, config.eval.every, config.num_steps)
    start = time.perf_counter()
    state, metrics = self._train(state, jnp.asarray(is_due))
    metrics = jax.device_get(metrics)
    timing = {'step_s': time.perf_counter() - start}
    tokens = int(metrics['rollout/tokens'])
    timing['tokens_per_s'] = tokens / timing['step_s']
    extra = extra | {'tokens': extra['tokens'] + tokens}
    if is_due:
      start = time.perf_counter()
      extra['eval'] = self.evaluate(state.params, step)
      timing['eval_s'] = time.perf_counter() - start
    record = metrics | extra['eval'] | {
        'total/episodes':
            step * config.rollout.num_prompts * config.rollout.group_size,
        'total/tokens':
            extra['tokens'],
        'mean/p':
            float(self._hparams.p),
    }
    self._show(step, record, timing)
    return state, extra, record, timing

  def _train(self, state, measure):
    static, hparams = self._static, self._hparams
    if self._judge is None:
      return _train_step(static, state, hparams, measure)
    rollout = _collect(static, state, hparams)
    return _learn(static, state, hparams, rollout, self._judge(rollout),
                  measure)

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
    moved = record['log_ratio/abs_max'] > _SAME_POLICY
    self._still = 0 if moved else self._still + 1
    if self._still == _PATIENCE:
      self._progress.note(
          f'warning: no importance ratio left 1 in {_PATIENCE} steps, so every '
          'mean is the same algorithm here; reuse rollouts (config.train.'
          'num_epochs, num_minibatches) or raise the learning rate')


def _is_due(step, every, last):
  return step % every == 0 or step == last


def _judge(config):
  """What scores a rollout: the task itself, or a function on the host."""
  task = policy.make_task(config_lib.static(config))
  needs_answers = not config.reward.function or config.warm_start.num_steps > 0
  if needs_answers and not task.has_answers:
    raise config_lib.ConfigError(
        f'config.task.prompts = {config.task.prompts!r}: every line must have '
        'an "answer", unless config.reward.function is given and '
        'config.warm_start.num_steps is 0')
  if config.reward.function:
    return reward_lib.HostReward(config.reward.function, config.reward.timeout,
                                 task.prompt_len)
  return functools.partial(task_lib.score_rollout, task)


def _held_out_prompts(config):
  """[M, P] prompts that training and warm start never draw."""
  task = policy.make_task(config_lib.static(config))
  try:
    return jnp.asarray(task_lib.held_out_prompts(task, config.eval.num_prompts))
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from error


def _warm_params(config, key, workdir, note):
  """Parameters of the warm start, from the cache where it holds them."""
  warm, static = config.warm_start, config_lib.static(config)
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
  compute = lambda: _warm_start(static, warm.num_steps, warm.learning_rate, key)
  target = jax.eval_shape(compute)
  params = checkpoint.restore_tree(folder / digest, target, note)
  if params is None:
    params = compute()
    checkpoint.save_tree(folder / digest, params)
  return params
