"""What TensorBoard shows of a run.

Scalars stand in the groups of GROUPS, by the names that their records have:
`stability/qk/max_logit`. Histograms, responses and the charts of LAYOUT are
here alone.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
import textwrap
import time

import numpy as np
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2
from tensorboardX.proto import tensor_pb2
from tensorboardX.proto import tensor_shape_pb2

from hmpo_jax.kernels import histograms

# Names of values for TensorBoard alone begin so.
_HISTOGRAM, _SAMPLE = 'histogram/', 'sample/'

# Group and how the names of its metrics begin.
GROUPS = {
    'stability':
        ('qk/', 'skipped/', 'nonfinite/', 'nonfinite_values', 'muon_clip_'),
    'reward': ('reward/', 'eval/', 'advantage/', 'train_reward_mean',
               'eval_reward', 'td_', 'q_rel_change'),
    'ratios': ('ratio/', 'log_ratio/', 'token_weight/', 'clip/', 'mean/',
               'kl_old/', 'histogram/'),
    'learning':
        ('loss/', 'grad/', 'update/', 'mechanism/', 'policy/', 'kl/', 'total/'),
    'agm': ('agm/', 'exponent/', 'arithmetic_history', 'harmonic_history'),
    'other': ('rollout/', 'control/', 'step_s', 'eval_s', 'tokens_per_s'),
}

# Lists that are shown as histograms, and metrics that show nothing new.
_LISTS = ('qk/max_logit_per_head',)
_NUM_BINS = 30  # of a list, as many as TensorBoard draws
_TOLD = ('qk/max_logit_per_update', 'arithmetic_history', 'harmonic_history',
         'agm/arithmetic_iterates', 'agm/harmonic_iterates', 'eval/step',
         'eval_is_new', 'mechanism/step', 'rollout/digest')

# Values that stay in the records until they are measured again, and the metric
# that says when that was.
_MEASURED = {
    'eval/': 'eval/step',
    'eval_reward': 'eval/step',
    'mechanism/': 'mechanism/step',
    'qk/clip_drift': 'mechanism/step',
}


def is_for_board(name: str) -> bool:
  """Whether a value is for TensorBoard alone, and not for the records."""
  return name.startswith((_HISTOGRAM, _SAMPLE))


def tag(name: str) -> str:
  """A metric's name behind that of its group, 'other' if it is in none.

  One that begins with its group, as reward/mean, stays as it is.
  """
  for group, starts in GROUPS.items():
    if name.startswith(starts):
      return name if name.startswith(f'{group}/') else f'{group}/{name}'
  return f'other/{name}'


def measured_at(name: str, values: Mapping) -> int | None:
  """The step that measured a value; None if it has none of its own."""
  for start, stamp in _MEASURED.items():
    if name.startswith(start) and name != stamp:
      return values.get(stamp)
  return None


def _lines(*names):
  return ['Multiline', [f'^{tag(name)}$' for name in names]]


_REWARD = tuple(
    f'eval/reward{end}' for end in ('', '_less_stderr', '_plus_stderr'))

# Charts that come first, by category. A line has the colour of its run: what is
# compared between runs has a chart of its own.
LAYOUT = {
    'Held-out reward': {
        'mean and its standard error': ['Margin', [*map(tag, _REWARD)]],
    },
    'Ratios': {
        'rows clipped low': _lines('clip/low_frac'),
        'rows clipped high': _lines('clip/high_frac'),
        'mean ratio': _lines('ratio/mean'),
    },
    'AGM': {
        'A, G and H before the clip':
            _lines('agm/arithmetic', 'agm/geometric', 'agm/harmonic'),
        'gap A - H':
            _lines('agm/gap'),
        'A-H convergence rate':
            _lines('agm/convergence_rate'),
    },
    'Stability and order': {
        'largest attention logit, and tau':
            _lines('qk/max_logit', 'qk/tau', 'qk/monitor_tau'),
        'skipped updates': ['Multiline', [f'^{tag("skipped/")}(?!in_a_row)']],
        'order p':
            _lines('mean/p'),
    },
}

# What TensorBoard tells of a histogram beside its name.
_DESCRIPTIONS = {
    'histogram/log_row_ratio':
        'Log of the ratio M_i of each row, nats, over all updates of a step; '
        'at the ends what is beyond a factor of e.',
    'histogram/log_token_weight':
        'Log of n times the weight of each of n tokens in the gradient of its '
        'row: 0 where all weigh the same; at the ends what is beyond a factor '
        'of e.',
    'qk/max_logit_per_head':
        'Largest visible attention logit of each head of each layer.',
}


class Board:
  """TensorBoard's event file, written at once.

  The thread of tensorboardX.SummaryWriter dies of a full disk without a word,
  and the run would wait for it without end.
  """

  def __init__(self,
               folder: pathlib.Path,
               step: int,
               *,
               config_text: str = '',
               levels: Mapping[str, float] | None = None):
    """Opens an event file of its own, beside those that are there.

    Args:
      folder: made if missing.
      step: finished steps; what other files hold of later ones is hidden.
      config_text: shown as it is; '' for none.
      levels: constants by name, lines to hold metrics against; those that are
        not finite are left out.
    """
    folder.mkdir(exist_ok=True)
    is_new = step == 0 or not any(folder.iterdir())
    self._levels = {
        name: level
        for name, level in (levels or {}).items()
        if math.isfinite(level)
    }
    self._file = event_file_writer.EventsWriter(
        str(folder / 'events'), f'.{step}')
    # Hides what a killed run wrote of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=step + 1 if step else 0, session_log=start)
    if is_new:
      self._write(step=step, summary=summary.custom_scalars(LAYOUT))
      if config_text:
        self._write(step=step, summary=_code('config', config_text))

  def show(self, step: int, values: Mapping) -> None:
    """Appends what a step measured.

    Args:
      step: finished steps.
      values: finite numbers, booleans and lists of them by name; counts
        [histograms.BINS] of histogram/*; the arrays of `step_metrics.samples`.
        Of lists the largest is shown. Values that were measured before this
        step are left out.
    """
    measured = {
        name: value
        for name, value in values.items()
        if name != 'step' and measured_at(name, values) in (None, step)
    }
    shown = [_scalar(*level) for level in self._levels.items()]
    for name, value in _with_margins(measured).items():
      if not name.startswith(_SAMPLE):
        shown += _shown(name, value)
    if f'{_SAMPLE}reward' in values:
      shown += summary.text('responses', _table(values)).value
    self._write(step=step, summary=summary_pb2.Summary(value=shown))

  def close(self):
    """Flushes and closes the file."""
    self._file.close()

  def _write(self, **fields):
    self._file.write_event(event_pb2.Event(wall_time=time.time(), **fields))
    self._file.flush()


def _with_margins(values):
  """With the ends of the error bars, which custom scalars want as series."""
  reward = values.get('eval/reward')
  stderr = values.get('eval/reward_stderr')
  if reward is None or stderr is None:
    return values
  return dict(values) | {
      'eval/reward_less_stderr': reward - stderr,
      'eval/reward_plus_stderr': reward + stderr
  }


def _shown(name, value):
  """Values of a Summary for one metric; none where there is nothing to show."""
  if name.startswith(_HISTOGRAM):
    return _histogram(name, np.asarray(value), np.array(histograms.EDGES))
  if name.startswith(_TOLD) or isinstance(value, list) and not value:
    return []
  if name in _LISTS:
    # Not 'auto': one logit that explodes would ask NumPy for billions of bins.
    return _histogram(name, *np.histogram(value, bins=_NUM_BINS))
  if isinstance(value, list):
    return [_scalar(f'{name}/max', max(value))]
  return [_scalar(name, value)] if math.isfinite(value) else []


def _scalar(name, value):
  return summary_pb2.Summary.Value(tag=tag(name), simple_value=float(value))


def _histogram(name, counts, edges):
  """Of counts [n] in bins with edges [n + 1]; none if all are empty.

  It is in the form that TensorBoard itself stores, rows of left edge, right
  edge and count; HistogramProto has no description there. TensorBoard draws 30
  bins over them: of the empty bins at each end one is kept, so that a single
  filled one is a peak.
  """
  filled = np.flatnonzero(counts)
  if not filled.size:
    return []
  rows = np.stack([edges[:-1], edges[1:], counts], axis=1, dtype=np.float32)
  rows = rows[max(filled[0] - 1, 0):filled[-1] + 2]
  plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name='histograms')
  metadata = summary_pb2.SummaryMetadata(
      plugin_data=plugin, summary_description=_DESCRIPTIONS.get(name, ''))
  shape = [tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in rows.shape]
  tensor = tensor_pb2.TensorProto(
      dtype='DT_FLOAT',
      tensor_content=rows.tobytes(),
      tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=shape))
  return [
      summary_pb2.Summary.Value(
          tag=tag(name), metadata=metadata, tensor=tensor)
  ]


def _code(name, text):
  # Markdown: what is indented stays as it is.
  return summary.text(name, textwrap.indent(text, '    '))


def _table(values):
  """Markdown table of sampled responses."""
  columns = [values[f'{_SAMPLE}{name}'] for name in _COLUMNS]
  rows = [[_tokens(prompt),
           _tokens(response), f'{float(reward):.3g}']
          for prompt, response, reward in zip(*columns)]
  head = [list(_COLUMNS), ['---'] * len(_COLUMNS)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in head + rows)


_COLUMNS = ('prompt', 'response', 'reward')


def _tokens(tokens: Sequence[int]) -> str:
  """Numbers of the tokens that are none of the padding, which is -1."""
  return '`' + ' '.join(str(int(token)) for token in tokens if token >= 0) + '`'
