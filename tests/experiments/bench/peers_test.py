"""Other projects' steps, with scripts in the place of theirs."""

import ast
import io
import json
import os
import pathlib
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.bench import peer_loop
from experiments.bench import peers
from experiments.bench import trl_peer
from experiments.bench import tunix_peer
from experiments.bench import workloads

_TINY = workloads.Workload(
  name='tiny',
  num_layers=1,
  embed_dim=2,
  num_heads=1,
  head_dim=2,
  mlp_dim=3,
  vocab_size=12,
  num_prompts=1,
  group_size=2,
  prompt_len=3,
  response_len=4,
)

# A peer whose step takes what it samples from its prompts, and some memory.
_PEER = """
import tempfile
import time

print('libraries talk')


def describe():
  return {'fake': '1.2'}


def train(workload, steps):
  count = workload.num_prompts * workload.group_size
  tempfile.mkdtemp()

  def generate(length):
    time.sleep(0.02)
    return [(workload.prompt_len, length)] * count

  generate = steps.rollout(generate, lambda result: result)
  for i, _ in enumerate(steps.serve(PARAMS)):
    len(b'1' * (40_000_000 if i else 1))  # and freed
    time.sleep(0.01)
    generate(workload.response_len - (i == 2))
    print('libraries talk')
"""
_COUNT = f'{{"num_params": {_TINY.num_params}}}'


def _interpreter(script):
  """Path of a program that runs a shell script, whatever it is asked."""
  path = pathlib.Path(tempfile.mkdtemp()) / 'python'
  path.write_text(f'#!/bin/sh\n{script}\n', encoding='utf-8')
  os.chmod(path, 0o755)
  return str(path)


def _peer(text):
  """Puts a script in the place of TRL's."""
  path = pathlib.Path(tempfile.mkdtemp()) / 'peer.py'
  path.write_text(text, encoding='utf-8')
  return mock.patch.dict(peers._SCRIPTS, trl=str(path))


class WorkloadsTest(parameterized.TestCase):
  # The first is what other implementations of this policy count.
  @parameterized.parameters(
    ('W-small', 1_057_920), ('W-long', 1_057_920), ('W-runs', 135_488)
  )
  def test_number_of_parameters(self, name, count):
    workload = workloads.WORKLOADS[name]
    self.assertEqual((workload.name, workload.num_params), (name, count))

  def test_number_of_parameters_by_hand(self):
    # 4 projections 2x2, 3 matrices 2x3, 2 norms of 2; 12x2; the last norm.
    self.assertEqual(_TINY.num_params, 16 + 18 + 4 + 24 + 2)
    # Heads wider than the model: each projection is 2x6.
    wide = _TINY._replace(num_heads=3)
    self.assertEqual(wide.num_params, 48 + 18 + 4 + 24 + 2)

  @parameterized.parameters(
    ('W-small', 128, 80), ('W-long', 32, 528), ('W-runs', 32, 80)
  )
  def test_batch(self, name, sequences, length):
    workload = workloads.WORKLOADS[name]
    self.assertEqual(workload.num_prompts * workload.group_size, sequences)
    self.assertEqual(workload.prompt_len + workload.response_len, length)

  def test_processes_import_the_standard_library_only(self):
    for module in peer_loop, trl_peer, tunix_peer, workloads:
      tree = ast.parse(pathlib.Path(module.__file__).read_text('utf-8'))
      for node in ast.walk(tree):
        if isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          names = [node.module]
        else:
          continue
        for name in names:
          self.assertIn(name.split('.')[0], sys.stdlib_module_names)


