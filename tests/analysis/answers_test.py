"""Pages of answers, filled from reports that stand alone."""

import json
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import answers
from hmpo_jax.analysis import marked
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import report
from hmpo_jax.analysis import rungs
from tests import plan_case
from tests import simulated_plan

_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = ('README.md', 'docs/results.md', 'results/README.md')
_ARMS = {'hmpo': 0.36, 'gspo': 0.3, 'weights_only': 0.33, 'mask_only': 0.31}


class AnswersTest(plan_case.PlanTestCase):
  def setUp(self):
    super().setUp()
    self.results = self.new_folder()

  def _block(self, name, rises, *, seeds=10, **about):
    """Writes the report of a simulated plan as a block of its own."""
    workdir = self.new_folder()
    simulated_plan.write(workdir, rises, seeds, about=about)
    report.write(workdir, self.results / name, draw=False)
    return outcomes.per_seed(records.read(workdir))

  def _part(self, name):
    page = f'a\n<!-- answers: {name} -->\nold\n<!-- end of answers -->\nb\n'
    filled = marked.fill(page, answers.read(self.results))
    self.assertEqual(marked.fill(filled, answers.read(self.results)), filled)
    found = re.fullmatch(
      rf'a\n<!-- answers: {name} -->\n\n(.*)\n\n<!-- end of answers -->\nb\n',
      filled,
      re.DOTALL,
    )
    self.assertIsNotNone(found)
    return found[1]

  def test_holm_acts_over_all_blocks(self):
    self._block('one', _ARMS, family=5)
    self._block('two', _ARMS, family=5)
    lines = self._part('confirmatory').splitlines()
    self.assertLen(lines, 2 + 2 * 2)
    self.assertRegex(
      lines[2],
      r'^\| one \| hmpo - gspo \| area under .*'
      r'\| 0.002 \| 0.010 \| different \|$',
    )
    # The second of equal p-values has the factor 4, and no less than the first.
    self.assertIn('| 0.002 | 0.010 | different |', lines[4])

  def test_what_the_family_of_all_plans_shows_is_said(self):
    # Of equal p-values in two plans Holm's factors are 2 and 1: each plan by
    # itself has 2, which is too many for six seeds.
    about = {'contrasts': self._asked_once(), 'family': 2}
    for name in ('one', 'two'):
      self._block(name, {'hmpo': 0.31, 'gspo': 0.3}, seeds=6, **about)
    table = answers.read(self.results)['one'].contrasts
    self.assertStartsWith(table['verdict'][0], 'equivalent')
    self._block('two', _ARMS, seeds=10, **about)
    lines = self._part('confirmatory').splitlines()
    self.assertEndsWith(
      lines[2], '| 0.031 | 0.031 | different, within the margin |'
    )
    self.assertEndsWith(lines[3], '| 0.002 | 0.004 | different |')

  def test_plans_of_other_families_are_refused(self):
    self._block('one', _ARMS)
    self.assertIn('| p, Holm over 2 |', self._part('confirmatory'))
    self._block('two', _ARMS, family=5)
    with self.assertRaisesRegex(config_lib.ConfigError, r'family is \[2, 5\]'):
      self._part('confirmatory')

  def _asked_once(self):
    return simulated_plan.describe(_ARMS, 1)['contrasts'][:1]

  def test_doses_show_how_sharp_attention_was(self):
    workdir = self.new_folder()
    plan = simulated_plan.write(workdir, _ARMS, seeds=2)
    for run in plan['runs']:
      file = workdir / run['folder'] / 'metrics.jsonl'
      text = file.read_text('utf-8')
      file.write_text(text.replace('"qk/entropy": 1.2,', '"qk/entropy": 1.25,'))
    report.write(workdir, self.results / 'logits', draw=False)
    self.assertRegex(
      self._part('doses'), r'\| sort \| hmpo \| .* \| 1\.250 \| 0 of 2 \|'
    )

  @parameterized.parameters(
    '<!-- answers: doses -->\nprose\n<!-- answers: calm -->\nold\n'
    '<!-- end of answers -->\n',
    '<!-- answers: doses -->\nprose\n',
    'prose\n<!-- end of answers -->\n',
    '<!-- answers:doses -->\nprose\n<!-- end of answers -->\n',
  )
  def test_no_prose_is_lost_to_a_mark_without_its_other(self, page):
    with self.assertRaisesRegex(config_lib.ConfigError, 'marks make'):
      marked.fill(page, {})

  def test_a_folder_of_results_must_be_there(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'no such folder'):
      answers.read(self.results / 'nowhere')

  def test_tables_that_lack_an_outcome_are_refused(self):
    self._block('one', _ARMS, seeds=2)
    file = self.results / 'one/tables/seeds.csv'
    pandas.read_csv(file).drop(columns='area').to_csv(file, index=False)
    with self.assertRaisesRegex(config_lib.ConfigError, 'seeds.csv does not'):
      answers.read(self.results)

  def test_a_difference_is_split_into_weights_and_mask(self):
    seeds = self._block('calm', _ARMS)
    areas = seeds.set_index(['variant', 'seed'])['area']
    rest = (
      areas['hmpo'] - areas['weights_only'] - areas['mask_only'] + areas['gspo']
    ).mean()
    part = self._part('split')
    self.assertIn(
      '| sort | area under the held-out reward | HMPO - GSPO | '
      f'{areas["hmpo"].sub(areas["gspo"]).mean():+.4f} |',
      part,
    )
    self.assertRegex(
      part,
      r'beyond their sum \| '
      + re.escape(f'{rest:+.4f}'.replace('-', '\N{MINUS SIGN}')),
    )

  def test_ladders_are_told_from_their_tables(self):
    rates = {'x1': 1e-3, 'x2': 2e-3}
    self._block(
      'ladder',
      {'hmpo': 0.3, 'gspo': {'x1': 0.3, 'x2': -0.3}},
      tasks=list(rates),
      ladders={'sort': rates},
      contrasts=[],
    )
    part = self._part('margins')
    self.assertIn('| sort | hmpo | 10 |', part)
    self.assertIn(
      '| gspo - hmpo | critical rung, log2 of the learning rate | '
      '\N{MINUS SIGN}1.00 |',
      part,
    )

  def test_what_predicts_drawdowns_is_told_where_it_was_asked(self):
    self._block('one', _ARMS)
    (self.results / 'one/tables/drawdowns.csv').write_text(
      'base,predictor,auc,increment,low,high,warned,lead,false_alarms\n'
      'known,,0.6,,,,0.25,8,0.1\n'
      'known,gap,0.65,0.05,-0.01,0.11,0.5,4,0.1\n',
      'utf-8',
    )
    lines = self._part('drawdowns').splitlines()
    dash = '\N{EN DASH}'
    self.assertEqual(
      lines[2:],
      [
        f'| one | known |  | 0.600 | {dash} | {dash} | 25% | 10% |',
        '| one | known | gap | 0.650 | +0.050 | \N{MINUS SIGN}0.010 to +0.110 '
        '| 50% | 10% |',
      ],
    )

  def test_what_is_missing_is_said(self):
    for name in answers.PARTS:
      self.assertRegex(self._part(name), r'is in yet\.$|is not in yet\.$')
    with self.assertRaisesRegex(config_lib.ConfigError, 'there are confirm'):
      self._part('nothing')

  def test_a_block_stands_alone(self):
    seeds = self._block('one', _ARMS)
    folder = self.results / 'one'
    self.assertTrue((folder / 'report.md').exists())
    about = json.loads((folder / 'plan.json').read_text('utf-8'))
    block = answers.read(self.results)['one']
    self.assertEqual(block.plan.about['name'], about['name'])
    pandas.testing.assert_series_equal(
      block.seeds['area'], seeds['area'], rtol=1e-5
    )


class CommittedTest(absltest.TestCase):
  def test_pages_hold_what_the_committed_tables_say(self):
    blocks = answers.read(_ROOT / 'results')
    for name in _PAGES:
      page = (_ROOT / name).read_text(encoding='utf-8')
      self.assertEqual(marked.fill(page, blocks), page, name)

  def test_the_committed_blocks_are_plans_of_the_repository(self):
    for name, block in answers.read(_ROOT / 'results').items():
      # What stands behind a - is the argument of its configuration.
      config = block.plan.about['name'].partition('-')[0]
      self.assertTrue((_ROOT / 'configs' / f'{config}.py').exists(), name)
      for ladder in block.plan.about['ladders']:
        table = rungs.per_seed(block.plan, block.seeds)
        self.assertIn(ladder, set(table['ladder']))


if __name__ == '__main__':
  absltest.main()
