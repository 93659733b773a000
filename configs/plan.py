"""The plans that answer the question, by name and in the order to run them.

  ladder      how large may a step be under each mean? (confirmatory, two)
  calm        what does the mean change where training is calm? (one)
  moving      do orders that move do better than fixed ones? (exploratory)
  logits      does the QK-clip help where logits grow? (one)
  own         GSPO and HMPO, each at its own best settings (one)

The five confirmatory contrasts are one family, which Holm's correction is for.

Command   python experiments/compare.py --config=configs/plan.py:ladder
          python experiments/report.py --workdir=runs/plan_ladder
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU takes about an hour for each; a GPU or TPU runs the
          same command
"""

from hmpo_jax.config import files as config_files

_PLANS = ('ladder', 'calm', 'moving', 'logits', 'own')


def get_config(name='ladder'):
  """The plan of that name, as configs/plan_NAME.py returns it."""
  if name not in _PLANS:
    raise ValueError(f'{name!r}: must be one of {", ".join(_PLANS)}')
  return config_files.read(f'{__file__.removesuffix(".py")}_{name}.py')
