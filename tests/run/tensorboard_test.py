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
import jax.numpy as jnp
import numpy as np
from tensorboard.backend.event_processing import event_accumulator
from tensorboardX.proto import event_pb2
from tensorboardX.proto import layout_pb2
from tensorboardX.proto import plugin_hparams_pb2

from hmpo_jax.kernels import histograms
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import records as run_records
from hmpo_jax.run import tensorboard
from tests import small

_CHARTS = 'custom_scalars__config__'


def _events(file):
  """Events of a file: length, its checksum, the event, its checksum."""
  data = file.read_bytes()
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    yield event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]


def _visible(folder):
  """{tag: {step: value}} as TensorBoard shows a run that was resumed."""
  shown: dict = {}
  for file in sorted(folder.iterdir()):  # as TensorBoard does
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
      (value,) = tensorboard._shown(
        'qk/max_logit_per_head', [0.7, 1.0, 2.0, largest]
      )
      self.assertLess(value.ByteSize(), 2000)


class BoardTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _show(self, values, step=1, **options):
    shown = tensorboard.Board(self.folder, 0, **options)
    shown.show(step, values)
    shown.close()
    return _visible(self.folder)

  def test_scalars_stand_in_their_groups(self):
    shown = self._show(
      {
        'step': 1,
        'qk/max_logit': 7.0,
        'reward/mean': 0.5,
        'active': True,
        'heads': [1.0, 3.0, 2.0],
        'none': [],
        'bad': float('inf'),
      }
    )
    self.assertEqual(_scalars(shown, '2_stability/qk/max_logit'), {1: 7})
    self.assertEqual(_scalars(shown, '1_reward/reward/mean'), {1: 0.5})
    self.assertEqual(_scalars(shown, '7_other/active'), {1: 1})
    self.assertEqual(_scalars(shown, '7_other/heads/max'), {1: 3})
    self.assertLen(shown, 5)  # with the charts

  def test_clock_that_was_set_back_hides_nothing(self):
    reader = event_accumulator.EventAccumulator(str(self.folder))
    # The last one in the second of the one before it, 10 hours too early.
    for now, start in ((2e9, 0), (2e9 - 36000, 3), (2e9 - 36000, 12)):
      with mock.patch.object(tensorboard.time, 'time', lambda now=now: now):
        shown = tensorboard.Board(self.folder, start)
        for step in range(start + 1, start + 10):
          shown.show(step, {'reward/mean': start + 0.5})
        shown.close()
        (self.folder / 'events.out.tfevents.1').touch()  # a user's
      reader.Reload()
    tag = tensorboard.tag('reward/mean')
    self.assertEqual(
      [(e.step, e.value) for e in reader.Scalars(tag)],
      [(step, 0.5) for step in range(1, 4)]
      + [(step, 3.5) for step in range(4, 13)]
      + [(step, 12.5) for step in range(13, 22)],
    )

  def test_histogram_has_the_counts_without_the_empty_ends(self):
    counts = np.zeros(histograms.BINS)
    counts[[46, 50, 51]] = 3, 2, 1
    shown = self._show(
      {
        'histogram/log_row_ratio': jnp.array(counts),
        'histogram/log_token_weight': jnp.zeros(histograms.BINS),
      }
    )
    found = _histogram(shown['3_ratios/histogram/log_row_ratio'][1])
    edges = np.array(histograms.EDGES)[45:54]
    np.testing.assert_allclose(
      found,
      np.stack([edges[:-1], edges[1:], [0, 3, 0, 0, 0, 2, 1, 0]], axis=1),
      rtol=1e-6,
    )
    self.assertNotIn('3_ratios/histogram/log_token_weight', shown)

  def test_heads_are_a_histogram(self):
    shown = self._show({'qk/max_logit_per_head': [1.0, 5.0, 5.0, 3.0]})
    found = _histogram(shown['2_stability/qk/max_logit_per_head'][1])
    self.assertEqual((found[0, 0], found[-1, 1], found[:, 2].sum()), (1, 5, 4))
    shown = self._show({'qk/max_logit_per_head': [2.0, 2.0]}, step=2)
    found = _histogram(shown['2_stability/qk/max_logit_per_head'][2])
    self.assertEqual(found[:, 2].sum(), 2)

  def test_ends_of_a_histogram_may_be_filled(self):
    counts = np.ones(histograms.BINS)
    shown = self._show({'histogram/log_row_ratio': counts})
    value = shown['3_ratios/histogram/log_row_ratio'][1]
    np.testing.assert_array_equal(_histogram(value)[:, 2], counts)
    self.assertIn('factor of e', value.metadata.summary_description)

  def test_responses_are_a_table_of_numbers(self):
    shown = self._show(
      {
        'sample/prompt': np.array([[-1, 5, 7], [1, 2, 3]]),
        'sample/response': np.array([[9, 0, -1], [4, 4, 4]]),
        'sample/reward': np.array([0.25, np.nan], np.float32),
      }
    )
    self.assertEqual(
      _text(shown['responses/text_summary'][1]),
      '| prompt | response | reward |\n| --- | --- | --- |\n'
      '| `5 7` | `9 0` | 0.25 |\n| `1 2 3` | `4 4 4` | nan |',
    )

  def test_values_stand_where_they_were_measured(self):
    shown = tensorboard.Board(self.folder, 0)
    for step, measured in ((1, 0), (2, 2), (3, 2)):
      shown.show(
        step,
        {
          'eval/reward': 0.5,
          'eval/reward_stderr': 0.125,
          'eval/step': measured,
          'reward/mean': 0.1,
        },
      )
    shown.close()
    visible = _visible(self.folder)
    for tag, value in (
      ('1_reward/eval/reward', 0.5),
      ('7_other/margin/eval_reward_low', 0.375),
      ('7_other/margin/eval_reward_high', 0.625),
    ):
      self.assertEqual(_scalars(visible, tag), {2: value})
    self.assertLen(_scalars(visible, '1_reward/reward/mean'), 3)
    self.assertNotIn('1_reward/eval/step', visible)

  def test_levels_are_lines_and_infinite_ones_are_not(self):
    config = small.config(
      optim__qk_clip='weights', optim__tau=float('inf'), optim__monitor_tau=30.0
    )
    shown = self._show({}, config=config)
    self.assertEqual(_scalars(shown, '2_stability/qk/monitor_tau'), {1: 30})
    self.assertNotIn('2_stability/qk/tau', shown)

  def test_reopened_folder_shows_no_step_twice(self):
    # Twice from the first step, then twice from step 2. Files of one second
    # would have one name.
    clock = mock.patch.object(
      tensorboard.time, 'time', side_effect=itertools.count(1_700_000_000)
    )
    self.enterContext(clock)
    for start, steps in (
      (0, (1, 2, 3)),
      (0, (1, 2, 3)),
      (2, (3, 4)),
      (2, (3,)),
    ):
      reopened = tensorboard.Board(self.folder, start, config=small.config())
      if start == 0:
        reopened.show(0, {'eval/reward': 0.0})
      for step in steps:
        reopened.show(step, {'loss/total': step + start})
      reopened.close()
    shown = _visible(self.folder)
    self.assertEqual(
      _scalars(shown, '5_learning/loss/total'), {1: 1, 2: 2, 3: 5}
    )
    self.assertEqual(list(shown['config/text_summary']), [0])
    self.assertEqual(list(shown[_CHARTS]), [0])

  def test_folder_that_was_lost_has_its_charts_again(self):
    tensorboard.Board(self.folder, 7, config=small.config(loss__p=0.25)).close()
    shown = _visible(self.folder)
    self.assertEqual(list(shown[_CHARTS]), [7])
    self.assertIn('        "p": 0.25', _text(shown['config/text_summary'][7]))

  def test_opens_on_reward_and_then_on_stability(self):
    shown = sorted(
      tag
      for tag in map(
        tensorboard.tag,
        ('qk/max_logit', 'reward/mean', 'agm/gap', 'advantage/mean', 'x'),
      )
    )
    self.assertEqual(
      shown[:2], ['1_reward/reward/mean', '2_stability/qk/max_logit']
    )
    self.assertEqual(shown[-1], '7_other/x')

  def test_each_series_stands_once(self):
    shown = self._show(
      {
        'eval/reward': 0.5,
        'eval_reward': 0.5,
        'train_reward_mean': 0.5,
        'td_mean': 0.0,
        'muon_clip_active': False,
        'arithmetic_history': [1.0, 1.0],
      }
    )
    self.assertEqual(set(shown), {'1_reward/eval/reward', _CHARTS})

  def test_an_option_that_is_off_shows_no_zeros(self):
    shown = tensorboard.Board(self.folder, 0)
    for step, decision in ((1, 0.0), (2, -1.0), (3, 0.0)):
      shown.show(
        step,
        {
          'exponent/decision': decision,
          'exponent/at_bound': 0.0,
          'clip/dual_frac': 0.0,
        },
      )
    shown.close()
    again = tensorboard.Board(self.folder, 3, moved=('exponent/decision',))
    again.show(4, {'exponent/decision': 0.0, 'exponent/at_bound': 0.0})
    again.close()
    visible = _visible(self.folder)
    self.assertEqual(
      _scalars(visible, '6_agm/exponent/decision'), {2: -1, 3: 0, 4: 0}
    )
    self.assertNotIn('6_agm/exponent/at_bound', visible)
    self.assertNotIn('3_ratios/clip/dual_frac', visible)

  def test_first_value_of_a_scalar_says_what_it_is(self):
    shown = tensorboard.Board(self.folder, 0)
    for step in (1, 2):
      shown.show(step, {'qk/clipped_frac': 0.5})
    shown.close()
    values = _visible(self.folder)['2_stability/qk/clipped_frac']
    # DATA_CLASS_SCALAR, without which TensorBoard's server drops what is said.
    self.assertIn(b'\x20\x01', values[1].metadata.SerializeToString())
    self.assertEqual(
      [values[step].metadata.summary_description for step in (1, 2)],
      ['Updates in which the QK-clip changed weights. Unit: share.', ''],
    )

  def test_hyperparameters_stand_in_the_same_file(self):
    shown = self._show({}, config=small.config(loss__p=0.25))
    value = shown['_hparams_/session_start_info'][0]
    self.assertEqual(value.metadata.plugin_data.plugin_name, 'hparams')
    told = plugin_hparams_pb2.HParamsPluginData.FromString(
      value.metadata.plugin_data.content
    ).session_start_info.hparams
    self.assertEqual(told['loss.p'].number_value, 0.25)
    self.assertEqual(told['loss.name'].string_value, 'power_mean')
    self.assertEqual(told['loss.p_clip'].string_value, 'inf')
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_charts_hold_what_the_comparison_of_means_asks_for(self):
    tags = str(tensorboard.LAYOUT)
    for name in (
      'qk/max_logit',
      'qk/clipped_frac',
      'skipped/',
      'reward/mean',
      'eval/reward',
      'advantage/reward_variance',
      'advantage/effective_variance',
      'ratio/mean',
      'clip/low_frac',
      'clip/high_frac',
      'clip/outside_frac',
      'agm/gap',
      'agm/convergence_rate',
    ):
      self.assertIn(tensorboard.tag(name), tags)
    # A line of another scale would flatten these.
    for chart in (
      'qk/max_logit',
      'agm/arithmetic',
      'agm/geometric',
      'agm/harmonic',
    ):
      self.assertIn(f"['^{tensorboard.tag(chart)}$']", tags)

  def test_full_disk_is_told_by_the_call_that_meets_it(self):
    shown = tensorboard.Board(self.folder, 0)
    write = mock.Mock(side_effect=OSError('no space'))
    with mock.patch.object(shown._file, 'flush', write):
      with self.assertRaisesRegex(OSError, 'no space'):
        shown.show(1, {'loss/total': 1.0})
    shown.close()


