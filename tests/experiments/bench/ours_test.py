"""Our step on a workload: it is that of the peers."""

import functools
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import ours
from experiments.bench import own_peer
from experiments.bench import peer_loop
from experiments.bench import peers
from experiments.bench import workloads
from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import learner
from hmpo_jax.training import policy

TINY = workloads.Workload(
  name='tiny',
  num_layers=1,
  embed_dim=4,
  num_heads=2,
  head_dim=2,
  mlp_dim=4,
  vocab_size=12,
  num_prompts=2,
  group_size=3,
  prompt_len=4,
  response_len=5,
)

ANSWER = '{"seconds": 3.0, "rollout_s": 2.0, "rest_s": 1.0, "peak_mb": 40.0}'


def process(num_params, answer=ANSWER):
  """Path of a program that says this of every step that it is asked for."""
  path = pathlib.Path(tempfile.mkdtemp()) / 'python'
  path.write_text(
    f'#!/bin/sh\necho \'{{"num_params": {num_params}}}\'\n'
    f"while read line; do echo '{answer}'; done\n",
    encoding='utf-8',
  )
  path.chmod(0o755)
  return str(path)


def _train_step(static, state, hparams, measure):
  """Samples, and learns nothing: the real step takes long to compile."""
  del measure
  rollout = learner.collect(static, state, hparams)
  return state._replace(step=state.step + 1), {
    'rollout/length_mean': jnp.mean(jnp.sum(rollout.mask, 1))
  }


class OursTest(absltest.TestCase):
  def test_configuration_is_the_recipe(self):
    recipe = workloads.RECIPE
    with ours.configured(TINY) as config:
      config_lib.validate(config)
    self.assertEqual(
      (config.loss.name, config.loss.p, config.loss.clip),
      ('power_mean', 0, 'sequence'),
    )
    self.assertEqual(
      (config.loss.clip_eps_low, config.loss.clip_eps_high),
      (recipe.clip_epsilon,) * 2,
    )
    self.assertEqual(
      (
        config.train.num_epochs,
        config.train.num_minibatches,
        config.train.max_grad_norm,
      ),
      (1, 1, recipe.max_grad_norm),
    )
    self.assertEqual(
      (
        config.optim.name,
        config.optim.learning_rate,
        config.optim.weight_decay,
      ),
      ('adamw', recipe.learning_rate, recipe.weight_decay),
    )
    self.assertEqual(config.rollout.old_logprobs, 'sampler')
    self.assertEqual(config.rollout.temperature, recipe.temperature)
    self.assertEqual(
      (config.model.rope_theta, config.model.norm_eps),
      (recipe.rope_base, recipe.norm_epsilon),
    )

  def test_policy_has_the_parameters_of_every_workload(self):
    grouped = TINY._replace(num_kv_heads=1)
    for workload in TINY, grouped, *workloads.WORKLOADS.values():
      shapes = {
        'prompt_len': 2,
        'response_len': 2,
        'num_microbatches': 1,
      }  # which the policy knows nothing of
      with ours.configured(workload._replace(**shapes)) as config:
        static = traced.static(config)
        model = policy.make_model(static)
      params = jax.eval_shape(
        functools.partial(transformer.init, model), jax.random.key(0)
      )
      count = sum(x.size for x in jax.tree.leaves(params))
      self.assertEqual(count, workload.num_params, workload.name)
      self.assertEqual(static.model.dtype, workload.dtype)

  def test_reward_is_the_share_of_the_token(self):
    with ours.configured(TINY) as config:
      task = policy.make_task(traced.static(config))
    prompts = jnp.stack([task.draw(jax.random.key(i)) for i in range(3)])
    self.assertEqual(prompts.shape, (3, 4))
    self.assertGreater(int(jnp.min(prompts)), 2)
    tokens = jnp.array([[7, 7, 7, 7, 7], [7, 1, 2, 7, 3], [0, 0, 0, 0, 0]])
    scores = task_lib.score(task, prompts, tokens, jnp.ones((3, 5), bool))
    np.testing.assert_allclose(scores.reward, [1, 0.4, 0], rtol=1e-6)

  def test_changes_and_unknown_ones(self):
    with ours.configured(TINY, rollout__bucket=3) as config:
      self.assertEqual(config.rollout.bucket, 3)
    with self.assertRaises(config_lib.ConfigError):
      with ours.configured(TINY, rollout__bucket=-1):
        pass

  def test_every_response_has_its_full_length_and_the_state_goes_on(self):
    sink, requests = mock.Mock(), ['step\n'] * 2
    fields = TINY._asdict() | workloads.RECIPE._asdict() | {'core': None}
    workload = mock.Mock(spec_set=list(fields), **fields)
    steps = peer_loop.Steps(workload, sink)
    with mock.patch.object(learner, 'train_step', _train_step):
      with mock.patch.object(peer_loop.sys, 'stdin', requests):
        own_peer.train(workload, steps)
    said = [
      json.loads(call.args[0])
      for call in sink.write.call_args_list
      if call.args[0].strip()
    ]
    self.assertEqual(said[0], {'num_params': TINY.num_params})
    self.assertLen(said, 3)
    for took in said[1:]:
      self.assertGreater(took['seconds'], 0)
      self.assertGreater(took['peak_mb'], 10)

  def test_shorter_responses_are_an_error(self):
    short = lambda *args: (args[1], {'rollout/length_mean': jnp.float32(4.9)})
    fields = TINY._asdict() | workloads.RECIPE._asdict() | {'core': None}
    workload = mock.Mock(spec_set=list(fields), **fields)
    steps = peer_loop.Steps(workload, mock.Mock())
    with mock.patch.object(learner, 'train_step', short):
      with mock.patch.object(peer_loop.sys, 'stdin', ['step\n']):
        with self.assertRaisesRegex(ValueError, 'must have'):
          own_peer.train(workload, steps)

  def test_process_imports_what_this_one_does(self):
    about = peers.describe(peers.OWN, sys.executable)
    self.assertEqual(about['jax'], jax.__version__)


if __name__ == '__main__':
  absltest.main()
