"""A file of controllers, and small runs in which they decide."""

from tests import small
from tests import user_file

# As users would write them; what stands for ANSWER is what `asks` returns.
TEXT = """
import os, time
import numpy as np
def lower(record):
  return {'learning_rate': .01 / (1 + record['step']), 'epsilon': .2}
def stop(record):
  return {'early_stop': {'should_stop': record['step'] >= 2, 'reason': 'ripe'}}
def nested(record):
  return {'phase': 'exploration', 'early_stop': {'should_stop': False},
          'hyperparams': {'learning_rate': .002, 'epsilon': .3,
                          'batch_size': 384, 'agm_iterations': 4.8}}
def asks(record): return ANSWER
class Moody:
  def __init__(self): self.calls = 0
  def __call__(self, record):
    self.calls += 1
    if record['step'] == 2: raise ValueError('bad\\nmood')
    return {'p': -.1 * self.calls}
class Frail:
  def __init__(self): self.calls = 0
  def __call__(self, record):
    self.calls += 1
    if record['step'] == 2: os._exit(1)
    return {'p': -.1 * self.calls}
class Picky:
  def __init__(self, config): self.low = config.loss.p - 1; config.loss.p = 9.
  def __call__(self, record): return {'p': self.low}
class Broken:
  def __init__(self): raise OSError('no disk')
def hang(record): time.sleep(30)
def hangs_when_asked_again(record):
  import pathlib
  if pathlib.Path(__file__).with_name('again').exists(): time.sleep(30)
  return {'p': -.5}
def clears(record):
  for value in record.values():
    if isinstance(value, list): value.clear()
  record.clear()
class Plain: pass
class BadText(Exception):
  def __str__(self): raise SystemExit
def bad_text(record): raise BadText
class Bad:
  def __repr__(self): raise ValueError('no text')
  __str__ = __bool__ = __float__ = __repr__
class BadDict(dict):
  def get(self, *_): raise ValueError('no get')
number = 3
"""


class ControllerFileTest(user_file.UserFileTest):
  """Runs with a controller of the file."""

  TEXT = TEXT

  def config(self, function='', **overrides):
    """A small run with a controller of the file."""
    name = f'{self.file}:{function}' if function else ''
    return small.config(
      **(
        {
          'num_steps': 4,
          'eval__every': 4,
          'checkpoint__every': 2,
          'control__function': name,
        }
        | overrides
      )
    )
