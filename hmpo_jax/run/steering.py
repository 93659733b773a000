"""The settings of one run while a controller may change them."""

import pathlib

from hmpo_jax import base
from hmpo_jax.run import control
from hmpo_jax.run import records as run_records


class Steering:
  """What holds in the next step, and whom it is asked of.

  Attributes:
    controller: None where nothing changes.
    settings: that hold in the next step.
  """

  def __init__(
    self,
    config,
    controller: control.Controller | None,
    workdir: pathlib.Path,
    note,
  ):
    """Starts with what is configured.

    Args:
      config: of the run.
      controller: of the configuration, which has seen no record yet.
      workdir: run folder.
      note: takes a line for the user.
    """
    self.controller = controller
    self._function = config.control.function
    self._workdir, self._note = workdir, note
    self._first = self.settings = control.first_settings(config)

  def applied(self, hparams: base.HParams) -> base.HParams:
    """The traced part of the configuration for the next step."""
    return control.applied(hparams, self._first, self.settings)

  def held(self) -> dict:
    """What the record of a step says of the settings that may change."""
    return self.controller.held(self.settings) if self.controller else {}

  def ask(self, record: dict) -> control.Answer | None:
    """What the controller makes of the last record; it holds from now on.

    Returns:
      None where no decision is due.
    """
    step = record['step']
    if not self.controller or not self.controller.is_due(step):
      return None
    answer = self.controller.ask(record, self.settings)
    self.settings = answer.settings
    if answer.error:
      self._note(
        f'warning: step {step}: config.control.function = '
        f'{self._function!r} {answer.error}; all stays as it is'
      )
    return answer

  def catch_up(self, step: int) -> None:
    """Shows a new controller all records but those on which one was lost.

    Args:
      step: the last one, for what the user is told.
    """
    if not self.controller:
      return
    settings = self._first
    log = run_records.read_control(self._workdir)
    lost = {line['step'] for line in log if line.get('lost')}
    for number, answer in self.controller.replay(
      record
      for record in run_records.read(self._workdir)
      if record['step'] not in lost
    ):
      settings = answer.settings
      if answer.lost:
        self._note(
          f'warning: config.control.function = {self._function!r} '
          f'{answer.error} on the record of step {number}; it is not '
          f'shown those up to step {step}'
        )
        return
    if settings != self.settings:
      self._note(
        f'warning: config.control.function = {self._function!r} decides '
        f'otherwise than it did up to step {step}, on the same records; what '
        'it decided then holds'
      )
