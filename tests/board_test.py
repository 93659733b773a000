"""What TensorBoard is given: groups, histograms, charts, text, each step once.

The event files are read as TensorBoard reads them, with the protocol buffers.
"""

import itertools
import pathlib
import re
import struct
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2
from tensorboardX.proto import layout_pb2

from hmpo_jax import board
from hmpo_jax import config as config_lib
from hmpo_jax import group
from hmpo_jax import learner
from hmpo_jax import metrics
from hmpo_jax import partition
from hmpo_jax import policy
from hmpo_jax.kernels import histograms
from hmpo_jax.model import transformer
from tests import small

_CHARTS = 'custom_scalars__config__'


def _events(file):
  """Events of a file: length, its checksum, the event, its checksum."""
  data = file.read_bytes()
  while data:
    length, = struct.unpack('<Q', data[:8])
    yield event_pb2.Event.FromString(data[12:12 + length])
    data = data[16 + length:]


def _visible(folder):
  """{tag: {step: value}} as TensorBoard shows a run that was resumed."""
  shown: dict = {}
  for file in sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns):
    for event in _events(file):
      if event.HasField('session_log'):
        for steps in shown.values():
          for step in [s for s in steps if s >= event.step]:
            del steps[step]
      for value in event.summary.value:
        steps = shown.setdefault(value.tag, {})
        assert event.step not in steps, (value.tag, event.step)
        steps[event.step] = value
  return shown


def _scalars(shown, tag):
  return {step: value.simple_value for step, value in shown[tag].items()}


def _histogram(value):
  """[n, 3] left edges, right edges and counts."""
  assert value.metadata.plugin_data.plugin_name == 'histograms'
  shape = [dim.size for dim in value.tensor.tensor_shape.dim]
  return np.frombuffer(value.tensor.tensor_content, np.float32).reshape(shape)


def _text(value):
  return value.tensor.string_val[0].decode('utf-8')


class ExplodedTest(absltest.TestCase):

  def test_a_logit_that_explodes_asks_for_no_more_bins(self):
    for largest in (1e9, 1e30):
      value, = board._shown(  # pylint: disable=protected-access
          'qk/max_logit_per_head', [.7, 1., 2., largest])
      self.assertLess(value.ByteSize(), 2000)


class BoardTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _show(self, values, step=1, **options):
    shown = board.Board(self.folder, 0, **options)
    shown.show(step, values)
    shown.close()
    return _visible(self.folder)

  def test_scalars_stand_in_their_groups(self):
    shown = self._show({
        'step': 1,
        'qk/max_logit': 7.,
        'reward/mean': .5,
        'active': True,
        'heads': [1., 3., 2.],
        'none': [],
        'bad': float('inf'),
    })
    self.assertEqual(_scalars(shown, 'stability/qk/max_logit'), {1: 7})
    self.assertEqual(_scalars(shown, 'reward/mean'), {1: .5})
    self.assertEqual(_scalars(shown, 'other/active'), {1: 1})
    self.assertEqual(_scalars(shown, 'other/heads/max'), {1: 3})
    self.assertLen(shown, 5)  # with the charts

  def test_histogram_has_the_counts_without_the_empty_ends(self):
    counts = np.zeros(histograms.BINS)
    counts[[46, 50, 51]] = 3, 2, 1
    shown = self._show({
        'histogram/log_row_ratio': jnp.array(counts),
        'histogram/log_token_weight': jnp.zeros(histograms.BINS),
    })
    found = _histogram(shown['ratios/histogram/log_row_ratio'][1])
    edges = np.array(histograms.EDGES)[45:54]
    np.testing.assert_allclose(
        found,
        np.stack([edges[:-1], edges[1:], [0, 3, 0, 0, 0, 2, 1, 0]], axis=1),
        rtol=1e-6)
    self.assertNotIn('ratios/histogram/log_token_weight', shown)

  def test_heads_are_a_histogram(self):
    shown = self._show({'qk/max_logit_per_head': [1., 5., 5., 3.]})
    found = _histogram(shown['stability/qk/max_logit_per_head'][1])
    self.assertEqual((found[0, 0], found[-1, 1], found[:, 2].sum()), (1, 5, 4))
    shown = self._show({'qk/max_logit_per_head': [2., 2.]}, step=2)
    found = _histogram(shown['stability/qk/max_logit_per_head'][2])
    self.assertEqual(found[:, 2].sum(), 2)

  def test_ends_of_a_histogram_may_be_filled(self):
    counts = np.ones(histograms.BINS)
    shown = self._show({'histogram/log_row_ratio': counts})
    value = shown['ratios/histogram/log_row_ratio'][1]
    np.testing.assert_array_equal(_histogram(value)[:, 2], counts)
    self.assertIn('factor of e', value.metadata.summary_description)

  def test_responses_are_a_table_of_numbers(self):
    shown = self._show({
        'sample/prompt': np.array([[-1, 5, 7], [1, 2, 3]]),
        'sample/response': np.array([[9, 0, -1], [4, 4, 4]]),
        'sample/reward': np.array([0.25, np.nan], np.float32),
    })
    self.assertEqual(
        _text(shown['responses/text_summary'][1]),
        '| prompt | response | reward |\n| --- | --- | --- |\n'
        '| `5 7` | `9 0` | 0.25 |\n| `1 2 3` | `4 4 4` | nan |')

  def test_values_stand_where_they_were_measured(self):
    shown = board.Board(self.folder, 0)
    for step, measured in ((1, 0), (2, 2), (3, 2)):
      shown.show(
          step, {
              'eval/reward': 0.5,
              'eval/reward_stderr': 0.125,
              'eval/step': measured,
              'reward/mean': 0.1
          })
    shown.close()
    visible = _visible(self.folder)
    for end, value in (('', .5), ('_less_stderr', .375), ('_plus_stderr',
                                                          .625)):
      tag = f'reward/eval/reward{end}'
      self.assertEqual(_scalars(visible, tag), {2: value})
    self.assertLen(_scalars(visible, 'reward/mean'), 3)
    self.assertNotIn('reward/eval/step', visible)

  def test_levels_are_lines_and_infinite_ones_are_not(self):
    shown = self._show({},
                       levels={
                           'qk/tau': 30.,
                           'qk/monitor_tau': float('inf')
                       })
    self.assertEqual(_scalars(shown, 'stability/qk/tau'), {1: 30})
    self.assertNotIn('stability/qk/monitor_tau', shown)

  def test_reopened_folder_shows_no_step_twice(self):
    # Twice from the first step, then twice from step 2. Files of one second
    # would have one name.
    clock = mock.patch.object(
        board.time, 'time', side_effect=itertools.count(1_700_000_000))
    self.enterContext(clock)
    for start, steps in ((0, (1, 2, 3)), (0, (1, 2, 3)), (2, (3, 4)), (2,
                                                                       (3,))):
      reopened = board.Board(self.folder, start, config_text='p = 1')
      if start == 0:
        reopened.show(0, {'eval/reward': 0.})
      for step in steps:
        reopened.show(step, {'loss/total': step + start})
      reopened.close()
    shown = _visible(self.folder)
    self.assertEqual(_scalars(shown, 'learning/loss/total'), {1: 1, 2: 2, 3: 5})
    self.assertEqual(list(shown['config/text_summary']), [0])
    self.assertEqual(list(shown[_CHARTS]), [0])

  def test_folder_that_was_lost_has_its_charts_again(self):
    board.Board(self.folder, 7, config_text='p = 1').close()
    shown = _visible(self.folder)
    self.assertEqual(list(shown[_CHARTS]), [7])
    self.assertEqual(_text(shown['config/text_summary'][7]), '    p = 1')

  def test_full_disk_is_told_by_the_call_that_meets_it(self):
    shown = board.Board(self.folder, 0)
    write = mock.Mock(side_effect=OSError('no space'))
    with mock.patch.object(shown._file, 'flush', write):  # pylint: disable=protected-access
      with self.assertRaisesRegex(OSError, 'no space'):
        shown.show(1, {'loss/total': 1.})
    shown.close()


