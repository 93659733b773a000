"""What a notebook does once it has found the source tree.

Uses the standard library alone: on a clean runtime nothing else is sure to be
there.
"""

import base64
import configparser
import importlib
import importlib.metadata
import io
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


class SetupError(Exception):
  """Shown by IPython as its message alone, without a traceback."""

  def _render_traceback_(self):
    return [f'error: {self}']


def prepare(*extras: str) -> None:
  """Installs what is missing and makes the source tree the one in use.

  It is imported as it lies there, whatever is installed, and is the folder that
  the kernel works in from now on.

  Args:
    *extras: of setup.cfg, whose requirements are needed too.

  Raises:
    SetupError: pip could not install what is missing.
  """
  wanted = requirements(*extras)
  missing = [line for line in wanted if not is_met(line)]
  if missing:
    print('installing', ', '.join(missing), flush=True)
    install(missing, [line for line in wanted if is_met(line)])
    importlib.invalidate_caches()
  sys.path[:0] = [str(ROOT)]
  os.chdir(ROOT)
  _say_where()


def requirements(*extras: str) -> list[str]:
  """What the package needs, as setup.cfg says, in the lines of pip.

  Args:
    *extras: whose lines are added.
  """
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg', encoding='utf-8')
  texts = [parser['options']['install_requires']]
  texts += [parser['options.extras_require'][extra] for extra in extras]
  lines = (line.strip() for text in texts for line in text.splitlines())
  return list(dict.fromkeys(line for line in lines if line))


def is_met(line: str) -> bool:
  """Whether a requirement without extras of its own is installed."""
  # IPython's kernel needs packaging.
  from packaging import requirements as packaging_lib  # noqa: PLC0415

  requirement = packaging_lib.Requirement(line)
  try:
    version = importlib.metadata.version(requirement.name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return requirement.specifier.contains(version, prereleases=True)


def install(missing: list[str], met: list[str]) -> None:
  """Has pip add packages and leave those that are there as they are.

  Without the constraints it could replace the runtime's jax, which is the one
  that fits its accelerator, by one that a newer library asks for.

  Args:
    missing: requirements to install.
    met: requirements whose packages keep their versions.

  Raises:
    SetupError: pip failed.
  """
  with tempfile.NamedTemporaryFile(
    'w', suffix='.txt', encoding='utf-8'
  ) as kept:
    kept.write('\n'.join(map(_pin, [*met, *_beside(met)])))
    kept.flush()
    command = [
      sys.executable,
      '-m',
      'pip',
      'install',
      '--quiet',
      '--constraint',
      kept.name,
      *missing,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    raise SetupError(f'pip could not install {", ".join(missing)}: {lines[-1]}')


def show(figure, text: str) -> None:
  """Shows a matplotlib figure below the cell.

  Args:
    figure: made without pyplot.
    text: what it shows, for those who can't see it.
  """
  from IPython import display  # noqa: PLC0415

  png = io.BytesIO()
  figure.savefig(png, format='png', dpi=110)
  display.display(
    {
      'image/png': base64.b64encode(png.getvalue()).decode(),
      'text/plain': text,
    },
    metadata={'image/png': {'alt': text}},
    raw=True,
  )


def _pin(line):
  from packaging import requirements as packaging_lib  # noqa: PLC0415

  name = packaging_lib.Requirement(line).name
  return f'{name}=={importlib.metadata.version(name)}'


def _beside(met):
  """jaxlib, which setup.cfg leaves to jax."""
  return ['jaxlib'] if any(line.startswith('jax') for line in met) else []


def _say_where():
  import jax  # noqa: PLC0415

  from hmpo_jax.run import compile_cache  # noqa: PLC0415

  compile_cache.switch_on()
  python = '.'.join(map(str, sys.version_info[:3]))
  count = len(jax.devices())
  print(
    f'Python {python}, jax {jax.__version__}, {count} x '
    f'{jax.devices()[0].device_kind} ({jax.default_backend()})'
  )
