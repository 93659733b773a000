"""What a workload asks of a device, by hand; no rate is asserted."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.bench import limits
from experiments.bench import timing
from experiments.bench import workloads

# 4 projections of 2x2 (2 of them for one key head of two: 2x1) and 3 of 2x3.
_WORKLOAD = workloads.Workload(
  name='tiny',
  num_layers=2,
  embed_dim=2,
  num_heads=2,
  head_dim=1,
  mlp_dim=3,
  vocab_size=5,
  num_prompts=1,
  group_size=2,
  prompt_len=3,
  response_len=2,
  num_kv_heads=1,
)
_MATRICES = 2 * (2 * (4 + 2) + 3 * 6)  # of both layers
_HEAD = 5 * 2


class LimitsTest(parameterized.TestCase):
  def test_weights_by_hand(self):
    self.assertEqual(_WORKLOAD.layer_matrices, _MATRICES)
    # Two norms of 2 in each layer, and one at the end.
    self.assertEqual(_WORKLOAD.num_params, _MATRICES + _HEAD + 5 * 2)

  @parameterized.parameters(('float32', 4), ('bfloat16', 2))
  def test_bytes_by_hand(self, dtype, width):
    workload = _WORKLOAD._replace(dtype=dtype)
    # 2 tokens; a key and a value of 1 in 2 layers; the prompt's 3 at each
    # token, and of each response first 1, then 2.
    cached = 2 * 2 * (2 * 3 + 2 * (1 + 2))
    self.assertEqual(
      limits.rollout_bytes(workload), width * (2 * workload.num_params + cached)
    )

  def test_flops_of_learning_by_hand(self):
    # 5 tokens see 1 to 5 keys: 15 logits of 2 heads in 2 layers, 4 each.
    forward = 2 * (_MATRICES * 5 + _HEAD * 2) + 4 * 15 * 2 * 2
    self.assertEqual(limits.learning_flops(_WORKLOAD), 3 * 2 * forward)

  def test_flops_of_sampling_by_hand(self):
    prompt = 2 * (_MATRICES * 3 + _HEAD) + 4 * (1 + 2 + 3) * 2 * 2
    # The second token is drawn from what the first, which sees 4, gives.
    token = 2 * (_MATRICES + _HEAD) + 4 * 4 * 2 * 2
    self.assertEqual(limits.rollout_flops(_WORKLOAD), prompt + 2 * token)

  def test_of_small_arrays(self):
    found = limits.measure(copy_size=1000, matmul_size=16)
    self.assertGreater(found.copy_gb_per_s, 0)
    self.assertGreater(found.matmul_gflops_per_s, 0)
    self.assertStartsWith(found.matmul, '16x16 ')

  def test_rates_by_hand(self):
    with mock.patch.object(limits, '_seconds', lambda *_: 0.5):
      found = limits.measure(copy_size=10**9 // 4, matmul_size=1000)
    # 1 GB is read and 1 GB written; 2e9 operations.
    self.assertEqual(found[:2], (4, 4))

  def test_largest_takes_an_accelerator(self):
    wanted = [_WORKLOAD, workloads.LARGE]
    with mock.patch.object(timing, 'tell') as tell:
      with mock.patch.object(limits, 'is_cpu', lambda: True):
        self.assertEqual(list(limits.fitting(wanted)), [_WORKLOAD])
    tell.assert_called_once_with('W-large is left out: it takes an accelerator')
    with mock.patch.object(limits, 'is_cpu', lambda: False):
      self.assertEqual(list(limits.fitting(wanted)), wanted)

  def test_largest_is_that_of_a_published_policy(self):
    # That of Qwen3-0.6B without the gains of its QK-norm.
    self.assertEqual(workloads.LARGE.num_params, 596_049_920 - 28 * 2 * 128)
    self.assertEqual(workloads.LARGE.batch, 64)


if __name__ == '__main__':
  absltest.main()
