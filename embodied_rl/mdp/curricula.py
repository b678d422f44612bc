"""Curriculum terms: `(means, params, *, ...)`, run once an iteration between rollouts."""
