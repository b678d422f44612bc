"""Environments of others: Gymnasium, dm_control, EnvPool, and what a user brings along."""
