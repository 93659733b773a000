"""Who may import whom: nothing imports to its right."""

import ast
import pathlib
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parent.parent
_ORDER = ('kernels', 'base', 'optim', 'config_rules', 'config', 'partition',
          'config_file', 'lines', 'answers', 'host_worker', 'host_function',
          'model', 'rollout', 'tasks', 'policy', 'warm_start', 'update',
          'mechanism', 'clip_drift', 'step_metrics', 'learner', 'runs',
          'trajectory', 'jax_settings', 'control', 'controllers', 'programs',
          'checkpoint', 'metric_table', 'board', 'measured', 'metrics',
          'telemetry', 'progress', 'interruption', 'overshoot', 'growth',
          'run_folder', 'summary', 'first_params', 'open_run', 'trainer',
          'group', 'rerun', 'oracle', 'analysis', 'bench', 'compile_cache',
          'command_line', 'plan')
_KERNELS_MAY_IMPORT = {'jax', 'chex', 'hmpo_jax'} | set(sys.stdlib_module_names)


def _imports(file):
  """Full names of the modules that a file imports."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _place(name):
  return _ORDER.index(name.split('.')[1])


class LayeringTest(absltest.TestCase):

  def test_nothing_imports_to_its_right(self):
    edges = 0
    for file in sorted((_ROOT / 'hmpo_jax').rglob('*.py')):
      name = '.'.join(file.relative_to(_ROOT).with_suffix('').parts)
      if name == 'hmpo_jax.__init__':
        continue
      for imported in _imports(file):
        if imported.startswith('hmpo_jax.'):
          edges += 1
          self.assertLessEqual(
              _place(imported), _place(name), f'{name} imports {imported}')
    self.assertGreater(edges, 20)

  def test_kernels_import_jax_and_chex_only(self):
    for file in (_ROOT / 'hmpo_jax' / 'kernels').glob('*.py'):
      for imported in _imports(file):
        self.assertIn(imported.split('.')[0], _KERNELS_MAY_IMPORT)
        if imported.startswith('hmpo_jax'):
          self.assertStartsWith(imported, 'hmpo_jax.kernels')

  def test_configs_import_the_package_only(self):
    for file in (_ROOT / 'configs').glob('*.py'):
      for imported in _imports(file):
        self.assertStartsWith(imported, 'hmpo_jax')

  def test_only_the_shell_touches_the_disk(self):
    shell = {
        'answers.py', 'board.py', 'checkpoint.py', 'command_line.py',
        'comparison.py', 'compile_cache.py', 'config_file.py', 'design.py',
        'first_params.py', 'folder.py', 'group.py', 'host_function.py',
        'host_worker.py', 'interruption.py', 'launch.py', 'lines.py',
        'metrics.py', 'open_run.py', 'own_peer.py', 'probe.py', 'profile.py',
        'prompt_file.py', 'records.py', 'report.py', 'rerun.py',
        'run_folder.py', 'states.py', 'summary.py', 'trainer.py',
        'trajectory.py', 'tuning.py', 'worker.py'
    }
    for file in (_ROOT / 'hmpo_jax').rglob('*.py'):
      if file.name not in shell:
        modules = {name.split('.')[0] for name in _imports(file)}
        self.assertFalse(modules & {'os', 'pathlib', 'shutil'}, file)


if __name__ == '__main__':
  absltest.main()
