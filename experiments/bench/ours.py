"""This project's step on a workload, configured and compiled as a run's is."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import json
import random
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from experiments.bench import timing
from experiments.bench import workloads
from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.training import learner
from hmpo_jax.training import policy

_NUM_PROMPTS = 256
_NO_PROMPT_TOKENS = 3  # the first tokens, as the peers' special ones

_init_params = jax.jit(transformer.init, static_argnums=0)
_init_state = jax.jit(learner.init, static_argnums=0)


class Start(NamedTuple):
  """What the first step of a run is called with."""

  static: ml_collections.FrozenConfigDict
  hparams: base.HParams
  state: learner.TrainState


@contextlib.contextmanager
def configured(
  workload: workloads.Workload, **changes
) -> Iterator[ml_collections.ConfigDict]:
  """The configuration of a workload; its prompts are a file of the context.

  Old log-probabilities are the sampler's, as those of the peers: a rollout is
  used once.

  Args:
    workload: policy and batch; what a step does is workloads.RECIPE.
    **changes: other values, section__key=value.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = f'{folder}/prompts.jsonl'
    with open(file, 'w', encoding='utf-8') as lines:
      lines.writelines(f'{line}\n' for line in _prompt_lines(workload))
    config = _config(workload, file)
    config.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in changes.items()}
    )
    config_lib.validate(config)
    yield config


def start(config: ml_collections.ConfigDict) -> Start:
  """The first state of a run without a warm start."""
  static, hparams = traced.static(config), traced.hparams(config)
  init_key, run_key = jax.random.split(base.random_key(config.seed))
  params = _init_params(policy.make_model(static), init_key)
  return Start(static, hparams, _init_state(static, hparams, params, run_key))


def stepper(
  config: ml_collections.ConfigDict,
) -> tuple[timing.Program, Callable[[], base.Metrics]]:
  """The program of a whole step, and a function that runs the next one."""
  return stepper_from(start(config))


def stepper_from(
  first: Start,
) -> tuple[timing.Program, Callable[[], base.Metrics]]:
  """`stepper` from a state, which is used up."""
  static, hparams, state = first
  arguments = hparams, jnp.asarray(False)
  program = timing.compiled(
    functools.partial(learner.train_step, static),
    state,
    *arguments,
    donate=(0,),
  )

  def step():
    nonlocal state
    state, metrics = program.call(state, *arguments)
    return metrics

  return program, step


def _config(workload, file):
  recipe = workloads.RECIPE
  config = config_lib.default_config()
  config.update(
    {
      'task': {
        'name': 'file',
        'prompts': file,
        'vocab_size': workload.vocab_size,
        'pad': 0,
        'stop': -1,
        'response_len': workload.response_len,
      },
      'model': {
        'num_layers': workload.num_layers,
        'embed_dim': workload.embed_dim,
        'num_heads': workload.num_heads,
        'num_kv_heads': workload.key_heads,
        'head_dim': workload.head_dim,
        'mlp_dim': workload.mlp_dim,
        'rope_theta': recipe.rope_base,
        'norm_eps': recipe.norm_epsilon,
        'tie_embeddings': True,
        'dtype': workload.dtype,
        'remat': workload.remat,
      },
      'rollout': {
        'num_prompts': workload.num_prompts,
        'group_size': workload.group_size,
        'temperature': recipe.temperature,
        'old_logprobs': 'sampler',
      },
      'loss': {
        'p': 0.0,
        'clip_eps_low': recipe.clip_epsilon,
        'clip_eps_high': recipe.clip_epsilon,
      },
      'train': {
        'num_epochs': 1,
        'num_minibatches': 1,
        'num_microbatches': workload.num_microbatches,
        'max_grad_norm': recipe.max_grad_norm,
      },
      'optim': {
        'name': 'adamw',
        'learning_rate': recipe.learning_rate,
        'weight_decay': recipe.weight_decay,
        'qk_clip': 'off',
      },
      'warm_start': {
        'num_steps': 0,
      },
      'eval': {
        'num_prompts': 2,
      },
    }
  )
  return config


def _prompt_lines(workload):
  """Different prompts; the reward of an answer is the share of its token."""
  rng = random.Random(0)
  draw = lambda: tuple(
    rng.randrange(_NO_PROMPT_TOKENS, workload.vocab_size)
    for _ in range(workload.prompt_len)
  )
  answer = [workloads.RECIPE.reward_token] * workload.response_len
  for prompt in dict.fromkeys(draw() for _ in range(_NUM_PROMPTS)):
    yield json.dumps({'prompt': prompt, 'answer': answer})
