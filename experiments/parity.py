"""Runs the losses of verl, TRL and tunix on the batches that ours are given.

  python experiments/parity.py

Of the three, those that can be imported. Every batch has log-ratios below 5
nats and no empty row, and the options match; the table has the largest absolute
difference of the losses and of their gradients by the log-probabilities. Exit
code 0: all below 1e-5; 1: one is not; 2: none of them is installed.
"""

import collections
from collections.abc import Callable
import functools
import importlib
from importlib import metadata
import sys
import types
from typing import Any
from typing import NamedTuple
from unittest import mock

from absl import app
import jax
import numpy as np

from hmpo_jax.kernels import losses
from hmpo_jax.run import command_line

_TOLERANCE = 1e-5
_NUM_BATCHES, _ROWS, _TOKENS = 4, 8, 24
_SCALE = 32.0  # tokens, of the aggregations that divide by a constant
_MODULES = {
  'verl': 'verl.trainer.ppo.core_algos',
  'trl': 'trl.trainer.grpo_trainer',
  'google-tunix': 'tunix.rl.algo_core',
}


class Batch(NamedTuple):
  """float32 but for the mask."""

  logprobs: np.ndarray  # [B, T]
  old_logprobs: np.ndarray  # [B, T]
  advantages: np.ndarray  # [B]
  mask: np.ndarray  # [B, T] bool


# Loss and its gradient [B, T] by the log-probabilities.
Outcome = tuple[float, np.ndarray]


def _batch(seed: int) -> Batch:
  rng = np.random.default_rng(seed)
  old_logprobs = rng.uniform(-3, -0.1, size=(_ROWS, _TOKENS))
  x = np.clip(rng.normal(size=(_ROWS, _TOKENS)), -4.9, 4.9)
  lengths = rng.integers(1, _TOKENS + 1, size=(_ROWS, 1))
  narrow = lambda array: np.asarray(array, np.float32)
  return Batch(
    narrow(old_logprobs + x),
    narrow(old_logprobs),
    narrow(rng.normal(size=_ROWS)),
    np.arange(_TOKENS) < lengths,
  )


def _ours(loss: Callable[..., Any], **settings) -> Callable[[Batch], Outcome]:
  of = lambda logprobs, *rest: loss(logprobs, *rest, **settings)[0]
  run = jax.jit(jax.value_and_grad(of))

  def evaluate(batch: Batch) -> Outcome:
    value, gradient = run(*batch)
    return float(value), np.asarray(gradient)

  return evaluate


def _by_torch(loss, batch: Batch) -> Outcome:
  """`loss` of the batch as tensors, and its gradient."""
  torch = importlib.import_module('torch')
  logprobs, old_logprobs, advantages, mask = (
    torch.from_numpy(np.float32(array)) for array in batch
  )
  logprobs.requires_grad_()
  value = loss(logprobs, old_logprobs, advantages, mask)
  value.backward()
  return value.item(), logprobs.grad.numpy()


def _verl(name: str, aggregation: str, **settings):
  module = importlib.import_module(_MODULES['verl'])
  config = importlib.import_module('verl.workers.config').ActorConfig(
    strategy='fsdp',
    rollout_n=1,
    ppo_micro_batch_size_per_gpu=1,
    **{'clip_ratio_c': 1e9} | settings,
  )
  # The trainer fills it in for minibatches that are split.
  config.global_batch_info['loss_scale_factor'] = _SCALE
  policy_loss = module.get_policy_loss_fn(name)

  def loss(logprobs, old_logprobs, advantages, mask):
    wide = advantages[:, None].expand_as(mask)
    return policy_loss(old_logprobs, logprobs, wide, mask, aggregation, config)[
      0
    ]

  return functools.partial(_by_torch, loss)


