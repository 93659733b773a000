"""MuonClip: Muon as it is, then the QK-clip."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon
from hmpo_jax.optim import muon_clip
from tests import attention_layouts as layouts
from tests import attention_reference as reference
from tests import muon_reference


class MuonClipTest(absltest.TestCase):
  def test_clip_comes_last(self):
    layout = layouts.LAYOUTS['grouped_with_bias']
    joint = optax.contrib.MuonDimensionNumbers(1, (2, 3))
    options = muon_reference.HPARAMS | {
      'dimension_numbers': lambda params: jax.tree.map(
        lambda x: joint if x.ndim == 4 else None, params
      )
    }
    base = muon.muon(**options)
    clipped = muon_clip.muon_clip(
      **options, tau=100.0, attention=layout.blocks, alpha=0.3
    )
    grads = layouts.normal(jax.tree.map(np.shape, layout.params), 3)
    stats = [[400.0, 50.0, 900.0, 250.0], [130.0, 101.0, -np.inf, 7.0]]

    @jax.jit
    def run(params):
      plain, _ = base.update(grads, base.init(params), params)
      after, state = clipped.update(
        grads, clipped.init(params), params, max_logits=jnp.array(stats)
      )
      return plain, after, state[-1].clip_count

    plain, after, count = run(layout.params)
    np.testing.assert_array_equal(count, np.array(stats) > 100)
    factors, _ = reference.factors(
      layout, reference.gammas(layout, [stats], 100.0), 0.3
    )

    def check(param, before, after, factor):
      kept = factor == 1
      np.testing.assert_array_equal(after[kept], before[kept])
      expected = factor * (np.float64(param) + before) - param
      np.testing.assert_allclose(after, expected, rtol=0, atol=1e-6)

    jax.tree.map(
      check,
      layout.params,
      jax.tree.map(np.asarray, plain),
      jax.tree.map(np.asarray, after),
      factors,
    )

  def test_statistics_are_required(self):
    layout = layouts.LAYOUTS['single_layer']
    tx = muon_clip.muon_clip(
      1.0,
      tau=1.0,
      attention=layout.blocks,
      dimension_numbers=lambda params: jax.tree.map(lambda _: None, params),
      adam_learning_rate=1.0,
    )
    with self.assertRaisesRegex(TypeError, 'max_logits'):
      tx.update(layout.params, tx.init(layout.params), layout.params)


if __name__ == '__main__':
  absltest.main()
