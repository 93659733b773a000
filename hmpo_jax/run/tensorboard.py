"""What TensorBoard shows of a run.

Scalars stand in the groups of the table of metrics, by the names that their
records have: `2_stability/qk/max_logit`. Histograms, responses and the charts
of LAYOUT are here alone.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
import re
import socket
import textwrap
import time

import ml_collections
import numpy as np
from tensorboardX import record_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2
from tensorboardX.proto import tensor_pb2
from tensorboardX.proto import tensor_shape_pb2

from hmpo_jax import config as config_lib
from hmpo_jax.kernels import histograms
from hmpo_jax.run import measured
from hmpo_jax.training import metric_table

# Seconds since 1970 in the name of an event file.
_STAMPED = re.compile(r'events\.out\.tfevents\.([0-9]{10})\.')
# Names of values for TensorBoard alone begin so.
_HISTOGRAM, _SAMPLE = 'histogram/', 'sample/'

# TensorBoard sorts the groups by name, and opens on the first two.
GROUPS = {
  'reward': '1_reward',
  'stability': '2_stability',
  'ratios': '3_ratios',
  'advantage': '4_advantage',
  'learning': '5_learning',
  'agm': '6_agm',
  'other': '7_other',
}

_NUM_BINS = 30  # of a list, as many as TensorBoard draws


def is_for_board(name: str) -> bool:
  """Whether a value is for TensorBoard alone, and not for the records."""
  return name.startswith((_HISTOGRAM, _SAMPLE))


def tag(name: str) -> str:
  """A metric's name behind that of its group."""
  return f'{GROUPS[metric_table.find(name).group]}/{name}'


def _lines(*names):
  return ['Multiline', [f'^{tag(name)}$' for name in names]]


# Mean and the ends of its error bar.
_REWARD = ('eval/reward', 'margin/eval_reward_low', 'margin/eval_reward_high')

# Charts that come first, by category: what the comparison of means asks for. A
# line has the colour of its run: what is compared between runs, or has another
# scale, has a chart of its own.
LAYOUT = {
  # TensorBoard puts those with margins behind the others of a category.
  'Held-out reward': {
    'mean and its standard error': ['Margin', [*map(tag, _REWARD)]],
  },
  'Rewards and advantages of the rollouts': {
    'mean reward': _lines('reward/mean'),
    'variance of the rewards in a group': _lines('advantage/reward_variance'),
    'variance of the effective advantages A M': _lines(
      'advantage/effective_variance'
    ),
  },
  'Stability': {
    'largest attention logit': _lines('qk/max_logit'),
    'share of updates that QK-clip changed': _lines('qk/clipped_frac'),
    'skipped updates': ['Multiline', [f'^{tag("skipped/")}(?!in_a_row)']],
    'attention logit beside tau and monitor_tau': _lines(
      'qk/max_logit', 'qk/tau', 'qk/monitor_tau'
    ),
  },
  'Ratios': {
    'mean ratio': _lines('ratio/mean'),
    'rows stopped low': _lines('clip/low_frac'),
    'rows stopped high': _lines('clip/high_frac'),
    'rows outside the range, stopped or not': _lines('clip/outside_frac'),
  },
  'Learning': {
    'order p': _lines('mean/p'),
    'sigma of the log-ratios, last update': _lines(
      'log_ratio/last_update_sigma'
    ),
  },
  'AGM': {
    'arithmetic mean A': _lines('agm/arithmetic'),
    'geometric mean G': _lines('agm/geometric'),
    'harmonic mean H': _lines('agm/harmonic'),
    'gap A - H': _lines('agm/gap'),
    'A-H convergence rate': _lines('agm/convergence_rate'),
  },
}

# Without its data class, field 4, which tensorboardX does not know, TensorBoard
# drops the description of a scalar.
_SCALARS = summary_pb2.SummaryMetadata.FromString(b'\x20\x01')
_SCALARS.plugin_data.plugin_name = 'scalars'