def _names_of_a_default_run():
  """Names of everything that a default run writes, without running it."""
  config = config_lib.default_config()
  static = partition.static(config)
  hparams = partition.hparams(config)

  def run(key):
    params = transformer.init(policy.make_model(static), key)
    state = learner.init(static, hparams, params, key)
    return (learner.train_step(static, state, hparams, jnp.bool_(True))[1],
            learner.evaluate(
                static, params,
                jnp.zeros((8, policy.make_task(static).prompt_len), jnp.int32)))

  step, evaluation = jax.eval_shape(run, jax.random.key(0))
  return {
      *step, *evaluation, 'eval/step', 'total/tokens', 'total/episodes',
      metrics.NONFINITE, 'step_s', 'eval_s', 'tokens_per_s'
  }


class RunTest(absltest.TestCase):

  def test_every_metric_of_a_default_run_has_one_group(self):
    for name in _names_of_a_default_run():
      if name.startswith('sample/'):
        continue
      groups = [
          group for group, starts in board.GROUPS.items()
          if name.startswith(starts)
      ]
      self.assertLen(groups, 1, name)

  def _assert_shows_a_run(self, workdir):
    """Three steps, evaluated after the second and the last."""
    shown = _visible(workdir / 'tensorboard')
    for value in shown.values():
      self.assertContainsSubset(value, range(4))
    rows = shown['ratios/histogram/log_row_ratio']
    self.assertEqual([_histogram(rows[step])[:, 2].sum() for step in (1, 2, 3)],
                     [64] * 3)
    self.assertEqual(list(_scalars(shown, 'reward/eval/reward')), [0, 2, 3])
    responses = shown['responses/text_summary']
    self.assertEqual(list(responses), [0, 2, 3])
    self.assertLen(_text(responses[3]).split('\n'), 6)
    layout = layout_pb2.Layout.FromString(
        shown[_CHARTS][0].tensor.string_val[0])
    for category in layout.category:
      for chart in category.chart:
        names = list(chart.multiline.tag)
        for series in chart.margin.series:
          names += [
              f'^{x}$' for x in (series.value, series.lower, series.upper)
          ]
        found = [any(re.search(n, tag) for tag in shown) for n in names]
        self.assertTrue(all(found), (chart.title, names))
    for record in metrics.read(workdir):
      self.assertFalse([name for name in record if board.is_for_board(name)])

  def test_runs_show_their_charts(self):
    with tempfile.TemporaryDirectory() as folder:
      members = []
      for seed in range(2):
        config = small.config(
            seed=seed,
            num_steps=3,
            eval__every=2,
            model__num_layers=1,
            optim__qk_clip='weights')
        members.append((config, pathlib.Path(folder) / str(seed)))
      group.train(members, lambda report: None)
      for config, workdir in members:
        self._assert_shows_a_run(workdir)
        shown = _visible(workdir / 'tensorboard')
        self.assertIn(f'"seed": {config.seed}',
                      _text(shown['config/text_summary'][0]))


if __name__ == '__main__':
  absltest.main()
