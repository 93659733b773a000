"""The pages of the API say what is in a module without the site, too."""

import importlib.util
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

_FILE = pathlib.Path(__file__).parents[2] / 'docs' / 'api_tables.py'


def _module():
  spec = importlib.util.spec_from_file_location('api_tables', _FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


api_tables = _module()


class ApiPagesTest(parameterized.TestCase):
  @parameterized.parameters(*(page.name for page in api_tables.PAGES))
  def test_tables_are_those_of_the_modules(self, name):
    text = (_FILE.parent / 'api' / name).read_text(encoding='utf-8')
    self.assertEqual(
      text, api_tables.with_tables(text), 'run python docs/api_tables.py'
    )

  def test_a_table_has_the_first_lines_of_the_docstrings(self):
    text = 'Before.\n\n::: hmpo_jax.kernels.agm\n\nAfter.\n'
    made = api_tables.with_tables(text)
    self.assertIn('| `metrics` | The three classical means, ', made)
    self.assertNotIn('`_', made)
    self.assertStartsWith(made, 'Before.\n\n**`hmpo_jax.kernels.agm`** ')
    self.assertEndsWith(made, '|\n\n::: hmpo_jax.kernels.agm\n\nAfter.\n')
    self.assertEqual(made, api_tables.with_tables(made))


if __name__ == '__main__':
  absltest.main()
