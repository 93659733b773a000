"""A row for every metric, of known words, which documents show as it is."""

import fnmatch
import functools
import importlib.util
import itertools
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import measures
from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.run import records as run_records
from hmpo_jax.run import telemetry
from hmpo_jax.run import tensorboard
from hmpo_jax.training import learner
from hmpo_jax.training import metric_table
from hmpo_jax.training import policy
from hmpo_jax.training.metric_rows import row as row_lib

_DOCS = pathlib.Path(__file__).parents[2] / 'docs'
# What a word of a row can be.
_WORDS = {
  'reduce': {'mean', 'max', 'min', 'sum', 'mean_of_all', 'sum_of_all'},
  'group': set(tensorboard.GROUPS),
  'board': {'scalar', 'histogram', 'quiet', '-'},
  'stamp': {'eval/step', 'mechanism/step', '-'},
  'needs': {'rows', 'signal', 'rows+signal', '-'},
  'bounds': set(row_lib.BOUNDS),
}


def _rows():
  return itertools.chain(*metric_table.ROWS.values())


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
      self.assertNotEmpty(metric_table.find(name).names, name)
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
    # Of controllers, and of TensorBoard.
    optional |= {*telemetry.schema()['properties'], 'qk/tau', 'qk/monitor_tau'}
    known = _names_of_a_default_run() | optional
    for row in _rows():
      for name in row.names.split():
        if '*' not in name:
          self.assertIn(name, known)

  def test_a_row_has_a_known_word_for_each_name_or_one_for_all(self):
    for row in _rows():
      for field, known in _WORDS.items():
        words = getattr(row, field).split()
        self.assertIn(len(words), (0, 1, len(row.names.split())), row.names)
        self.assertContainsSubset(words, known)

  def test_words_are_those_of_the_name(self):
    smallest, mean = map(metric_table.find, ('ratio/min', 'ratio/mean'))
    self.assertEqual((smallest.reduce, mean.reduce), ('min', 'mean'))
    share, held_out = map(metric_table.find, ('reward/share', 'eval/share'))
    self.assertEqual((share.stamp, held_out.stamp), ('', 'eval/step'))
    self.assertEqual(metric_table.find('no/such').names, '')

  def test_bounds_are_of_the_row_or_of_its_unit(self):
    for name, expected in (
      ('ratio/clamped_frac', (0.0, 1.0)),
      ('ratio/mean', (0.0, float('inf'))),
      ('token_weight/max', (0.0, 1.0)),
      ('update/cosine', (-1.0, 1.0)),
      ('qk/max_logit', (-float('inf'), float('inf'))),
    ):
      self.assertEqual(metric_table.bounds(name), expected, name)

  def test_reports_show_metrics_of_the_row_by_known_reductions(self):
    columns = {measure.column for measure in measures.MEASURES}
    for row in _rows():
      for column, (label, form, *after) in row.report.items():
        key, reduction = column.split(':')
        self.assertTrue(
          any(fnmatch.fnmatchcase(key, name) for name in row.names.split()), key
        )
        self.assertIn(reduction, measures.REDUCTIONS)
        self.assertIn(row.section, measures.SECTIONS)
        self.assertNotEmpty(label)
        self.assertNotEmpty(format(0.5, form))
        self.assertContainsSubset(after, columns)

  def test_documentation_shows_the_rows(self):
    spec = importlib.util.spec_from_file_location(
      'metric_tables', _DOCS / 'metric_tables.py'
    )
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.PAGE.read_text(encoding='utf-8')
    self.assertEqual(
      text, tables.with_tables(text), 'run python docs/metric_tables.py'
    )
    for part in metric_table.DOCUMENTED:
      self.assertIn(metric_table.markdown(part), text)

  def test_schema_has_the_units_of_the_metrics(self):
    for name, field in telemetry.schema()['properties'].items():
      unit = field['description'].rpartition('Unit: ')[2].split('.')[0]
      row = metric_table.find(name)
      if '/' in name and 'Unit: ' in field['description']:
        units = row.unit.split(', ')
        index = row.names.split().index(name) if len(units) > 1 else 0
        self.assertEqual(unit, units[index] or 'none', name)

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
