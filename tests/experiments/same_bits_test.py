"""The oracle of refactors sees a constant that changed, and nothing else."""

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import same_bits

_ROOT = pathlib.Path(__file__).parents[2]
_CONSTANT = 'b2=0.95'  # of the warm start, in whose program nothing else is


class TreesTest(absltest.TestCase):
  """One case in this tree, and in a copy of it whose code differs."""

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self._folder = pathlib.Path(folder.name)
    self._said = io.StringIO()
    self.enterContext(contextlib.redirect_stdout(self._said))

  def _copy(self):
    tree = self._folder / 'tree'
    for name in ('hmpo_jax', 'experiments'):
      shutil.copytree(_ROOT / name, tree / name)
    return tree

  def _run(self, tree, name):
    same_bits.run_tree(tree, self._folder / name, ['harmonic'])
    return self._folder / name

  def test_equal_trees_are_green_and_a_changed_constant_is_red(self):
    tree = self._copy()
    here, equal = self._run(_ROOT, 'here'), self._run(tree, 'equal')
    self.assertFalse(same_bits.report(equal, here, []), self._said.getvalue())
    file = tree / 'hmpo_jax' / 'training' / 'warm_start.py'
    text = file.read_text(encoding='utf-8')
    self.assertIn(_CONSTANT, text)
    file.write_text(text.replace(_CONSTANT, 'b2=0.951'), encoding='utf-8')
    changed = self._run(tree, 'changed')
    self.assertTrue(same_bits.report(changed, here, []))
    said = self._said.getvalue()
    self.assertRegex(said, r'harmonic: metrics.jsonl, record 1, \S+: ')
    self.assertRegex(said, r"\n  step 3\['params'\].* differs in 1 of 1 runs")
    for root in (_ROOT, tree):
      self.assertIn(f'ran {root} with {root}/hmpo_jax/__init__.py', said)

  def test_a_package_of_another_tree_is_refused(self):
    # As an editable install would have it: both trees would run the same code.
    tree = self._folder / 'empty'
    tree.mkdir()
    with mock.patch.dict(os.environ, PYTHONPATH=str(_ROOT)):
      with self.assertRaisesRegex(
        same_bits.Failed, f'empty: Python imports {_ROOT}'
      ):
        self._run(tree, 'empty_run')


_RECORD = '{"step": 1, "ratio/mean": 0.5, "agm/gap": 0.1}\n'


class DifferencesTest(parameterized.TestCase):
  def _differences(self, name, there, here, excepted=()):
    with tempfile.TemporaryDirectory() as folder:
      files = [pathlib.Path(folder) / side / name for side in ('there', 'here')]
      for file, text in zip(files, (there, here)):
        file.parent.mkdir()
        file.write_text(text, encoding='utf-8')
      return list(same_bits.differences(*files, excepted))

  @parameterized.parameters(
    (
      _RECORD.replace('0.5', '0.50'),
      'ratio/mean',
      'metrics.jsonl, record 1, ratio/mean: 0.5 there, 0.50 here',
    ),
    (
      _RECORD.replace('"agm/gap": 0.1', '"agm/gap": 0.1, "new": [1]'),
      'new',
      r"metrics.jsonl, record 1, new: absent there, \['1'\] here",
    ),
    (
      _RECORD.replace(', "agm/gap": 0.1', ''),
      'agm/gap',
      'metrics.jsonl, record 1, agm/gap: 0.1 there, absent here',
    ),
    (
      '{"ratio/mean": 0.5, "step": 1, "agm/gap": 0.1}\n',
      'order',
      'metrics.jsonl, record 1: keys in another order',
    ),
    (_RECORD * 2, 'metrics.jsonl', 'has 1 records there and 2 here'),
  )
  def test_the_first_is_named(self, here, key, text):
    ((found, said),) = self._differences('metrics.jsonl', _RECORD, here)
    self.assertEqual(found, key)
    self.assertRegex(said, text)

  @parameterized.parameters('agm/gap', 'agm/*', '*gap')
  def test_an_exception_may_differ_or_vanish(self, pattern):
    for here in (
      _RECORD.replace('0.1', '7'),
      _RECORD.replace(', "agm/gap": 0.1', ''),
    ):
      self.assertEmpty(
        self._differences('metrics.jsonl', _RECORD, here, [pattern])
      )
      self.assertLen(
        self._differences('metrics.jsonl', _RECORD, here, ['ratio/*']), 1
      )

  def test_tables_are_compared_cell_by_cell(self):
    found = self._differences(
      'metrics.csv', 'step,a,b\n1,2,3\n2,4,5\n', 'step,a,b\n1,2,3\n2,4,6\n'
    )
    self.assertEqual(
      found, [('b', 'metrics.csv, record 2, b: 5 there, 6 here')]
    )


if __name__ == '__main__':
  absltest.main()
