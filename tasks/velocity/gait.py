"""How robots walk, which errors of velocity do not show: steps, stances, sliding, standing still.

Legend of the shapes: N envs, F feet, J joints, P pairs of a left and a right foot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment

#: What the figures are taken of, beside the state.
NEEDS = ("foot_contact", "foot_touchdown", "foot_frames")
#: Below this share of the base's height a foot is on or near the ground.
_LOW = 0.03
#: Of feet that come near each other, the share of robots whose feet come nearer than is told.
_NEAREST = 0.05
#: Left and right are compared of robots whose feet came down so often, and differ at most so many times.
_STEPS, _MOST = 4, 10.0
#: A foot that touches again after less time in the air [s] has bounced, and not stepped.
_BOUNCE = 0.07
#: A joint is at its limit in the outer share of its range.
_AT_LIMIT = 0.01


class Gait:
    """Watches the feet of robots, and joints.

    Feet that are low are within 3 % of the base's height of the ground.  A step ends where a foot touches the ground after 0.07 s
    in the air or more; touchdowns are counted at every physics step, so that a foot that chatters shows.

    Args:
        env: the environment, which measures `NEEDS`.
    """

    def __init__(self, env: Environment) -> None:
        robot = env.robot
        feet, joints = len(robot.foot_names), len(robot.joint_names)
        self._low = _LOW * robot.spec.base_height
        mirrored = robot.spec.mirror
        swap = robot.spec.foot_mirror() if mirrored else ()
        nobody = torch.zeros(0, dtype=torch.int64, device=env.device)
        self._pairs = robot.foot_pairs if list(swap) != list(range(len(swap))) else (nobody, nobody)
        permutation, signs = robot.spec.joint_mirror() if mirrored else ((), ())
        self._partner = torch.tensor(permutation, dtype=torch.int64, device=env.device)
        self._sign = torch.tensor(signs, dtype=torch.float32, device=env.device)
        zeros = lambda *shape: torch.zeros(env.num_envs, *shape, device=env.device)  # noqa: E731
        self._up = zeros(feet)
        self._peak, self._landed = zeros(feet), torch.full((env.num_envs, feet, 2), torch.nan, device=env.device)
        self._last = torch.full((env.num_envs, len(self._pairs[0])), -1.0, device=env.device)
        self._air, self._ground, self._downs = zeros(feet), zeros(feet), zeros(feet)
        self._apart = torch.full((env.num_envs,), torch.inf, device=env.device)
        self._time, self._limit_time, self._uneven = zeros(), zeros(joints), zeros(len(permutation))
        self._sums: dict[str, Tensor] = {}

    def step(self, env: Environment, walking: Tensor, standing: Tensor) -> None:
        """Look at the robots after a step; which walk and which stand, as they have been asked for long enough, bool (N,)."""
        env.physics.refresh()
        robot, dt = PartState(env.robot, env.physics), env.step_dt
        walks, stands = walking.float(), standing.float()
        contact, place = robot.foot_contact, robot.foot_pos_w[..., :2]
        height = robot.foot_underside_w - env.scene.terrain.height(place)
        travel = robot.foot_lin_vel_w[..., :2].norm(dim=-1) * dt
        self._add("time", walks * dt)
        self._add("travel", travel.sum(-1) * walks)
        self._add("low_travel", (travel * (height < self._low)).sum(-1) * walks)
        self._add("flight", (contact.sum(-1) == 0) * walks * dt)
        self._add("touchdowns", robot.foot_touchdown.sum(-1) * walks)
        landing = (contact > 0) & (self._up >= _BOUNCE - 1e-6) & walking[:, None]
        stride = (place - self._landed).norm(dim=-1)
        whole = landing & stride.isfinite()
        self._add("swings", whole.sum(-1).float())
        self._add("clearance", torch.where(whole, self._peak, 0.0).sum(-1))
        self._add("stride", torch.where(whole, stride, 0.0).sum(-1))
        self._landed = torch.where(walking[:, None, None], torch.where(landing[..., None], place, self._landed), torch.nan)
        self._peak = torch.where(landing | (self._up == 0.0), 0.0, torch.maximum(self._peak, height))
        self._up = (self._up + dt) * (contact == 0)
        self._air += (1.0 - contact) * walks[:, None] * dt
        self._ground += contact * walks[:, None] * dt
        self._downs += landing
        if len(self._pairs[0]):
            self._pair(robot, contact, landing, walking, dt)
        self._add("standing_time", stands * dt)
        self._add("standing_speed", robot.base_lin_vel_w[:, :2].norm(dim=-1) * stands * dt)
        self._add("standing_feet_up", (1.0 - contact).mean(-1) * stands * dt)
        self._add("standing_joint_speed", robot.joint_vel.square().mean(-1) * stands * dt)
        self._time += (walks + stands) * dt
        low, high = robot.joint_limits
        margin = _AT_LIMIT * (high - low)
        at_limit = (robot.joint_pos < low + margin) | (robot.joint_pos > high - margin)
        self._limit_time += at_limit * ((walks + stands) * dt)[:, None]
        if len(self._partner):
            away = robot.joint_pos - robot.default_joint_pos
            self._uneven += (away - self._sign * away[:, self._partner]) * (walks * dt)[:, None]

    def figures(self) -> dict[str, float]:
        """Say how they walk and stand.

        Returns:
            of walking: `gait/steps_per_s` and `gait/touchdowns_per_s` of each foot, `gait/double_stance` and `gait/flight`
            (shares of the time in which both feet of a pair touch the ground, and none does), `gait/clearance` (how high the
            underside of a foot comes in its swing) and `gait/stride` (from where a foot came down to where it does next) [m],
            `gait/shuffling` (share of the feet's ways that they go on or near the ground), `gait/alternation` (share of steps
            that follow one of the other foot of the pair), `gait/left_right` (how many times as long one foot of a pair is in
            the air, or on the ground, as the other), `gait/feet_distance` (how near those of a pair come, across the heading,
            of all but the nearest 5 % of the robots) [m], `gait/joint_limits` (share of the time that the joint which does so
            most is at its limit), `gait/uneven` (of the joint most so, how far left and right are apart on average) [rad]; of
            standing: `standing/speed` of the base [m/s], `standing/feet_up` (share), `standing/joint_speed` (root mean square)
            [rad/s]. What nobody did is left out.
        """
        total = {name: float(value) for name, value in self._sums.items()}
        found: dict[str, float] = {}
        if (time := total["time"]) > 0.0:
            found["gait/steps_per_s"] = float(self._downs.sum()) / time / self._downs.shape[1]
            found["gait/touchdowns_per_s"] = total["touchdowns"] / time / self._downs.shape[1]
            found["gait/flight"] = total["flight"] / time
            if total["swings"]:
                found["gait/clearance"] = total["clearance"] / total["swings"]
                found["gait/stride"] = total["stride"] / total["swings"]
            found["gait/shuffling"] = total["low_travel"] / max(total["travel"], 1e-9)
            if len(self._pairs[0]):
                found["gait/double_stance"] = total["double_stance"] / time / len(self._pairs[0])
                if total["followed"]:
                    found["gait/alternation"] = total["alternate"] / total["followed"]
                found |= self._left_right()
                nearest = self._apart[self._apart.isfinite()]
                found["gait/feet_distance"] = float(nearest.quantile(_NEAREST))
            found["gait/joint_limits"] = float((self._limit_time.sum(0) / self._time.sum()).amax())
            if len(self._partner):
                found["gait/uneven"] = float((self._uneven.sum(0) / time).abs().amax())
        if (time := total["standing_time"]) > 0.0:
            found["standing/speed"] = total["standing_speed"] / time
            found["standing/feet_up"] = total["standing_feet_up"] / time
            found["standing/joint_speed"] = (total["standing_joint_speed"] / time) ** 0.5
        return found

    def _pair(self, robot: PartState, contact: Tensor, landing: Tensor, walking: Tensor, dt: float) -> None:
        """Compare the feet of each pair, (N, P)."""
        left, right = self._pairs
        self._add("double_stance", (contact[:, left] * contact[:, right]).sum(-1) * walking * dt)
        down_left, down_right = landing[:, left], landing[:, right]
        known, single = (self._last >= 0.0) & walking[:, None], down_left ^ down_right
        other = torch.where(down_left, self._last == 1.0, self._last == 0.0) & single
        self._add("followed", ((down_left | down_right) & known).sum(-1).float())
        self._add("alternate", (other & known).sum(-1).float())
        now = torch.where(single, down_right.float(), torch.where(down_left, -1.0, self._last))
        self._last = torch.where(walking[:, None], now, -1.0)
        apart = (robot.foot_left[:, left] - robot.foot_left[:, right]).amin(-1)
        self._apart = torch.where(walking, torch.minimum(self._apart, apart), self._apart)

    def _left_right(self) -> dict[str, float]:
        """Compare times in the air and on the ground, of the median robot."""
        left, right = self._pairs
        often = (self._downs >= _STEPS).all(-1)
        if not often.any():
            return {}
        ratios = [(one[:, left] / one[:, right].clamp(min=1e-6))[often] for one in (self._air, self._ground)]
        worst = torch.stack([torch.maximum(ratio, 1.0 / ratio.clamp(min=1e-6)) for ratio in ratios]).clamp(max=_MOST)
        return {"gait/left_right": float(worst.amax(0).amax(-1).median())}

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros((), dtype=torch.float64, device=values.device)) + values.sum()
