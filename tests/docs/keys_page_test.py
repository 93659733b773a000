"""The page of keys is that of the table."""

import importlib.util
import pathlib

from absl.testing import absltest

_FILE = pathlib.Path(__file__).parents[2] / 'docs' / 'keys_page.py'


def _module():
  spec = importlib.util.spec_from_file_location('keys_page', _FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


keys_page = _module()


class KeysPageTest(absltest.TestCase):
  def test_the_page_is_that_of_the_table(self):
    self.assertEqual(
      keys_page.PAGE.read_text(encoding='utf-8'),
      keys_page.text(),
      'run python docs/keys_page.py',
    )

  def test_a_row_is_a_line_of_five_cells(self):
    lines = keys_page.text().splitlines()
    self.assertIn(
      '| `seed` | `0` | from 0 to 2**31 - 1 | loop '
      '| decides parameters, prompts and sampling |',
      lines,
    )
    [line] = [line for line in lines if line.startswith('| `exponent.normal')]
    self.assertIn(r'\|dJ/dp\|', line)
    self.assertEqual(line.replace(r'\|', '').count('|'), 6)


if __name__ == '__main__':
  absltest.main()
