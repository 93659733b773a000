"""A row and a group for every metric, and the rows in the documentation."""

import functools
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp

from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.run import records as run_records
from hmpo_jax.run import tensorboard
from hmpo_jax.training import learner
from hmpo_jax.training import metric_table
from hmpo_jax.training import policy

_DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'telemetry.md'


@functools.cache
def _names_of_a_default_run() -> set[str]:
  """Names of everything that a default run writes, without running it."""
  config = config_lib.default_config()
  config.model.attention_entropy = True
  static = traced.static(config)
  hparams = traced.hparams(config)

  def run(key):
    params = transformer.init(policy.make_model(static), key)
    state = learner.init(static, hparams, params, key)
    return (
      learner.train_step(static, state, hparams, jnp.bool_(True))[1],
      learner.evaluate(
        static,
        params,
        jnp.zeros((8, policy.make_task(static).prompt_len), jnp.int32),
      ),
    )

  step, evaluation = jax.eval_shape(run, jax.random.key(0))
  return {
    *step,
    *evaluation,
    'eval/step',
    'total/tokens',
    'total/episodes',
    run_records.NONFINITE,
    'step_s',
    'eval_s',
    'tokens_per_s',
  }


class MetricTableTest(absltest.TestCase):
  def test_every_metric_of_a_default_run_has_a_row_and_a_group(self):
    for name in _names_of_a_default_run():
      if name.startswith('sample/'):
        continue
      groups = [
        group
        for group, starts in tensorboard.GROUPS.items()
        if name.startswith(starts)
      ]
      self.assertLen(groups, 1, name)
      if not name.startswith('histogram/'):
        self.assertNotEmpty(metric_table.describe(name), name)

  def test_every_row_is_of_some_metric(self):
    # Those of options that a default run has off.
    optional = {
      'reward/kl',
      'kl/reference',
      'kl/wide_gap_frac',
      'rollout/kept_mass',
      'control/learning_rate',
      'control/epsilon',
      'control/p',
      'control/agm_iterations',
    }
    known = _names_of_a_default_run() | optional
    for rows in metric_table.ROWS.values():
      for row in rows:
        for name in row.names.split():
          if '*' not in name:
            self.assertIn(name, known)

  def test_documentation_shows_the_rows(self):
    text = _DOCS.read_text(encoding='utf-8')
    for part in metric_table.ROWS:
      self.assertIn(metric_table.markdown(part), text)

  def test_description_is_a_sentence(self):
    self.assertEqual(
      metric_table.describe('skipped/loss')[:38],
      'Updates skipped, by cause: `reward`, `',
    )
    self.assertEqual(
      metric_table.describe('loss/live_frac'),
      'Rows that pass a gradient. Unit: share.',
    )
    self.assertEqual(metric_table.describe('no/such'), '')


if __name__ == '__main__':
  absltest.main()
