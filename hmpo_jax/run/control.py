"""Live control: what a controller asks of a run, and what the run does of it.

A controller is a callable from the record of a step, as metrics.jsonl holds it,
to a dict of decisions. What it asks is put within the bounds of the
configuration and holds from the next step on. No answer stops a run, unless
`control.may_stop` lets it.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import math
from typing import NamedTuple

import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.kernels import losses
from hmpo_jax.tasks import host_function

# The low side of a range ends above 0: a ratio that is stopped has a log.
_LARGEST_LOW = 0.99


class Settings(NamedTuple):
  """What a controller may decide; Python numbers, as they stand in the log."""

  learning_rate: float  # optim.learning_rate; Adam's moves by the same factor
  epsilon: float  # loss.clip_eps_high; the low side moves by the same factor
  p: float  # loss.p
  agm_iterations: int  # K of the iterates in the record


class Change(NamedTuple):
  """One decision, as control.jsonl holds it."""

  name: str
  before: float
  asked: float | str  # text where it was no finite number
  after: float
  note: str  # why it is not as asked; '' if it is


class Answer(NamedTuple):
  """What came of one call of a controller."""

  settings: Settings
  changes: list[Change]
  stop: str  # reason for which it asks to stop; '' if it doesn't
  error: str = ''  # what went wrong in the call; '' if nothing
  lost: bool = False  # with its process, so that it knows no record

  def line(self, may_stop: bool) -> dict:
    """What control.jsonl holds of it, beside the step."""
    return {
      'changes': [change._asdict() for change in self.changes],
      'stop': self.stop,
      'stopped': bool(self.stop) and may_stop,
      'error': self.error,
      'lost': self.lost,
    }


def first_settings(config) -> Settings:
  """What holds until the first decision."""
  low, high = config.loss.clip_eps_low, config.loss.clip_eps_high
  return Settings(
    config.optim.learning_rate,
    high if math.isfinite(high) else low,
    config.loss.p,
    config.control.agm_iterations,
  )


def applied(
  hparams: base.HParams, first: Settings, settings: Settings
) -> base.HParams:
  """The traced configuration with what was decided.

  Args:
    hparams: as configured; a setting that was not decided leaves its bits.
    first: `first_settings` of the configuration.
    settings: that hold now.
  """
  if settings.learning_rate != first.learning_rate:
    # From a rate of 0 no factor leads anywhere: Adam's stays.
    factor = (
      settings.learning_rate / first.learning_rate
      if first.learning_rate
      else 1.0
    )
    hparams = hparams._replace(
      learning_rate=jnp.float32(settings.learning_rate),
      adam_learning_rate=hparams.adam_learning_rate * factor,
    )
  if settings.epsilon != first.epsilon:
    low = hparams.loss['clip_eps_low']
    moved = jnp.minimum(low * (settings.epsilon / first.epsilon), _LARGEST_LOW)
    hparams = hparams._replace(
      loss=hparams.loss
      | {
        'clip_eps_low': jnp.where(low < 1, moved, low),  # 1 is open
        'clip_eps_high': jnp.float32(settings.epsilon),
      }
    )
  if settings.p != first.p:
    hparams = hparams._replace(
      exponent=hparams.exponent._replace(start=jnp.float32(settings.p))
    )
  return hparams


def settings_of(record: Mapping, first: Settings) -> Settings:
  """The settings that held in a step, from its record."""
  held = {
    name: record[f'control/{name}']
    for name in Settings._fields
    if f'control/{name}' in record
  }
  return first._replace(**held)


class Controller:
  """A user's controller of one run, and what becomes of its answers.

  It must be a function of the records that it was given alone: a run that
  resumes, or loses it, hands those of the finished steps to a new one.
  """

  def __init__(self, config):
    """Imports the function; of a class, makes an object.

    A class is called without arguments, or with `config=`, a copy of the
    configuration, if it takes that.

    Args:
      config: validated, with control.function.

    Raises:
      ConfigError: there is no such function, or the class can't be called.
    """
    self._config = config
    control = config.control
    self._host = host_function.HostFunction(
      'control', control.function, control.timeout, config
    )

  def is_due(self, step: int) -> bool:
    """Whether it decides after a step."""
    return step % self._config.control.every == 0

  def ask(self, record: Mapping, settings: Settings) -> Answer:
    """Calls it once.

    Args:
      record: of the last step, as metrics.jsonl holds it.
      settings: that held in that step.
    """
    try:
      asked, stop = self._host.call('decisions', dict(record))
    except host_function.Failure as failure:
      is_lost = isinstance(failure, host_function.Lost)
      return Answer(settings, [], '', str(failure), is_lost)
    changes = [
      self._change(name, settings._asdict().get(name), value)
      for name, value in asked.items()
    ]
    decided = {c.name: c.after for c in changes if c.name in Settings._fields}
    return Answer(settings._replace(**decided), changes, stop)

  def held(self, settings: Settings) -> dict:
    """What a record says of the settings that it can change."""
    return {
      f'control/{name}': value
      for name, value in settings._asdict().items()
      if not _refusal(self._config, name)
    }

  def replay(self, records: Iterable[Mapping]) -> Iterator[tuple[int, Answer]]:
    """Hands it the records of finished steps, in their order.

    Yields:
      Each step after which it decides, and its answer, as if what it decided
      before had held. After one on which the controller was lost there is no
      other: a new one knows nothing.
    """
    settings = first_settings(self._config)
    for record in records:
      if self.is_due(record['step']):
        answer = self.ask(record, settings)
        settings = answer.settings
        yield record['step'], answer
        if answer.lost:
          return

  def _change(self, name, before, asked):
    """One decision within its bounds."""
    refusal = (
      'must be a finite number'
      if isinstance(asked, str)
      else _refusal(self._config, name)
    )
    if refusal:
      return Change(name, before, asked, before, refusal)
    low, high = (
      self._config.control[f'{name}_{end}'] for end in ('low', 'high')
    )
    after = min(max(asked, low), high)
    note = '' if after == asked else f'must be from {low} to {high}'
    if name == 'agm_iterations' and after != round(after):
      after, note = round(after), 'rounded'
    elif name == 'agm_iterations':
      after = round(after)
    return Change(name, before, asked, after, note)


def controller_of(config) -> Controller | None:
  """The controller that a configuration names; None if it names none.

  Raises:
    ConfigError: as of `Controller`.
  """
  return Controller(config) if config.control.function else None


def _refusal(config, name):
  """Why a setting can't be changed in this run; '' if it can."""
  taken, kind = losses.options(config.loss.name), config.exponent.kind
  loss = f'loss.name = {config.loss.name!r}'
  reasons = {
    'batch_size': ((True, 'the shape of the program is fixed'),),
    'epsilon': (
      ('clip_eps_high' not in taken, f'{loss} has no clip range'),
      (math.isinf(config.loss.clip_eps_high), 'loss.clip_eps_high is inf'),
      (config.tracking.rate > 0, 'tracking.rate moves the range'),
    ),
    'p': (
      ('p' not in taken, f'{loss} has no order'),
      (kind != 'fixed', f'exponent.kind = {kind!r} moves the order'),
    ),
  }
  return next((why for holds, why in reasons.get(name, ()) if holds), '')
