"""MuJoCo's own defaults: what is added to a model takes nothing from the defaults of its file."""

from __future__ import annotations

import mujoco

_EMPTY = mujoco.MjSpec()  # what owns them
#: To be given as the `default` of whatever is added to a model of a person's.
PLAIN = _EMPTY.default
