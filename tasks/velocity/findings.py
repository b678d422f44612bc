"""What the figures of an evaluation say of how a robot walks, in words."""

from __future__ import annotations

from collections.abc import Mapping

_WORDS = {"vx": "ahead", "vy": "sideways", "wz": "turning"}
_UNITS = {"vx": "m/s", "vy": "m/s", "wz": "rad/s"}
#: What is told of beyond these: figure, bound, whether it is the least, and what to say of it.
_TOLD = (
    ("gait/alternation", 0.95, True, "walks on one leg (only {0:.0%} of the steps follow one of the other foot)"),
    ("gait/left_right", 1.25, False, "walks on one leg (one foot's steps take {0:.2f} times as long as the other's)"),
    ("gait/feet_distance", 0.10, True, "feet come within {0:.2f} m of each other"),
    ("gait/joint_limits", 0.05, False, "a joint is at its limit for {0:.0%} of the time"),
    ("gait/uneven", 0.4, False, "left and right are {0:.2f} rad apart in a joint"),
    ("standing/speed", 0.05, False, "drifts at {0:.2f} m/s where it should stand"),
    ("standing/feet_up", 0.01, False, "feet are up for {0:.0%} of the time where it should stand"),
    ("standing/joint_speed", 0.2, False, "joints move at {0:.2f} rad/s where it should stand"),
)


def failures(figures: Mapping[str, float], limits: Mapping[str, float], shuffling: float) -> list[str]:
    """Name what keeps a policy from walking beside errors and falls."""
    said = []
    bins = {name.removeprefix("reached/"): share for name, share in figures.items() if name.startswith("reached/")}
    if figures.get("shortfall", 0.0) > limits.get("shortfall", 1.0) and bins:
        worst = min(bins, key=lambda name: bins[name])
        axis, _, edges = worst.partition("_")
        low, high = edges.split("_to_")
        asked = f"over {low} {_UNITS[axis]}" if high == "inf" else f"{low} to {high} {_UNITS[axis]}"
        said.append(f"stands where it should walk ({bins[worst]:.2f} of what is asked for {_WORDS[axis]}, {asked})")
    if figures.get("gait/shuffling", 0.0) > shuffling:
        said.append(f"shuffles ({figures['gait/shuffling']:.0%} of its feet's ways are on or near the ground)")
    if figures.get("heading_drift", 0.0) > limits.get("heading_drift", 10.0):
        said.append(f"walks in an arc (it turns by {figures['heading_drift']:.2f} rad in 10 s of straight ahead)")
    return said


def remarks(figures: Mapping[str, float]) -> list[str]:
    """Name what a robot that walks should rather not do."""
    said = []
    for name, bound, least, words in _TOLD:
        value = figures.get(name)
        if value is not None and (value < bound if least else value > bound):
            said.append(words.format(value))
    return said


def table(figures: Mapping[str, float]) -> list[str]:
    """Lay out achieved / commanded, a line for each direction and a column for each bin of speed."""
    cells = {name.removeprefix("reached/"): share for name, share in figures.items() if name.startswith("reached/")}
    bins = sorted({name.partition("_")[2] for name in cells}, key=lambda one: float(one.partition("_to_")[0]))
    if not bins:
        return []
    titles = [f"over {one.partition('_to_')[0]}" if one.endswith("inf") else one.replace("_to_", " to ") for one in bins]
    lines = [f"{'achieved / commanded':32s} " + " ".join(f"{title:>10s}" for title in titles)]
    for axis, word in _WORDS.items():
        shares = [cells.get(f"{axis}_{one}") for one in bins]
        if any(share is not None for share in shares):
            row = " ".join(f"{'-' if share is None else f'{share:.2f}':>10s}" for share in shares)
            lines.append(f"{f'  {word} [{_UNITS[axis]}]':32s} {row}")
    return lines
