"""The compiled programs of a configuration, for whoever runs its steps."""

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import replayed
from hmpo_jax.config import traced
from hmpo_jax.tasks import prompt_file
from hmpo_jax.tasks import rewards as rewards_lib
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import jax_settings
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import step_metrics
from hmpo_jax.training import warm_start

# One compiled program for each static part, whatever the variant.
_train_step = jax.jit(learner.train_step, static_argnums=0, donate_argnums=1)
_evaluate = jax.jit(learner.evaluate, static_argnums=0)
# The same in parts, around a reward on the host. The state must outlive a
# reward function that fails: only the part after it takes the state's memory.
_collect = jax.jit(learner.collect, static_argnums=0)
_learn = jax.jit(learner.learn, static_argnums=0, donate_argnums=1)
_respond = jax.jit(learner.respond, static_argnums=0)
_warm_start = jax.jit(warm_start.train, static_argnums=0)
_init = jax.jit(learner.init, static_argnums=0)


class Programs:
  """What a configuration computes; the reward may stand on the host."""

  def __init__(self, config):
    """Makes the task and imports the reward function.

    Args:
      config: validated.

    Raises:
      ConfigError: a file or a function of the configuration can't be used.
    """
    jax_settings.refuse()
    jax_settings.refuse_without_device()
    self._config = config
    self._warm_key, self._run_key = jax.random.split(
      base.random_key(config.seed)
    )
    self.static = traced.static(config)
    self.hparams = traced.hparams(config, replayed.load(config))
    self.task = policy.make_task(self.static)
    self._has_host_reward = bool(config.reward.function)
    self.judge = self._make_judge()
    self.prompts = _held_out_prompts(config, self.task)  # [M, P]

  def warm_params(self) -> base.Params:
    """Parameters after the supervised warm start."""
    warm = self._config.warm_start
    return _warm_start(
      traced.of_warm_start(self.static),
      warm.num_steps,
      warm.learning_rate,
      self._warm_key,
      warm.stop_reward,
      self.hparams.temperature,
      warm.muon_learning_rate,
    )

  def first_state(self, params: base.Params) -> learner.TrainState:
    """State before the first step."""
    return _init(self.static, self.hparams, params, self._run_key)

  def collect(self, state: learner.TrainState):
    """The rollout of the step after a state, and its scores."""
    rollout = _collect(self.static, state, self.hparams)
    return rollout, self.judge(rollout)

  def step(
    self, state: learner.TrainState, measure: bool, hparams: base.HParams
  ) -> tuple[learner.TrainState, base.Metrics]:
    """One step; see `learner.train_step`.

    Args:
      state: may be donated, unless the reward function fails.
      measure: see `learner.train_step`.
      hparams: that hold in this step, `hparams` or what a controller made of
        them, which no rollout depends on.

    Raises:
      RewardError: the reward function failed.
    """
    flag = jnp.asarray(measure)
    if self._has_host_reward:
      return _learn(self.static, state, hparams, *self.collect(state), flag)
    return _train_step(self.static, state, hparams, flag)

  def compiled_step(self, state: learner.TrainState):
    """The program of a step, for what it says of itself; None in two halves."""
    if self._has_host_reward:
      return None
    return _train_step.lower(
      self.static, state, self.hparams, jnp.asarray(False)
    ).compile()

  def evaluate(self, params: base.Params) -> base.Metrics:
    """Held-out metrics; raises RewardError as `step`."""
    if not self._has_host_reward:
      return _evaluate(
        self.static, params, self.prompts, self.hparams.pays_exact
      )
    rollout = _respond(self.static, params, self.prompts)
    return step_metrics.of_held_out(rollout, self.judge(rollout))

  def baselines(self) -> dict[str, float]:
    """Rewards that need no skill, on the held-out prompts."""
    return task_lib.baselines(self.task, self.prompts, self.judge)

  def _make_judge(self):
    """What scores a rollout: the task itself, or a function on the host."""
    config, reward = self._config, self._config.reward
    needs_answers = not reward.function or config.warm_start.num_steps > 0
    if needs_answers and not self.task.has_answers:
      raise prompt_file.unanswered(config.task.prompts)
    if not reward.function:
      return policy.make_judge(self.static, self.hparams.pays_exact)
    return rewards_lib.HostReward(
      reward.function, reward.timeout, self.task.prompt_len
    )


def _held_out_prompts(config, task):
  """[M, P] prompts that training and warm start never draw."""
  try:
    return jnp.asarray(task_lib.held_out_prompts(task, config.eval.num_prompts))
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from error
