"""What a run does after which of its steps."""


def is_due(step: int, every: int, last: int) -> bool:
  """Whether something that is done every so many steps is done now."""
  return step % every == 0 or step == last


def is_measured(config, step: int) -> bool:
  """Whether a step compares means and what its QK-clip does to the policy."""
  every = config.mechanism.every
  return every > 0 and (step == 1 or is_due(step, every, config.num_steps))


def is_evaluated(config, step: int) -> bool:
  """Whether the policy is evaluated after a step.

  For its record, or to score its checkpoint, which may become the best one.
  """
  return is_recorded(config, step) or is_saved(config, step)


def is_saved(config, step: int) -> bool:
  """Whether a step ends with a checkpoint."""
  return is_due(step, config.checkpoint.every, config.num_steps)


def is_recorded(config, step: int) -> bool:
  """Whether an evaluation after a step stands in the records."""
  return is_due(step, config.eval.every, config.num_steps)