def _trl(
  loss_type: str, *, level: str = 'token', delta=None, low=0.2, high=0.28
):
  """GRPOTrainer._compute_loss of a trainer that has what it reads."""
  trainer = importlib.import_module(_MODULES['trl']).GRPOTrainer

  def loss(logprobs, old_logprobs, advantages, mask):
    same = lambda x, **_: x
    stub = types.SimpleNamespace(
      loss_type=loss_type,
      importance_sampling_level=level,
      epsilon_low=low,
      epsilon_high=high,
      args=types.SimpleNamespace(
        delta=delta,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
      ),
      beta=0.0,
      top_entropy_quantile=1.0,
      off_policy_mask_threshold=None,
      use_vllm=False,
      aux_loss_enabled=False,
      _entropy_bonus_enabled=False,
      current_gradient_accumulation_steps=1,
      max_completion_length=_SCALE,
      model=types.SimpleNamespace(training=True),
      accelerator=types.SimpleNamespace(
        num_processes=1, gather=same, reduce=same
      ),
      _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
      _get_per_token_logps_and_entropies=lambda *_, **__: (
        logprobs,
        0 * old_logprobs,
        None,
      ),
    )
    inputs = {
      'prompt_ids': mask[:, :1],
      'prompt_mask': mask[:, :1],
      'completion_ids': mask,
      'completion_mask': mask,
      'advantages': advantages,
      'old_per_token_logps': old_logprobs,
      'num_items_in_batch': mask.sum(),
    }
    return trainer._compute_loss(stub, None, inputs)

  return functools.partial(_by_torch, loss)


def _tunix(algorithm: str, aggregation: str, *, low=0.2, high=0.28, dual=None):
  """grpo_loss_fn with a model whose log-probabilities are those given."""
  module = importlib.import_module(_MODULES['google-tunix'])
  config = types.SimpleNamespace(
    beta=0.0,
    epsilon=low,
    epsilon_high=high,
    epsilon_c=dual,
    loss_algo=algorithm,
    loss_agg_mode=aggregation,
    temperature=1.0,
  )

  def loss(logprobs, old_logprobs, advantages, mask):
    example = types.SimpleNamespace(
      prompt_ids=None,
      completion_ids=None,
      completion_mask=mask,
      advantages=advantages,
      old_per_token_logps=old_logprobs,
      ref_per_token_logps=None,
    )
    outputs = logprobs, logprobs[..., None]
    with (
      mock.patch.object(module.nnx, 'split', lambda _: (None, None)),
      mock.patch.object(
        module.common, 'compute_per_token_logps', lambda *_, **__: outputs
      ),
    ):
      return module.grpo_loss_fn(None, example, config, 0, 1)[0]

  def evaluate(batch: Batch) -> Outcome:
    value, gradient = jax.value_and_grad(loss)(*batch)
    return float(value), np.asarray(gradient)

  return evaluate


_CLIP = {'clip_eps_low': 0.2, 'clip_eps_high': 0.28}
_TIGHT = {'clip_eps_low': 3e-4, 'clip_eps_high': 4e-4}
_WIDE = {'clip_eps_low': 0.4, 'clip_eps_high': 0.4}
_VERL = {'clip_ratio_low': 0.2, 'clip_ratio_high': 0.28}
_VERL_TIGHT = {'clip_ratio_low': 3e-4, 'clip_ratio_high': 4e-4}
_GRPO = functools.partial(_ours, losses.grpo_loss, **_CLIP)
_GSPO = functools.partial(_ours, losses.power_mean_loss, p=0.0, **_TIGHT)
_GSPO_TOKEN = functools.partial(_ours, losses.gspo_token_loss, **_TIGHT)
_SUM = {'aggregation': 'sequence-mean-token-sum'}
_trl_sequence = functools.partial(_trl, level='sequence', low=3e-4, high=4e-4)

