"""Traces by hand, and one of a program that runs here."""

import gzip
import json
import pathlib
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp

from experiments.bench import profile


@jax.jit
def _program(x):
  double = lambda y, _: (jnp.tanh(y @ y), None)
  return jax.lax.scan(double, x, length=3)[0]


def _event(name, start, duration, thread=1, **about):
  """An operation, in microseconds."""
  return {
    'ph': 'X',
    'pid': 7,
    'tid': thread,
    'ts': start,
    'dur': duration,
    'name': name,
    'args': about,
  }


def _cpu(name, start, duration, thread=1):
  return _event(name, start, duration, thread, hlo_op=name, hlo_module='jit_f')


def _thread(thread, name):
  return {
    'ph': 'M',
    'pid': 7,
    'tid': thread,
    'name': 'thread_name',
    'args': {'name': name},
  }


class ProfileTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _write(self, events, run='2026_01_01_00_00_00', host='a'):
    folder = self.folder / 'plugins' / 'profile' / run
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(
      folder / f'{host}.trace.json.gz', 'wt', encoding='utf-8'
    ) as file:
      json.dump({'traceEvents': [*events, {}]}, file)

  def test_finds_the_product_of_a_program(self):
    x = jnp.ones((256, 256)) / 256
    _program(x).block_until_ready()
    with profile.trace(self.folder):
      for _ in range(2):
        _program(x).block_until_ready()
    (run,) = (self.folder / 'plugins' / 'profile').iterdir()
    self.assertLen(list(run.glob('*.xplane.pb')), 1)
    operations = profile.slowest(self.folder)
    # Two calls, of three products each; a fusion on some versions of XLA.
    products = [
      operation
      for operation in operations
      if operation.calls == 6
      and ('dot' in operation.name or 'fusion' in operation.name)
    ]
    self.assertNotEmpty(products, operations)
    self.assertStartsWith(products[0].name, 'jit__program/')
    self.assertGreater(products[0].milliseconds, 0)

  def test_an_operation_is_counted_without_those_within(self):
    self._write(
      [
        _cpu('dot', 0, 300),  # starts with the loop
        _cpu('while', 0, 1000),
        _cpu('call', 300, 500),
        _cpu('dot', 400, 400),  # ends with the call
        _cpu('tail', 1000, 40),  # follows at once
        _cpu('dot', 100, 50, thread=2),
        _event('ThreadpoolListener', 100, 500),
        _event('python', 0, 9000, thread=3),
      ]
    )
    self.assertEqual(
      profile.slowest(self.folder),
      [
        ('jit_f/dot', 3, 0.75),
        ('jit_f/while', 1, 0.2),
        ('jit_f/call', 1, 0.1),
        ('jit_f/tail', 1, 0.04),
      ],
    )
    self.assertLen(profile.slowest(self.folder, 2), 2)

  def test_thread_of_operations_goes_before_kernels(self):
    self._write(
      [
        _thread(1, 'XLA Ops'),
        _thread(2, 'Stream #13(Compute)'),
        _thread(3, 'XLA Modules'),
        _event('fusion.1', 0, 2000, thread=1),
        _event('kernel', 0, 1900, thread=2, hlo_op='fusion.1'),
        _event('jit_f', 0, 3000, thread=3),
      ]
    )
    self.assertEqual(profile.slowest(self.folder), [('fusion.1', 1, 2.0)])

  def test_kernels_go_before_the_host(self):
    process = {'ph': 'M', 'pid': 8, 'name': 'process_name'}
    kernel = _cpu('fusion.1', 0, 2000) | {'pid': 8, 'name': 'kernel_3'}
    self._write(
      [
        process | {'args': {'name': '/device:GPU:0'}},
        process | {'pid': 7, 'args': {'name': '/host:CPU'}},
        kernel,
        _cpu('launch', 0, 10),
      ]
    )
    self.assertEqual(profile.slowest(self.folder), [('jit_f/fusion.1', 1, 2.0)])

  def test_newest_trace_of_all_hosts(self):
    self._write([_cpu('old', 0, 1)])
    for host in 'ab':
      self._write([_cpu('new', 0, 500)], '2026_01_01_00_00_01', host)
    self.assertEqual(profile.slowest(self.folder), [('jit_f/new', 2, 1.0)])

  def test_trace_without_operations(self):
    self._write([])
    self.assertEmpty(profile.slowest(self.folder))

  def test_folder_without_a_trace(self):
    with self.assertRaisesRegex(FileNotFoundError, 'holds no plugins/profile'):
      profile.slowest(self.folder)


if __name__ == '__main__':
  absltest.main()
