"""Runs one configuration: main.py --config=configs/hmpo.py [--workdir=...].

Any key is overridden as --config.loss.p=-0.5; --config=RUN/config.json repeats
a run. The same command on the same folder resumes an interrupted run and prints
the summary of a finished one; with a larger config.num_steps it goes on.
"""

from absl import app
from absl import flags
import jax

from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.run import command_line
from hmpo_jax.run import trainer

_CONFIG = flags.DEFINE_string(
  'config',
  None,
  'Configuration: a file of configs/, or the config.json of '
  'a run; --config.KEY=VALUE overrides a key.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder; runs/<name of the configuration> if unset.'
)


def main(run) -> None:
  """Trains, or resumes, and says so in one line where the input is bad."""
  with command_line.reported():
    trainer.train(*run)


def parse_flags(argv: list[str]):
  """Parses the command line; returns configuration and run folder."""
  rest = command_line.parse(argv)
  with command_line.reported():
    overrides = dict(map(command_line.override, rest))
    if not _CONFIG.value:
      raise config_lib.ConfigError(
        'no configuration: give one as --config=configs/hmpo.py'
      )
    config = config_files.load(_CONFIG.value, overrides)
  return (
    config,
    _WORKDIR.value or f'runs/{config_files.run_name(_CONFIG.value)}',
  )


if __name__ == '__main__':
  jax.config.config_with_absl()
  app.run(main, flags_parser=parse_flags)
