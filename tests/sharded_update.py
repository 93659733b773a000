"""One update on a batch that lies on four devices, and on one; prints both.

Run by sharding_test.py, as devices must be counted before JAX starts.
"""

import functools
import json

import jax
import numpy as np

from hmpo_jax.training import update
from tests import small


def main() -> None:
  """Prints the largest differences as JSON."""
  jax.config.update('jax_num_cpu_devices', 4)
  config = small.config(
    optim__name='muon_clip',
    optim__qk_clip='weights',
    optim__tau=0.001,
    train__num_microbatches=2,
  )
  static, hparams, state = small.start(config)
  learned = update.Learned(state.params, state.opt_state, state.controls)
  batch = small.batch(static, state, hparams)
  run = jax.jit(functools.partial(update.update, static))
  alone, reports = run(learned, hparams, batch)

  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  place = lambda spec: jax.sharding.NamedSharding(mesh, spec)
  rows = lambda x: jax.device_put(
    x, place(jax.P('data') if x.ndim else jax.P())
  )
  spread, spread_reports = run(
    jax.device_put(learned, place(jax.P())), hparams, jax.tree.map(rows, batch)
  )

  quarter = lambda i: jax.tree.map(
    lambda x: x[8 * i : 8 * i + 8] if x.ndim else x, batch
  )
  own = [run(learned, hparams, quarter(i))[1].max_logits for i in range(4)]
  gap = lambda x, y: float(np.max(np.abs(np.float64(x) - np.float64(y))))
  print(
    json.dumps(
      {
        'devices': len(spread_reports.max_logits.sharding.device_set),
        'max_logits': gap(spread_reports.max_logits, reports.max_logits),
        'largest': float(np.max(reports.max_logits)),
        'spread_of_quarters': float(np.max(np.std(own, axis=0))),
        'clipped': float(reports.metrics['qk/clipped_frac']),
        'params': max(
          jax.tree.leaves(jax.tree.map(gap, spread.params, alone.params))
        ),
        'moved': max(
          jax.tree.leaves(jax.tree.map(gap, alone.params, learned.params))
        ),
      }
    )
  )


if __name__ == '__main__':
  main()
