"""How a robot knows what a velocity policy sees; with NumPy alone, copied into each exported run_policy.py."""

import numpy as np


def gait_phase(policy, state, term):
    """Return sine and cosine of a clock of calls; both are 0 once standing has been asked for long enough."""
    part, dt, (vx, vy, wz) = policy.commands[term["command"]], policy.contract["control_dt"], policy.command[term["command"]]
    walks = max(np.hypot(vx, vy), abs(wz)) > part["standing_below"]
    still = policy.notes["still"] = 0.0 if walks else policy.notes.get("still", 1e3) + dt
    phase = 2.0 * np.pi * part["gait_frequency"] * dt * policy.calls
    return np.array([np.sin(phase), np.cos(phase)]) * (walks or 0.0 < part["settle_s"] > still - 0.5 * dt)


OBSERVATIONS = {"velocity_command": lambda policy, state, term: policy.command[term["command"]], "gait_phase": gait_phase}
