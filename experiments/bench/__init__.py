"""What `python experiments/bench` times: one module for each suite."""
