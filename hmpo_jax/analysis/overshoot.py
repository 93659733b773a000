"""How closely the QK-clip holds attention logits at tau."""

import numpy as np


def against_tau(logits: np.ndarray, tau: float) -> dict[str, float]:
  """How a run's logits stand to tau.

  Args:
    logits: [steps, updates] largest attention logit of each update.
    tau: threshold of the clip.

  Returns:
    steps_over_tau: share of the steps with an update above tau.
    first_over: number of the first update above tau; that of updates if none.
    below_115: share of the later updates that are below 1.15 tau; 1 if none.
    largest_after: largest of the later ones over tau; 0 if none.
  """
  over = logits > tau
  first = int(np.argmax(over)) if over.any() else over.size
  after = logits.ravel()[first + 1 :] / tau
  return {
    'steps_over_tau': float(np.mean(over.any(axis=1))),
    'first_over': first,
    'below_115': float(np.mean(after < 1.15)) if after.size else 1.0,
    'largest_after': float(np.max(after, initial=0)),
  }


def factors(
  before: np.ndarray, same: np.ndarray, following: np.ndarray, tau: float
) -> np.ndarray:
  """What led to the logits of heads that exceed tau.

  Args:
    before: [N_l, H] logits that an update was given.
    same: those of the same minibatch after it.
    following: those of the next minibatch after it.
    tau: threshold of the clip.

  Returns:
    [n, 3] left, growth and spread, whose product is following / tau.
  """
  left = np.minimum(before, tau)
  parts = np.stack([left / tau, same / left, following / same], axis=-1)
  return parts[following > tau]
