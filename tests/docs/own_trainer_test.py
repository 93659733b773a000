"""The programs of the pages for users with a trainer of their own do run."""

import functools

from absl.testing import absltest
import jax
import numpy as np

from hmpo_jax.optim import muon_clip
from tests import doc_pages


@functools.cache
def _run(page):
  """Names and values that the blocks of a page leave, run one after another."""
  text = (doc_pages.ROOT / 'docs' / page).read_text(encoding='utf-8')
  programs = [
    body for language, body in doc_pages.blocks(text) if language == 'python'
  ]
  names = {}
  exec('\n'.join(programs), names)
  return names


def _clip_state(state):
  """The QK-clip's state inside that of a chain."""
  is_it = lambda node: isinstance(node, muon_clip.QKClipState)
  [found] = filter(is_it, jax.tree.leaves(state, is_leaf=is_it))
  return found


class OwnTrainerTest(absltest.TestCase):
  def test_reward_rises(self):
    rewards = _run('own_trainer.md')['mean_rewards']
    self.assertLess(rewards[0], 0.25)
    self.assertGreater(np.mean(rewards[-5:]), 0.9)

  def test_the_clip_saw_the_logits_of_every_update(self):
    names = _run('own_trainer.md')
    clip = _clip_state(names['state'])
    self.assertEqual(clip.update_count, 160)
    self.assertEqual(clip.nonfinite_count, 0)
    self.assertTrue(np.all(np.isfinite(clip.last_max)))

  def test_metrics_that_the_page_names(self):
    metrics = _run('own_trainer.md')['metrics']
    for name in ('ratio/mean', 'clip/low_frac', 'clip/high_frac', 'agm/gap'):
      self.assertIn(name, metrics)
    self.assertNotEqual(metrics['ratio/mean'], 1)


class NnxTest(absltest.TestCase):
  def test_logits_above_tau_come_down(self):
    names = _run('muonclip.md')
    clip = _clip_state(names['optimizer'].opt_state)
    self.assertEqual(clip.update_count[...], 3)
    self.assertGreater(clip.clipped_count[...], 0)
    for layer, stats in names['max_logits'].items():
      self.assertEqual(stats.shape, (8,))
      ever = np.asarray(clip.max_ever[layer][...])
      self.assertGreater(ever.max(), 1.2)
      # The clip lands on tau = 1; Adam's last update is small.
      self.assertLess(np.max(stats), 1.1)


if __name__ == '__main__':
  absltest.main()
