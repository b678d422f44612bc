"""Numbers of a model that are none."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.strict_yaml import display

_KINDS = {
    "body": (mujoco.mjtObj.mjOBJ_BODY, "body"),
    "jnt": (mujoco.mjtObj.mjOBJ_JOINT, "joint"),
    "geom": (mujoco.mjtObj.mjOBJ_GEOM, "geom"),
    "site": (mujoco.mjtObj.mjOBJ_SITE, "site"),
}


def check_finite(model: mujoco.MjModel, file: Path) -> None:
    """Check that every number of a compiled model is one: MuJoCo takes NaN and infinity, and simulates nothing then.

    Raises:
        UserError: it names the first element with one that is not, and what of it.
    """
    fields = [*(f"{kind}_{what}" for kind in _KINDS for what in ("pos", "quat")), *sorted(dir(model))]
    for field in fields:  # where an element stands first: what follows from it is not finite either
        values = getattr(model, field, None)
        if not (isinstance(values, np.ndarray) and values.dtype.kind == "f") or np.isfinite(values).all():
            continue
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        kind, _, what = field.partition("_")
        value = values[row][~np.isfinite(values[row])].flat[0] if values.ndim > 1 else values[row]
        name = f"{what} of {_called(model, kind, row)}" if kind in _KINDS else field
        raise UserError(f"{display(file)}: {name}: {value:g} is not a finite number")


def _called(model: mujoco.MjModel, kind: str, row: int) -> str:
    """Name an element; one without a name by its body."""
    of, word = _KINDS[kind]
    if name := mujoco.mj_id2name(model, of, row):
        return f"{word} {name!r}"
    bodies = {"geom": model.geom_bodyid, "site": model.site_bodyid, "jnt": model.jnt_bodyid}
    return f"a {word} of body {model.body(int(bodies[kind][row])).name!r}" if kind in bodies else f"{word} {row}"
