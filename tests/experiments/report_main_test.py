"""The program that reports a plan, from end to end."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

from tests import plan_case

_ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = _ROOT / 'experiments' / 'report.py'
# As if pandas were not installed.
_BARE = f"""
import runpy, sys
sys.modules['pandas'] = None
sys.argv = ['report.py', *sys.argv[1:]]
runpy.run_path({str(_PROGRAM)!r}, run_name='__main__')
"""


def _main(*arguments, stdout=subprocess.PIPE):
  path = [str(_ROOT), os.environ.get('PYTHONPATH', '')]
  return subprocess.run(
    [sys.executable, *arguments],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, path))},
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )


class ProgramTest(plan_case.PlanTestCase):
  def test_writes_the_report_where_it_is_asked_to(self):
    self.plan({'hmpo': 0.3, 'gspo': 0.3}, seeds=2)
    out = self.folder / 'elsewhere'
    (out / 'tables').mkdir(parents=True)
    (out / 'tables' / 'mine.csv').touch()
    result = _main(
      _PROGRAM, f'--workdir={self.folder}', f'--out={out}', '--nofigures'
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout, f'{out / "report.md"}\n')
    self.assertTrue((out / 'tables' / 'seeds.csv').exists())
    self.assertTrue((out / 'tables' / 'mine.csv').exists())
    self.assertFalse((self.folder / 'report').exists())

  def test_reader_that_goes_away_is_no_fault(self):
    self.plan({'hmpo': 0.3}, seeds=1)
    reader, writer = os.pipe()
    os.close(reader)
    result = _main(
      _PROGRAM, f'--workdir={self.folder}', '--nofigures', stdout=writer
    )
    os.close(writer)
    self.assertEqual((result.returncode, result.stderr), (0, ''))

  def test_a_folder_without_a_plan_ends_in_one_line(self):
    result = _main(_PROGRAM, f'--workdir={self.folder}')
    self.assertEqual(result.returncode, 2)
    self.assertRegex(result.stderr, r'^error: .*plan.json is not a plan')
    self.assertEqual(result.stderr.count('\n'), 1)

  def test_what_is_not_installed_is_named_in_one_line(self):
    result = _main('-c', _BARE, f'--workdir={self.folder}')
    self.assertEqual(result.returncode, 2)
    self.assertEqual(
      result.stderr,
      "error: pandas not installed: pip install -e '.[plot]' first\n",
    )


if __name__ == '__main__':
  absltest.main()
