"""Muon and AdamW by literal loops in float64."""

import numpy as np

# Each step's coefficients of s, s^3 and s^5, written out once more.
_STEPS = {
  'keller': [(3.4445, -4.775, 2.0315)] * 5,
  'polar_express': [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  ],
}
HPARAMS = {
  'learning_rate': 0.01,
  'adam_learning_rate': 0.003,
  'weight_decay': 0.1,
  'adam_weight_decay': 0.2,
  'momentum': 0.9,
}
_DIVISOR = {'keller': 1.0, 'polar_express': 1.01}


def polynomials(s, name):
  """What becomes of singular values of a matrix of norm 1."""
  for a, b, c in _STEPS[name]:
    s = s / _DIVISOR[name]
    s = a * s + b * s**3 + c * s**5
  return s


def orthogonalized(matrix, name='keller'):
  """The same on all singular values of a matrix, by its decomposition."""
  left, s, right = np.linalg.svd(np.float64(matrix), full_matrices=False)
  norm = np.linalg.norm(s)
  return left * polynomials(s / norm if norm else s, name) @ right


def muon(grads, weight, momentum, nesterov, name='keller'):
  """Updates of one n x m matrix for a learning rate of 1, without decay.

  The heavy ball as in "Kimi K2", M = mu M + G, the other as in Jordan's code:
  M += (1 - mu) (G - M), then G += mu (M - G).
  """
  buffer, updates = np.zeros(weight.shape), []
  for grad in np.float64(grads):
    if nesterov:
      buffer = buffer + (1 - momentum) * (grad - buffer)
      direction = grad + momentum * (buffer - grad)
    else:
      buffer = direction = momentum * buffer + grad
    updates.append(
      -0.2 * max(weight.shape) ** 0.5 * orthogonalized(direction, name)
    )
  return np.stack(updates)


def adam(grads, b1, b2, eps=1e-8):
  """Updates for a learning rate of 1, without decay."""
  first, second, updates = 0, 0, []
  for step, grad in enumerate(np.float64(grads), 1):
    first = b1 * first + (1 - b1) * grad
    second = b2 * second + (1 - b2) * grad**2
    root = np.sqrt(second / (1 - b2**step)) + eps
    updates.append(-first / (1 - b1**step) / root)
  return np.stack(updates)
