"""What `import hmpo_jax` offers."""

import ast
import inspect
import pathlib
import subprocess
import sys

from absl.testing import absltest

import hmpo_jax

_FILE = pathlib.Path(hmpo_jax.__file__)


class PublicNamesTest(absltest.TestCase):
  def test_each_is_the_function_of_its_module(self):
    for name in hmpo_jax.__all__:
      function = getattr(hmpo_jax, name)
      self.assertTrue(inspect.isfunction(function), name)
      self.assertEqual(function.__name__, name)
      self.assertIn(name, dir(hmpo_jax))

  def test_type_checkers_see_the_same_names(self):
    tree = ast.parse(_FILE.read_text(encoding='utf-8'))
    for_types = {
      alias.name: node.module
      for node in ast.walk(tree)
      if isinstance(node, ast.ImportFrom) and node.module != 'typing'
      for alias in node.names
    }
    self.assertEqual(set(for_types), set(hmpo_jax.__all__))
    for name, module in for_types.items():
      self.assertIs(getattr(hmpo_jax, name), getattr(sys.modules[module], name))

  def test_other_names_are_refused(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'power_mean'"):
      getattr(hmpo_jax, 'power_mean')

  def test_importing_the_package_imports_no_jax(self):
    code = 'import hmpo_jax, sys; sys.exit("jax" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


if __name__ == '__main__':
  absltest.main()