class PeersTest(parameterized.TestCase):
  def test_each_has_a_script_and_settings(self):
    for peer in peers.PEERS:
      script = peers._command(peer, 'python')[-1]
      self.assertEqual(pathlib.Path(script).name, f'{peer}_peer.py')

  def test_description_has_versions_and_threads(self):
    with _peer(_PEER):
      about = peers.describe('trl', sys.executable)
    cores = len(os.sched_getaffinity(0))
    self.assertEqual(about, {'fake': '1.2', 'threads': cores})

  def test_description_may_know_the_threads_better(self):
    with _peer('def describe():\n  return {"threads": 77}'):
      self.assertEqual(peers.describe('trl', sys.executable), {'threads': 77})

  def test_steps_of_a_peer(self):
    with _peer(_PEER.replace('PARAMS', str(_TINY.num_params))):
      with peers.worker('trl', sys.executable, _TINY) as step:
        first, second = step(), step()
        with self.assertRaisesRegex(
          OSError,
          r'^ValueError: 2 sequences must have \(3, 4\) tokens: '
          r'2 have \[\(3, 3\)\]$',
        ):
          step()
    for took in first, second:
      self.assertEqual(set(took), {'seconds', 'rollout_s', 'rest_s', 'peak_mb'})
      self.assertBetween(took['rollout_s'], 0.02, 5)
      self.assertBetween(took['rest_s'], 0.01, 5)
      self.assertAlmostEqual(
        took['seconds'], took['rollout_s'] + took['rest_s']
      )
    self.assertBetween(second['peak_mb'] - first['peak_mb'], 35, 60)

  def test_memory_is_that_of_the_process_alone(self):
    ours = int(peer_loop._of_process('VmHWM').split()[0]) / 1e3
    with _peer(_PEER.replace('PARAMS', str(_TINY.num_params))):
      with peers.worker('trl', sys.executable, _TINY) as step:
        self.assertLess(step()['peak_mb'], ours / 2)

  def test_process_ends_with_the_block_and_leaves_nothing(self):
    text = _PEER.replace('PARAMS', str(_TINY.num_params)).replace(
      'tempfile.mkdtemp()',
      """import os, pathlib
  (pathlib.Path(tempfile.mkdtemp()) / 'pid').write_text(str(os.getpid()))""",
    )
    folder = pathlib.Path(tempfile.mkdtemp())
    with _peer(text), mock.patch.object(tempfile, 'tempdir', str(folder)):
      with self.assertRaises(ZeroDivisionError):
        with peers.worker('trl', sys.executable, _TINY) as step:
          step()
          (file,) = folder.glob('*/*/pid')
          pid = int(file.read_text(encoding='utf-8'))
          os.kill(pid, 0)  # it is there
          raise ZeroDivisionError
    self.assertEmpty(list(folder.iterdir()))
    with self.assertRaises(ProcessLookupError):
      os.kill(pid, 0)

  def test_end_of_the_block_waits_for_no_step(self):
    python = _interpreter(f"echo '{_COUNT}'; exec sleep 8")
    start = time.perf_counter()
    with peers.worker('trl', python, _TINY):
      pass
    self.assertLess(time.perf_counter() - start, 4)

  def test_policy_of_another_size_is_an_error(self):
    with _peer(_PEER.replace('PARAMS', '7')):
      with self.assertRaisesRegex(
        OSError, '^tiny has 64 parameters, that of trl 7$'
      ):
        with peers.worker('trl', sys.executable, _TINY):
          pass

  def test_settings_reach_the_process(self):
    python = _interpreter(
      'echo "{\\"threads\\": 2, \\"set\\": '
      '\\"$OMP_WAIT_POLICY $JAX_PLATFORMS '
      '$HF_HUB_OFFLINE\\"}"'
    )
    found = [peers.describe(peer, python)['set'] for peer in peers.PEERS]
    self.assertEqual(found, ['PASSIVE  1', ' cpu 1'])

  def test_process_that_ends_is_an_error(self):
    said = f"echo '{_COUNT}'; read line;"
    for script, reason in (
      (f'{said} exit 3', 'ended with status 3'),
      (f'{said} echo no memory >&2; echo >&2', '^no memory$'),
      (f'{said} kill -9 $$', 'ended with status -9'),
    ):
      with self.subTest(script):
        with peers.worker('trl', _interpreter(script), _TINY) as step:
          for _ in range(2):  # a caller may try again
            with self.assertRaisesRegex(ChildProcessError, reason):
              step()

  @parameterized.parameters('garbage', '[1]', '{}', '{"seconds": 1}')
  def test_garbage_is_an_error(self, answer):
    reason = 'not what the process of tunix says: '
    script = f"echo '{_COUNT}'; read line; echo '{answer}'; read line"
    with peers.worker('tunix', _interpreter(script), _TINY) as step:
      with self.assertRaisesRegex(ChildProcessError, f'^{reason}.*'):
        step()
    python = _interpreter(f"echo '{answer}'")
    with self.assertRaisesRegex(ChildProcessError, f'^{reason}.*'):
      peers.describe('tunix', python)
    with self.assertRaisesRegex(ChildProcessError, f'^{reason}.*'):
      with peers.worker('tunix', python, _TINY):
        pass

  @parameterized.parameters(*peers.PEERS)
  def test_missing_interpreter_says_why(self, peer):
    self._check_missing(peer, '/no/such/python', '/no/such/python.*No such')

  @parameterized.parameters(*peers.PEERS)
  def test_missing_package_says_why(self, peer):
    # -S: without site-packages.
    python = _interpreter(f'exec {sys.executable} -S "$@"')
    self._check_missing(peer, python, "^ModuleNotFoundError: .* '[a-z]+'$")

  def _check_missing(self, peer, python, reason):
    with self.assertRaisesRegex(OSError, reason) as caught:
      peers.describe(peer, python)
    self.assertLen(str(caught.exception).splitlines(), 1)
    with self.assertRaisesRegex(OSError, reason):
      with peers.worker(peer, python, _TINY):
        pass


class StepsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    fields = _TINY._asdict() | workloads.RECIPE._asdict()
    self._steps = peer_loop.Steps(mock.Mock(**fields), io.StringIO())

  def test_no_word_begins_with_another(self):
    words = [self._steps.word(token) for token in range(_TINY.vocab_size)]
    self.assertEqual(words[1], 't01')
    for word in words:
      self.assertEqual([w for w in words if w.startswith(word)], [word])

  def test_prompts_have_their_length_and_no_special_token(self):
    prompts = self._steps.prompts(50, 3)
    self.assertEqual({len(prompt.split()) for prompt in prompts}, {3})
    tokens = {int(word[1:]) for text in prompts for word in text.split()}
    self.assertEqual(tokens, set(range(3, 11)))
    self.assertEqual(self._steps.prompts(50, 3), prompts)

  def test_reward_is_the_share_of_the_response(self):
    # A response has 4 tokens, even if a text leaves out a special one.
    texts = ['t07 t08 t07 t09', 't07 t01 t02', 't70 t06']
    self.assertEqual(self._steps.rewards(texts), [0.5, 0.25, 0.0])

  def test_lengths_of_padded_prompts_and_ended_responses(self):
    rows = [[0, 5, 6, 7, 8], [0, 0, 6, 11, 0], [4, 5, 6, 7, 11]]
    self.assertEqual(
      list(trl_peer.lengths(rows, 3, pad=0, eos=11)), [(2, 2), (1, 0), (3, 1)]
    )

  def test_line_of_workload_is_all_that_is_read_of_it(self):
    known = _TINY._asdict() | workloads.RECIPE._asdict()
    for module in trl_peer, tunix_peer, peer_loop:
      text = pathlib.Path(module.__file__).read_text('utf-8')
      for node in ast.walk(ast.parse(text)):
        if (
          isinstance(node, ast.Attribute)
          and isinstance(node.value, ast.Name)
          and node.value.id == 'workload'
        ):
          self.assertIn(node.attr, known)
    self.assertEqual(json.loads(json.dumps(known)), known)


if __name__ == '__main__':
  absltest.main()
