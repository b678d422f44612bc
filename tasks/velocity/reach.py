"""How much of the speed that is asked for robots reach, by how much is asked for, and whether they walk straight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment

#: Edges of the bins of speed [m/s, rad/s]; below the first a command asks for standing.
_EDGES = (0.1, 0.3, 0.6, 1.0, math.inf)
_AXES = ("vx", "vy", "wz")
#: A bin with less than this share of the time says nothing.
_RARE = 0.005
#: Over which time a heading may drift, and how long a command lasts, at least, that it is judged by [s].
_DRIFT_S, _LEAST_S = 10.0, 1.0
_MOST_OF_THEM = 0.95


class Reach:
    """Compares velocities with commands.

    Args:
        env: the environment.
    """

    def __init__(self, env: Environment) -> None:
        bins = len(_EDGES) - 1
        zeros = lambda: torch.zeros(3, bins, dtype=torch.float64, device=env.device)  # noqa: E731
        self._asked, self._reached, self._time, self._steps = zeros(), zeros(), zeros(), 0.0
        self._edges = torch.tensor(_EDGES, device=env.device)
        self._turned, self._lasted = (torch.zeros(env.num_envs, device=env.device) for _ in range(2))
        self._drifts: list[Tensor] = []
        self._dt = env.step_dt

    def step(self, state: PartState, asked: Tensor, counted: Tensor) -> None:
        """Compare with the commands (N, 3) of those that are counted, bool (N,)."""
        has = torch.cat((state.lin_vel_yaw, state.yaw_rate[:, None]), dim=-1)
        size = asked.abs()
        here = (size[..., None] >= self._edges[:-1]) & (size[..., None] < self._edges[1:]) & counted[:, None, None]
        self._asked += (here * size[..., None]).sum(0)
        self._reached += (here * (has * asked.sign())[..., None]).sum(0)
        self._time += here.sum(0)
        self._steps += float(counted.sum())
        straight = counted & (size[:, 0] > _EDGES[0]) & (asked[:, 1:] == 0.0).all(-1)
        self._drifts.append(self._over(~straight))
        self._turned = torch.where(straight, self._turned + state.yaw_rate * self._dt, 0.0)
        self._lasted = torch.where(straight, self._lasted + self._dt, 0.0)

    def _over(self, rows: Tensor) -> Tensor:
        """Drifts of the commands that are over, of those of these rows that lasted [rad in 10 s]."""
        lasted = rows & (self._lasted >= _LEAST_S)
        return self._turned[lasted].abs() * _DRIFT_S / self._lasted[lasted]

    def figures(self) -> dict[str, float]:
        """Give `reached/AXIS_LOW_to_HIGH`, achieved / commanded, the worst bin's `shortfall`, and the `heading_drift` [rad]."""
        share = (self._reached / self._asked.clamp(min=1e-9)).tolist()
        often = (self._time >= _RARE * max(self._steps, 1.0)).tolist()
        found = {
            f"reached/{axis}_{_EDGES[one]:g}_to_{_EDGES[one + 1]:g}": share[row][one]
            for row, axis in enumerate(_AXES)
            for one in range(len(_EDGES) - 1)
            if often[row][one]
        }
        drifts = torch.cat((*self._drifts, self._over(torch.ones_like(self._lasted, dtype=torch.bool))))
        drift = float(drifts.quantile(_MOST_OF_THEM)) if len(drifts) else 0.0
        # who goes the other way misses all of it, and no more
        shortfall = max((min(1.0 - one, 1.0) for one in found.values()), default=0.0)
        return {"shortfall": shortfall, "heading_drift": drift, **found}
