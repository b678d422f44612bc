"""What pages of rough ground are tried with, on a plane: what those that ask for a velocity are."""

from embodied_rl.tasks.velocity.audit import PUPPETS, asked, counts

__all__ = ["PUPPETS", "asked", "counts"]
