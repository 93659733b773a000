"""The plan: which mean of the ratios, and does the QK-clip matter?

Confirmatory. GSPO and HMPO each at its own best learning rate and clip range,
found on seeds of their own; all other arms at GSPO's settings, for how and not
for whether: one clip mask for both means, one shared clip range, the halves of
their difference (token weights, clip mask), other optimizers and orders. The
gradient is not norm-clipped and old log-probabilities are recomputed, so that
every rollout starts at ratios of 1.

Command   python experiments/compare.py --config=configs/plan.py
          python experiments/report.py --workdir=runs/plan
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU takes hours; a GPU or TPU runs the same command
"""

from hmpo_jax.plan import design

# Below what calm training reaches, so that the clip has something to do.
_TAU = 8.


def get_config():
  """15 variants on two tasks, ten seeds each."""
  variant = design.Variant
  gspo, hmpo = {'loss.p': 0.}, {'loss.p': -1.}
  # In the program that also clips, so that on and off differ in nothing else.
  no_clip = {'optim.tau': float('inf')}
  # Muon's step length ignores the gradient's scale, AdamW's too, but Muon's
  # direction doesn't hang on it coordinate by coordinate.
  adamw = {'optim.name': 'adamw', 'optim.learning_rate': 3e-4}
  adaptive = {'loss.p': 0., 'exponent.kind': 'adaptive'}
  return design.Plan(
      question='Does the harmonic mean of the ratios (HMPO) train better and '
      'more stably than the geometric one (GSPO), and does the QK-clip matter?',
      seeds=range(10),
      tasks={
          'sort': {},
          'addition': {
              'task.name': 'addition',
              'task.num_digits': 2,
              # Some more steps, and seeds differ widely in what they know.
              'warm_start.num_steps': 300
          },
      },
      base={
          'optim.tau': _TAU,
          'optim.monitor_tau': 1.5 * _TAU
      },
      tuning=design.Tuning(
          learning_rates=(1e-4, 3e-4, 1e-3),
          eps=(0.02, 0.05, 0.12),
          seeds=(1000, 1001, 1002)),
      variants={
          'gspo':
              variant(gspo, 'own', exploratory=False),
          'hmpo':
              variant(hmpo, 'own', exploratory=False),
          'gspo_no_clip':
              variant(gspo | no_clip, 'gspo', exploratory=False),
          'hmpo_no_clip':
              variant(hmpo | no_clip, 'hmpo', exploratory=False),
          'hmpo_same_mask':
              variant(
                  hmpo | {'loss.clip_center': 'geometric'},
                  'gspo',
                  note='the token weights of HMPO with the clip mask of GSPO'),
          'gspo_eps15':
              variant(gspo, 'gspo', clip_frac=0.15),
          'hmpo_eps15':
              variant(hmpo, 'gspo', clip_frac=0.15),
          'weights_only':
              variant(
                  {
                      'loss.p_grad': -1.,
                      'loss.p_clip': 0.
                  } | gspo,
                  'gspo',
                  note='HMPO\'s token weights, clipped by GSPO\'s mean'),
          'mask_only':
              variant(
                  {
                      'loss.p_grad': 0.,
                      'loss.p_clip': -1.
                  } | gspo,
                  'gspo',
                  note='GSPO\'s token weights, clipped by HMPO\'s mean'),
          'arithmetic':
              variant({'loss.p': 1.}, 'gspo'),
          'learnable':
              variant(gspo | {'exponent.kind': 'learnable'}, 'gspo'),
          'adaptive':
              variant(adaptive, 'gspo', note='the A-H gap moves p'),
          'yoked':
              variant(
                  gspo,
                  'gspo',
                  replays='adaptive',
                  note='the p of another seed of adaptive'),
          'gspo_adamw':
              variant(gspo | adamw, 'gspo'),
          'hmpo_adamw':
              variant(hmpo | adamw, 'gspo'),
      },
      contrasts=[
          design.Contrast('hmpo', 'gspo', 'area'),
          design.Contrast('hmpo', 'gspo', 'collapse'),
          design.Contrast('gspo', 'gspo_no_clip', 'area'),
          design.Contrast('hmpo', 'hmpo_no_clip', 'area'),
      ])
