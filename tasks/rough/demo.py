"""What policies on rough ground are shown with: what those that follow a velocity command are."""

from embodied_rl.tasks.velocity.demo import COLUMNS, KEYS, draw, measured, script

__all__ = ["COLUMNS", "KEYS", "draw", "measured", "script"]