class Board:
  """TensorBoard's event file, written at once.

  The thread of tensorboardX.SummaryWriter dies of a full disk without a word,
  and the run would wait for it without end.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    step: int,
    *,
    config: ml_collections.ConfigDict | None = None,
    moved: Collection[str] = (),
  ):
    """Opens an event file of its own, beside those that are there.

    Args:
      folder: made if missing.
      step: finished steps; what other files hold of later ones is hidden.
      config: of the run, shown as text and as hyperparameters; its thresholds
        of attention logits become lines. None for none of them.
      moved: names of metrics that were not always 0 in those steps.
    """
    folder.mkdir(exist_ok=True)
    is_new = step == 0 or not any(folder.iterdir())
    self._levels = _levels(config) if config else {}
    self._moved = set(moved)
    self._described: set[str] = set()
    self._file = record_writer.RecordWriter(str(_next_file(folder, step)))
    self._write(file_version='brain.Event:2')
    # Hides what a killed run wrote of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=step + 1 if step else 0, session_log=start)
    if is_new:
      self._write(step=step, summary=summary.custom_scalars(LAYOUT))
      if config:
        text = config.to_json_best_effort(indent=2)
        self._write(step=step, summary=_code('config', text))
        self._write(step=step, summary=_hyperparameters(config))

  def show(self, step: int, values: Mapping) -> None:
    """Appends what a step measured.

    Args:
      step: finished steps.
      values: finite numbers, booleans and lists of them by name; counts
        [histograms.BINS] of histogram/*; the arrays of `step_metrics.samples`.
        Of lists the largest is shown. Values that were measured before this
        step are left out.
    """
    new = {
      name: value
      for name, value in values.items()
      if name != 'step' and measured.at(name, values) in (None, step)
    }
    self._moved |= {
      name for name, value in new.items() if _is_quiet(name) and value
    }
    shown = []
    for name, value in _with_margins(self._levels | new).items():
      if _is_quiet(name) and name not in self._moved:
        continue
      if not name.startswith(_SAMPLE):
        shown += self._describe(name, _shown(name, value))
    if f'{_SAMPLE}reward' in values:
      shown += summary.text('responses', _table(values)).value
    self._write(step=step, summary=summary_pb2.Summary(value=shown))

  def close(self):
    """Flushes and closes the file."""
    self._file.close()

  def _describe(self, name, shown):
    """Values of a metric; TensorBoard takes what the first says of it."""
    if name not in self._described:
      self._described.add(name)
      for value in shown:
        if value.HasField('simple_value'):
          value.metadata.MergeFrom(_SCALARS)
        value.metadata.summary_description = metric_table.describe(name)
    return shown

  def _write(self, **fields):
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())
    self._file.flush()


def _next_file(folder, step):
  """A new event file, the last one by name.

  TensorBoard reads files in the order of their names, which hold the time, and
  leaves out what is not behind the last one that it has read: a clock that was
  set back would hide a run from where it was resumed.
  """
  found = filter(None, (_STAMPED.match(path.name) for path in folder.iterdir()))
  stamp = max([int(time.time()), *(int(match[1]) + 1 for match in found)])
  return folder / f'events.out.tfevents.{stamp}.{socket.gethostname()}.{step}'


def _with_margins(values):
  """With the ends of the error bars, which custom scalars want as series."""
  reward = values.get('eval/reward')
  stderr = values.get('eval/reward_stderr')
  if reward is None or stderr is None:
    return values
  return dict(values) | {
    _REWARD[1]: reward - stderr,
    _REWARD[2]: reward + stderr,
  }


def _shown(name, value):
  """Values of a Summary for one metric; none where there is nothing to show."""
  if name.startswith(_HISTOGRAM):
    return _histogram(name, np.asarray(value), np.array(histograms.EDGES))
  board = metric_table.find(name).board
  if not board or isinstance(value, list) and not value:
    return []
  if board == 'histogram':
    # Not 'auto': one logit that explodes would ask NumPy for billions of bins.
    return _histogram(name, *np.histogram(value, bins=_NUM_BINS))
  if isinstance(value, list):
    return [_scalar(f'{name}/max', max(value))]
  return [_scalar(name, value)] if math.isfinite(value) else []


def _is_quiet(name):
  """Whether it is shown from its first value on that is not 0 only."""
  return metric_table.find(name).board == 'quiet'


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
  rows = rows[max(filled[0] - 1, 0) : filled[-1] + 2]
  plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name='histograms')
  metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
  shape = [tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in rows.shape]
  tensor = tensor_pb2.TensorProto(
    dtype='DT_FLOAT',
    tensor_content=rows.tobytes(),
    tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=shape),
  )
  return [
    summary_pb2.Summary.Value(tag=tag(name), metadata=metadata, tensor=tensor)
  ]


def _levels(config):
  """What charts of the largest attention logit hold it against."""
  levels = {'qk/monitor_tau': config.optim.monitor_tau}
  if config.optim.qk_clip != 'off':
    levels['qk/tau'] = config.optim.tau
  return {name: level for name, level in levels.items() if math.isfinite(level)}


def _hyperparameters(config):
  """What the HParams tab shows of a run, in the run's own folder.

  Without a list of all that may differ TensorBoard makes one from the runs that
  it sees, and shows first what differs between them. What is infinite is text:
  its server cannot pass it on as a number.
  """
  values = {
    key: str(value) if isinstance(value, float) and math.isinf(value) else value
    for key, value in config_lib.flat(config.to_dict()).items()
  }
  _, start, _ = summary.hparams(values, {})
  return start


def _code(name, text):
  # Markdown: what is indented stays as it is.
  return summary.text(name, textwrap.indent(text, '    '))


def _table(values):
  """Markdown table of sampled responses."""
  columns = [values[f'{_SAMPLE}{name}'] for name in _COLUMNS]
  rows = [
    [_tokens(prompt), _tokens(response), f'{float(reward):.3g}']
    for prompt, response, reward in zip(*columns)
  ]
  head = [list(_COLUMNS), ['---'] * len(_COLUMNS)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in head + rows)


_COLUMNS = ('prompt', 'response', 'reward')


def _tokens(tokens: Sequence[int]) -> str:
  """Numbers of the tokens that are none of the padding, which is -1."""
  return '`' + ' '.join(str(int(token)) for token in tokens if token >= 0) + '`'
