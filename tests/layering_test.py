"""Who may import whom, and who may touch the disk."""

import ast
import pathlib
import re
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parent.parent
_LAYERS = 'kernels ops base optim config model tasks training run analysis plan'
_ORDER = _LAYERS.split()
_ARRAYS_MAY_IMPORT = {'jax', 'chex', 'hmpo_jax'} | set(sys.stdlib_module_names)
_ON_DISK = re.compile(
  'run|analysis|plan|config/(files|lines|replayed)|tasks/(host_|prompt_file)'
)


def _imports(file):
  """Full names of the modules that a file imports."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


class LayeringTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    package = _ROOT / 'hmpo_jax'
    self._files = {
      str(file.relative_to(package).with_suffix('')): set(_imports(file))
      for file in package.rglob('*.py')
      if file != package / '__init__.py'
    }
    self.assertGreater(len(self._files), 80)

  def test_nothing_imports_to_its_right(self):
    for file, imported in self._files.items():
      place = _ORDER.index(file.split('/')[0])
      for name in imported:
        root, *inner = name.split('.')
        is_right = root == 'hmpo_jax' and _ORDER.index(inner[0]) > place
        self.assertFalse(is_right, f'{file}: {name}')

  def test_kernels_and_ops_import_jax_and_chex_only(self):
    for file, imported in self._files.items():
      if file.startswith(tuple(_ORDER[:2])):
        roots = {name.split('.')[0] for name in imported}
        self.assertLessEqual(roots, _ARRAYS_MAY_IMPORT, file)

  def test_configs_import_the_package_only(self):
    for file in (_ROOT / 'configs').glob('*.py'):
      self.assertEqual({n.split('.')[0] for n in _imports(file)}, {'hmpo_jax'})

  def test_only_the_shell_touches_the_disk(self):
    for file, imported in self._files.items():
      if not _ON_DISK.match(file):
        self.assertFalse(imported & {'os', 'pathlib', 'shutil'}, file)
