"""Wrong shapes, dtypes and options of every loss: raised when traced."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import clips
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import ratios
from tests import loss_batches

_CASES = loss_batches.CASES


class ErrorsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('logprobs_rank', 'logprobs', (5,), np.float32, 'rank'),
    ('logprobs_shape', 'logprobs', (5, 7), np.float32, 'shape'),
    ('logprobs_type', 'logprobs', (5, 6), np.int32, 'type'),
    ('old_shape', 'old_logprobs', (1, 6), np.float32, 'shape'),
    ('mask_shape', 'mask', (5, 1), bool, 'shape'),
    ('mask_float', 'mask', (5, 6), np.float32, 'type'),
    ('mask_int', 'mask', (5, 6), np.int32, 'type'),
    ('advantages_column', 'advantages', (5, 1), np.float32, 'shape'),
    ('advantages_of_tokens', 'advantages', (5, 7), np.float32, 'shape'),
    ('advantages_of_columns', 'advantages', (6,), np.float32, 'shape'),
    ('advantages_scalar', 'advantages', (), np.float32, 'shape'),
    ('advantages_type', 'advantages', (5,), np.int32, 'type'),
  )
  def test_raises_when_traced(self, field, shape, dtype, message):
    batch = loss_batches.scattered()._replace(
      **{field: jax.ShapeDtypeStruct(shape, dtype)}
    )
    for name, case in _CASES:
      with self.subTest(name), self.assertRaisesRegex(AssertionError, message):
        jax.eval_shape(
          lambda *b, case=case: case.loss(*b, **case.settings), *batch
        )

  def test_advantages_of_tokens_are_for_gspo_token_only(self):
    batch = loss_batches.scattered()._replace(advantages=jnp.ones((5, 6)))
    for name, case in _CASES:
      trace = lambda case=case: jax.eval_shape(
        case.loss, *batch, **case.settings
      )
      if name == 'gspo_token':
        trace()
      else:
        with self.assertRaisesRegex(AssertionError, 'shape'):
          trace()

  def test_unknown_options_say_what_is_known(self):
    batch = loss_batches.scattered()
    power_mean = functools.partial(
      losses.power_mean_loss, *batch, p=0.0, **loss_batches.CLIP
    )
    for option, known in (
      ('clip', losses.CLIPS),
      ('clip_center', clips.CENTERS),
      ('aggregation', ratios.AGGREGATIONS),
    ):
      with self.assertRaisesRegex(
        ValueError, f"^{option}='rows': must be one of {', '.join(known)}$"
      ):
        jax.eval_shape(functools.partial(power_mean, **{option: 'rows'}))
    for name, case in _CASES:
      if name not in ('dapo', 'dr_grpo'):  # theirs is set
        with self.assertRaisesRegex(ValueError, "aggregation='rows': must be"):
          jax.eval_shape(
            functools.partial(case.loss, **case.settings, aggregation='rows'),
            *batch,
          )

  def test_options_of_the_sequence_clip_are_refused_elsewhere(self):
    batch = loss_batches.scattered()
    for clip in ('token', 'token_log'):
      for option in ({'clip_center': 'unbiased'}, {'p_clip': 0.0}):
        with self.assertRaisesRegex(ValueError, 'must be one and None with'):
          jax.eval_shape(
            functools.partial(
              losses.power_mean_loss,
              p=0.0,
              clip=clip,
              **option,
              **loss_batches.CLIP,
            ),
            *batch,
          )

  def test_options_are_the_keyword_arguments(self):
    self.assertEqual(
      losses.options('reinforce'),
      ('aggregation', 'length_scale', 'log_ratio_max'),
    )
    for name, loss in losses.LOSSES.items():
      keywords = losses.options(name)
      self.assertContainsSubset(keywords, losses.OPTIONS)
      for _, case in _CASES:
        if case.loss.func is loss:
          self.assertContainsSubset(case.settings, keywords)
          self.assertContainsSubset(case.loss.keywords, keywords)
    self.assertLen(set(losses.OPTIONS), len(losses.OPTIONS))

  def test_every_loss_has_its_cases(self):
    self.assertEqual(
      {case.loss.func for _, case in _CASES}, set(losses.LOSSES.values())
    )


if __name__ == '__main__':
  absltest.main()
