"""Whether a run can be made longer, so that it is what a longer run would be.

The steps of a run depend on its number in two ways: the last one is evaluated
and measured, which no parameter depends on, and an order that is laid out over
the run, or a controller, may go another way.
"""

from collections.abc import Mapping

_SCHEDULES = ('linear', 'cosine', 'replayed')  # kinds of exponent


def refusal(config: Mapping, num_steps: int) -> str:
  """Why a run can't have another number of steps; '' if it can.

  Args:
    config: of the run as it is, nested.
    num_steps: wanted.
  """
  exponent, controller = config['exponent'], config['control']['function']
  if num_steps < config['num_steps']:
    return "a run can't be made shorter"
  if exponent['kind'] in _SCHEDULES:
    return (
      f"a run can't be made longer with config.exponent.kind = "
      f'{exponent["kind"]!r}: its order was laid out for the shorter one'
    )
  if controller:
    return (
      f"a run can't be made longer with config.control.function = "
      f'{controller!r}: it may decide otherwise in a longer one'
    )
  return ''
