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
    shares = _reached(figures)
    if figures.get("shortfall", 0.0) > limits.get("shortfall", 1.0) and shares:
        (axis, _, asked), share = min(shares.items(), key=lambda one: one[1])
        said.append(f"stands where it should walk ({share:.2f} of what is asked for {_WORDS[axis]}, {asked} {_UNITS[axis]})")
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
    shares = _reached(figures)
    bins = sorted({(low, title) for _, low, title in shares})
    if not bins:
        return []
    lines = [f"{'achieved / commanded':32s} " + " ".join(f"{title:>10s}" for _, title in bins)]
    for axis, word in _WORDS.items():
        row = [shares.get((axis, *one)) for one in bins]
        if any(share is not None for share in row):
            cells = " ".join(f"{'-' if share is None else f'{share:.2f}':>10s}" for share in row)
            lines.append(f"{f'  {word} [{_UNITS[axis]}]':32s} {cells}")
    return lines


def _reached(figures: Mapping[str, float]) -> dict[tuple[str, float, str], float]:
    """Read achieved / commanded by axis and bin of speed: where it begins, and what it is called."""
    found = {}
    for name, share in figures.items():
        if name.startswith("reached/"):
            axis, _, edges = name.removeprefix("reached/").partition("_")
            low, high = edges.split("_to_")
            found[axis, float(low), f"over {low}" if high == "inf" else f"{low} to {high}"] = share
    return found
