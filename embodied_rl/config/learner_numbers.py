"""Settings of the learner that curricula may move while it trains."""

from __future__ import annotations

from embodied_rl.config.page import DistributedSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.problems import did_you_mean

#: They are tensors of the learner, read by address in its compiled and captured arithmetic; all others are part of that.
LEARNER_NUMBERS = ("ppo.learning_rate", "ppo.entropy_coef", "ppo.desired_kl")


def why_not(path: str, ppo: PPOSettings, distributed: DistributedSettings) -> str | None:
    """Say why no curriculum can move the setting of this dotted path on such a page; None where one can."""
    if path not in LEARNER_NUMBERS:
        near = did_you_mean(path, LEARNER_NUMBERS)
        return f"is none of the learner's numbers that may change during a run{near} (they are {', '.join(LEARNER_NUMBERS)})"
    if path == "ppo.learning_rate" and ppo.schedule != "constant":
        return f"is moved by ppo.schedule: {ppo.schedule} already; take constant, or leave the curriculum out"
    if path == "ppo.learning_rate" and distributed.learning_rate_rule != "none":
        rule = distributed.learning_rate_rule
        return f"is moved by distributed.learning_rate_rule: {rule} already; take none, or leave the curriculum out"
    if path == "ppo.entropy_coef" and ppo.final_entropy_coef is not None:
        end = f"ppo.final_entropy_coef: {ppo.final_entropy_coef:g}"
        return f"is moved by {end} already; leave that key or the curriculum out"
    if path == "ppo.desired_kl" and ppo.schedule != "adaptive":
        return f"is not read with ppo.schedule: {ppo.schedule}; take adaptive, or leave the curriculum out"
    return None
