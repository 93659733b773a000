"""Moving: do orders that move do better than fixed ones?

Exploratory. `adaptive` moves p by the run's own A-H gap (down above its upper
quartile, up below its lower one), `yoked` runs another seed's orders again
without what they answer to; `learnable` follows the gradient of the objective
in p on its own scale, `placebo` goes against it by the same rule. HoelderPO's
schedule from 2 to -2 and its reverse run at the published range of 0.2
(https://arxiv.org/abs/2605.12058), beside the fixed orders that they pass.

Command   python experiments/compare.py --config=configs/plan_moving.py
          python experiments/report.py --workdir=runs/plan_moving
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design


def get_config():
  """Ten arms on sorting, 16 seeds."""
  variant = design.Variant
  wide = {'loss.clip_eps_low': 0.2, 'loss.clip_eps_high': 0.2}
  gspo = {'loss.p': 0.0}
  learnable = gspo | {
    'exponent.kind': 'learnable',
    'exponent.normalize': True,
    'exponent.rate': 0.01,
  }

  def schedule(start, end):
    return wide | {
      'loss.p': start,
      'exponent.kind': 'linear',
      'exponent.end': end,
      'exponent.num_steps': 100.0,
    }

  return design.Plan(
    question='Do orders that move train better than fixed ones?',
    exploratory=True,
    seeds=range(100, 116),
    tasks={'sort': {}},
    base={
      'num_steps': 100,
      'loss.clip_eps_low': 0.05,
      'loss.clip_eps_high': 0.05,
      'optim.tau': float('inf'),
      'eval.every': 5,
      'mechanism.every': 25,
      'checkpoint.every': 50,
    },
    target=0.7,
    variants={
      'gspo': variant(gspo),
      'adaptive': variant(
        gspo
        | {
          'exponent.kind': 'adaptive',
          'exponent.gap_quantiles': True,
          'exponent.gap_low': 0.25,
          'exponent.gap_high': 0.75,
          'exponent.trend': 1e9,  # the level alone decides
        },
        note='the A-H gap, by its own quartiles, moves p',
      ),
      'yoked': variant(
        gspo, replays='adaptive', note='the p of another seed of adaptive'
      ),
      'learnable': variant(learnable),
      'placebo': variant(learnable | {'exponent.placebo': True}),
      'gspo_wide': variant(gspo | wide),
      'falling': variant(schedule(2.0, -2.0), note="HoelderPO's schedule"),
      'rising': variant(schedule(-2.0, 2.0)),
      'p_two_wide': variant({'loss.p': 2.0} | wide),
      'p_minus_two_wide': variant({'loss.p': -2.0} | wide),
    },
    reference='gspo',
  )