class RunTest(absltest.TestCase):
  def _assert_shows_a_run(self, workdir):
    """Three steps, evaluated after the second and the last."""
    shown = _visible(workdir / 'tensorboard')
    for value in shown.values():
      self.assertContainsSubset(value, range(4))
    rows = shown['3_ratios/histogram/log_row_ratio']
    self.assertEqual(
      [_histogram(rows[step])[:, 2].sum() for step in (1, 2, 3)], [64] * 3
    )
    self.assertEqual(list(_scalars(shown, '1_reward/eval/reward')), [0, 2, 3])
    responses = shown['responses/text_summary']
    self.assertEqual(list(responses), [0, 2, 3])
    self.assertLen(_text(responses[3]).split('\n'), 6)
    layout = layout_pb2.Layout.FromString(
      shown[_CHARTS][0].tensor.string_val[0]
    )
    for category in layout.category:
      for chart in category.chart:
        names = list(chart.multiline.tag)
        for series in chart.margin.series:
          names += [
            f'^{x}$' for x in (series.value, series.lower, series.upper)
          ]
        found = [any(re.search(n, tag) for tag in shown) for n in names]
        self.assertTrue(all(found), (chart.title, names))
    for record in run_records.read(workdir):
      self.assertFalse(
        [name for name in record if tensorboard.is_for_board(name)]
      )

  def test_runs_show_their_charts(self):
    with tempfile.TemporaryDirectory() as folder:
      members = []
      for seed in range(2):
        config = small.config(
          seed=seed,
          num_steps=3,
          eval__every=2,
          model__num_layers=1,
          optim__qk_clip='weights',
        )
        members.append((config, pathlib.Path(folder) / str(seed)))
      run_batch.train(members, lambda report: None)
      for config, workdir in members:
        self._assert_shows_a_run(workdir)
        shown = _visible(workdir / 'tensorboard')
        self.assertIn(
          f'"seed": {config.seed}', _text(shown['config/text_summary'][0])
        )


if __name__ == '__main__':
  absltest.main()
