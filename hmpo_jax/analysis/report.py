"""Writes the report of a plan: report.md, its figures and its tables."""

import pathlib
import shutil

import pandas

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import findings as findings_lib
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import pages
from hmpo_jax.analysis import pictures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import rungs
from hmpo_jax.analysis import styles
from hmpo_jax.analysis import tables
from hmpo_jax.analysis import text

_PAGE = 'report.md'
_MADE = ('.png', '.svg', '.csv', '.json')
_DIGITS = '%.6g'


def write(
  workdir: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  draw: bool = True,
) -> pathlib.Path:
  """Reports what a plan folder holds so far.

  Args:
    workdir: folder of the plan.
    out: folder of the report; None: report/ in the plan's. Its figures/ and
      tables/ are made anew. Elsewhere it stands alone: plan.json, and of each
      cell the configuration of its first seed, lie beside it.
    draw: whether to make the figures, which take most of the time.

  Returns:
    The path of report.md.

  Raises:
    ConfigError: the folder holds no plan.
  """
  plan = records.read(workdir)
  out = pathlib.Path(out or pathlib.Path(workdir) / 'report')
  seeds = outcomes.per_seed(plan)
  findings = findings_lib.Findings(plan, seeds, _tables(plan, seeds))
  written = _write_tables(findings, _empty(out / 'tables'))
  folder = _empty(out / 'figures')
  figures = []
  with styles.settings():
    for picture in (
      pictures.make(plan, seeds, findings.tables['contrasts']) if draw else ()
    ):
      styles.save(picture.figure, folder / picture.name)
      figures.append(picture)
  page = pages.Page(findings).render(figures, written)
  file = out / _PAGE
  file.write_text(page, encoding='utf-8')
  place = pathlib.Path(workdir).resolve()
  if place not in (out.resolve(), out.resolve().parent):
    _copy_origin(plan, pathlib.Path(workdir), out)
  return file


def _tables(plan, seeds):
  alpha, horizon = plan.about['alpha'], plan.about['horizon']
  return {
    'contrasts': contrasts.make(plan, seeds),
    'variants': tables.per_variant(seeds, alpha),
    'targets': tables.targets(seeds, horizon, alpha),
    'risk': tables.risk(seeds, alpha),
    'ladders': rungs.per_variant(plan, seeds),
    'rungs': rungs.per_seed(plan, seeds),
  }


def _write_tables(findings, folder):
  """CSV files; returns their names."""
  plan = findings.plan
  smooth = tables.smoothed(plan, 'reward/mean', pictures.window(plan))
  everything = (
    {'seeds': findings.seeds}
    | findings.tables
    | {
      'heldout': plan.heldout,
      'reward': tables.across_seeds(smooth, 'reward/mean'),
      'tuning': plan.tuning,
    }
  )
  if not plan.about['ladders']:
    del everything['ladders'], everything['rungs']
  for name, frame in everything.items():
    if frame is not None:
      _save(frame, folder / f'{name}.csv')
  return [f'{name}.csv' for name, f in everything.items() if f is not None]


def _copy_origin(plan, workdir, out):
  """What a report without its plan's folder is made from."""
  shutil.copyfile(workdir / 'plan.json', out / 'plan.json')
  folder = _empty(out / 'configs')
  for run in plan.about['runs']:
    config = workdir / run['folder'] / 'config.json'
    if run['seed'] == plan.about['seeds'][0] and config.exists():
      name = text.slug(f'{run["task"]}-{run["variant"]}')
      shutil.copyfile(config, folder / f'{name}.json')


def _save(frame: pandas.DataFrame, file: pathlib.Path) -> None:
  frame.to_csv(file, index=False, float_format=_DIGITS, lineterminator='\n')


def _empty(folder):
  """A folder without what an earlier report left; what else is there stays."""
  folder.mkdir(parents=True, exist_ok=True)
  if (folder.parent / _PAGE).exists():
    for file in folder.iterdir():
      if file.suffix in _MADE:
        file.unlink()
  return folder