# Peer, objective, ours, and theirs; both without their arguments.
_PAIRS: tuple[tuple[str, str, Callable, Callable], ...] = (
    ('verl', 'GRPO', _GRPO,
     lambda: _verl('vanilla', 'seq-mean-token-mean', **_VERL)),
    ('verl', 'GRPO, dual clip 3', lambda: _GRPO(dual_clip=3.),
     lambda: _verl('vanilla', 'seq-mean-token-mean', clip_ratio_c=3., **_VERL)),
    ('verl', 'DAPO', lambda: _GRPO(aggregation='token-mean'),
     lambda: _verl('vanilla', 'token-mean', **_VERL)),
    ('verl', 'Dr. GRPO', lambda: _GRPO(length_scale=_SCALE, **_SUM),
     lambda: _verl('vanilla', 'seq-mean-token-sum-norm', **_VERL)),
    ('verl', 'GSPO', _GSPO,
     lambda: _verl('gspo', 'seq-mean-token-mean', **_VERL_TIGHT)),
    ('verl', 'GSPO-token', _GSPO_TOKEN,
     lambda: _verl('gspo', 'seq-mean-token-mean', **_VERL_TIGHT)),
    ('verl', 'GMPO',
     lambda: _ours(losses.power_mean_loss, p=0., clip='token_log', **_WIDE),
     lambda: _verl('geo_mean', '', clip_ratio_low=.4, clip_ratio_high=.4)),
    ('verl', 'CISPO', lambda: _ours(losses.cispo_loss, **_CLIP),
     lambda: _verl('cispo', 'token-mean', **_VERL)),
    ('verl', 'SAPO', lambda: _ours(losses.sapo_loss),
     lambda: _verl('sapo', 'seq-mean-token-mean')),
    ('trl', 'GRPO', _GRPO, lambda: _trl('grpo')),
    ('trl', 'BNPO', lambda: _GRPO(aggregation='token-mean'),
     lambda: _trl('bnpo')),
    ('trl', 'DAPO', lambda: _GRPO(aggregation='token-mean'),
     lambda: _trl('dapo')),
    ('trl', 'Dr. GRPO', lambda: _GRPO(length_scale=_SCALE, **_SUM),
     lambda: _trl('dr_grpo')),
    ('trl', 'GSPO', _GSPO, lambda: _trl_sequence('grpo')),
    ('trl', 'LUSPO', lambda: _GSPO(**_SUM),
     lambda: _trl_sequence('luspo')),
    ('trl', 'CISPO, ratio at most 1.5', lambda: _ours(
        losses.cispo_loss, clip_eps_low=1., clip_eps_high=.5),
     lambda: _trl('cispo', high=1.5)),
    ('trl', 'SAPO', lambda: _ours(losses.sapo_loss), lambda: _trl('sapo')),
    ('google-tunix', 'GRPO', _GRPO,
     lambda: _tunix('grpo', 'sequence-mean-token-mean')),
    ('google-tunix', 'GRPO, dual clip 3', lambda: _GRPO(dual_clip=3.),
     lambda: _tunix('grpo', 'sequence-mean-token-mean', dual=3.)),
    ('google-tunix', 'DAPO', lambda: _GRPO(aggregation='token-mean'),
     lambda: _tunix('grpo', 'token-mean')),
    ('google-tunix', 'GSPO-token', _GSPO_TOKEN,
     lambda: _tunix('gspo-token', 'sequence-mean-token-mean', low=3e-4,
                    high=4e-4)),
)  # fmt: skip


def _differences(ours, theirs) -> tuple[float, float]:
  """Largest absolute ones over all batches, of loss and of gradient."""
  by_batch = []
  for batch in map(_batch, range(_NUM_BATCHES)):
    (loss, gradient), (their_loss, their_gradient) = ours(batch), theirs(batch)
    by_batch.append(
      (abs(loss - their_loss), np.max(np.abs(gradient - their_gradient)))
    )
  return tuple(np.max(by_batch, axis=0))


def _installed() -> tuple[dict[str, str], dict[str, str]]:
  """Versions of the peers that can be imported; why the others cannot."""
  versions, missing = {}, {}
  for name, module in _MODULES.items():
    try:
      importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
      missing[name] = str(error)
    else:
      versions[name] = metadata.version(name)
  return versions, missing


def main(_) -> None:
  """Compares what is installed."""
  versions, missing = _installed()
  reasons = '; '.join(missing.values())
  if not versions:
    command_line.refuse(f'no other library can be imported: {reasons}')
  if missing:
    print(f'left out: {", ".join(missing)} ({reasons})')
  print(f'{"peer":22}{"objective":26}{"loss":>10}{"gradient":>10}')
  worst = 0.0
  for name, objective, ours, theirs in _PAIRS:
    if name in versions:
      loss, gradient = _differences(ours(), theirs())
      worst = max(worst, loss, gradient)
      print(
        f'{name + " " + versions[name]:22}{objective:26}{loss:10.1e}'
        f'{gradient:10.1e}'
      )
  sys.exit(int(worst > _TOLERANCE))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
