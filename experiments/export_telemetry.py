"""Packs the records of a plan into a bundle with a data card.

  python experiments/compare.py --config=configs/plan_telemetry.py
  python experiments/export_telemetry.py --workdir=runs/plan_telemetry \
      --out=results/agm_telemetry

copies metrics.jsonl and config.json of every finished run and writes README.md,
the data card, whose table is computed from those records.
"""

import json
import pathlib
import shutil

from absl import app
from absl import flags

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import text
from hmpo_jax.config import files as config_files
from hmpo_jax.kernels import losses
from hmpo_jax.run import command_line
from hmpo_jax.run import control
from hmpo_jax.run import controllers
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a plan, finished.', required=True
)
_OUT = flags.DEFINE_string('out', 'results/agm_telemetry', 'Folder to write.')

_COLLAPSED = 0.5  # share of the first held-out reward that is left
_DETECTORS = ('FullConvergence', 'ClipNormalisedConvergence')
_COLUMNS = (
  'run',
  'held-out reward',
  'largest gap A - H',
  'order p',
  'clipped low, high',
  'largest logit / tau',
  'steps with QK-clip',
  'updates skipped',
  'end by A, H',
  'end by clip-normalised',
)


def main(_) -> None:
  """Writes the bundle."""
  with command_line.reported():
    workdir, out = pathlib.Path(_WORKDIR.value), pathlib.Path(_OUT.value)
    plan = _plan(workdir / 'plan.json')
    rows = [_export(workdir, out, run['folder']) for run in plan['runs']]
    description = json.loads(
      (out / plan['runs'][0]['folder'] / run_folder.CONFIG).read_text(
        encoding='utf-8'
      )
    )
    (out / 'README.md').write_text(
      _card(plan, rows, description), encoding='utf-8'
    )
  print(f'{len(rows)} runs in {out}')


def _plan(file):
  """Name and runs of a plan."""
  try:
    plan = json.loads(file.read_text(encoding='utf-8'))
    folders = [run['folder'] for run in plan['runs']]
    if not folders or not plan['name']:
      raise ValueError('it has no run')
  except (ValueError, KeyError, TypeError) as error:
    raise config_lib.ConfigError(
      f'--workdir={file.parent}: {file.name} is not that of a plan ({error!r})'
    ) from error
  return plan


def _export(workdir, out, name):
  """Copies one run; returns its row of the table."""
  source, target = workdir / name, out / name
  if not (source / 'summary.json').exists():
    raise config_lib.ConfigError(
      f'--workdir={workdir}: {name} is not finished; run the plan first'
    )
  target.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(source / run_records.METRICS, target / run_records.METRICS)
  description = json.loads((source / run_folder.CONFIG).read_text('utf-8'))
  description['config']['warm_start']['folder'] = ''  # a cache, of that plan
  files.write_json(target / run_folder.CONFIG, description)
  records = run_records.read(source)
  config = config_files.load(str(source / run_folder.CONFIG), {})
  column = lambda key: [record[key] for record in records]
  first = json.loads((source / 'start.json').read_text('utf-8'))['eval/reward']
  last = records[-1]['eval/reward']
  fallen = ' (collapsed)' if last < _COLLAPSED * first else ''
  mean = lambda key: sum(column(key)) / len(records)
  skipped = sum(
    sum(column(key))
    for key in records[0]
    if key.startswith('skipped/') and key != 'skipped/in_a_row'
  )
  return (
    f'`{name}`',
    f'{first:.2f} to {last:.2f}{fallen}',
    f'{max(column("agm/gap")):.3f}',
    _orders(config, records),
    f'{mean("clip/low_frac"):.0%}, {mean("clip/high_frac"):.0%}',
    f'{max(column("qk/max_logit")) / config.optim.tau:.2f}',
    str(sum(column('muon_clip_active'))),
    str(skipped),
    *(_end(config, records, name) for name in _DETECTORS),
  )


def _orders(config, records):
  """First and last order of the mean, of a loss that has one."""
  if 'p' not in losses.options(config.loss.name):
    return text.NOTHING
  first, last = (f'{r["exponent/p"]:.2g}' for r in (records[0], records[-1]))
  return first if first == last else f'{first} to {last}'


def _end(config, records, detector):
  """Step after which a detector would have ended the run."""
  config = config.copy_and_resolve_references()
  config.control.function = f'{controllers.__name__}:{detector}'
  for step, answer in control.Controller(config).replay(records):
    if answer.stop:
      return str(step)
  return 'never'


def _card(plan, rows, description):
  config = config_lib.flat(description['config'])
  versions = ', '.join(
    f'{name} {version}' for name, version in description['versions'].items()
  )
  return _CARD.format(
    num_runs=len(rows),
    num_steps=config['num_steps'],
    episodes=config['rollout.num_prompts'] * config['rollout.group_size'],
    updates=config['train.num_epochs'] * config['train.num_minibatches'],
    task=config['task.name'],
    num_seeds=len(
      {pathlib.PurePath(run['folder']).name for run in plan['runs']}
    ),
    eval_every=config['eval.every'],
    history=config['control.history'],
    layers=config['model.num_layers'],
    width=config['model.embed_dim'],
    name=plan['name'],
    commit=description['commit'],
    versions=versions,
    device=description['device'],
    table=text.table(list(_COLUMNS), rows),
  )


_CARD = """# AGM telemetry: records of real runs

For those who develop controllers that read the metrics.jsonl of a run: {num_runs}
runs of {num_steps} steps, each step {episodes} responses and {updates} updates of
a small transformer (task: {task}).

Made by

```
python experiments/compare.py --config=configs/{name}.py
python experiments/export_telemetry.py --workdir=runs/{name}
```

at commit {commit} ({versions}; device: {device}). Records depend on nothing else:
on the same versions, device and number of CPU threads the commands give the
same bytes.

`arithmetic_history` and `harmonic_history` of a record are A and H of its last
{history} steps, newest last; the iterates of one step are `agm/arithmetic_iterates`
and `agm/harmonic_iterates`.

Each folder holds

- `metrics.jsonl`, one record per step as the run wrote it. What every record
  obeys stands in `hmpo_jax/run/agm_record.schema.json`, field by field with unit and
  source; the metrics beside those fields are in docs/telemetry.md.
- `config.json`, all that is needed to do the run again:
  `python experiments/main.py --config=FOLDER/config.json`.

{table}

The last two columns are the step after which the detector of "full convergence"
(20 records with a mean rate above 0.99 and a variance below 1e-6) would have
ended the run, by `python experiments/replay_controller.py --workdir=FOLDER
--controller=hmpo_jax.run.controllers:FullConvergence`, and with
`ClipNormalisedConvergence` on the clip-normalised histories.

What it is not: seeds in each cell: {num_seeds}, so no comparison of the means;
{layers} layers of width {width}, not a language model; `td_mean` is 0 but for
rounding where advantages are centred in each group; `eval_reward` is measured every
{eval_every} steps, where `eval_is_new` is true, and repeated between. MIT licence, as the code; the data holds nothing about
persons.
"""

if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_all)
