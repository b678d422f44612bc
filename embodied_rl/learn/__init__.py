"""Policies, PPO, the trainer and its checkpoints.  Knows environments by their contract, never an engine or a task."""
