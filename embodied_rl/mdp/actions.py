"""Action terms: what the policy's outputs do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embodied_rl.config.types import IntRange, JointGroup, PerGroup, Positive
from embodied_rl.errors import UserError
from embodied_rl.mdp.mirrors import Reflection
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import UNLIMITED, Part
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import action


def mirrored_joints(robot: Part, *, joints: str = "all", scale: Any = 1.0, **_: Any) -> Reflection:
    """Reflect values of a group's joints.

    Raises:
        UserError: the group holds joints of one side whose partners are elsewhere, or partners have another scale.
    """
    index, sign = robot.spec.joint_mirror()
    own, names = list(robot.joint_indices(joints)), robot.joint_names
    for joint in own:
        if index[joint] not in own:
            raise UserError(f"joints: {joints!r} holds {names[joint]!r} without its mirror partner {names[index[joint]]!r}")
    if isinstance(scale, dict):
        scales = dict(zip(own, robot.spec.per_joint(scale, [names[joint] for joint in own]), strict=True))
        for joint, one in scales.items():
            if one != (other := scales[index[joint]]):
                raise UserError(
                    f"scale: {one:g} of {names[joint]!r} and {other:g} of its mirror partner {names[index[joint]]!r} differ; "
                    "give both the same, or take ppo.symmetry: none"
                )
    return tuple(own.index(index[joint]) for joint in own), tuple(sign[joint] for joint in own)


class _Targets:
    """Outputs that are targets, offset + scale * action, of some of the joints."""

    control: str
    offset: Tensor
    """Target of an action of zero, (joints,)."""
    latency: Tensor
    """Physics steps for which the targets of the step before hold, (N,)."""

    def __init__(self, robot: Part, joints: str, scale: Any, clip: Any, latency: tuple[int, int]) -> None:
        self.joints = robot.joint_indices(joints)
        self.scale, self.clip, self._latency = scale, clip, latency
        self.state = {"latency": State(fresh="keep")} if latency[1] > 0 else {}
        self.names = [robot.joint_names[joint] for joint in self.joints]

    def controls(self, env: Moment, actions: Tensor, previous_actions: Tensor) -> Tensor:
        """Return the targets of one step: (N, joints), or (N, decimation, joints) with a latency."""
        targets = self.offset + self.scale * actions
        if not self.state:
            return targets
        before = self.offset + self.scale * previous_actions
        substep = torch.arange(env.decimation, device=targets.device)
        late = substep[None, :] < self.latency[:, None]
        return torch.where(late[..., None], before[:, None], targets[:, None])

    def resample(self, env: Moment, done: Tensor) -> None:
        """Draw the latency of the episodes that begin, done (N,) bool."""
        if self.state:
            drawn = env.draw.integers(*self._latency)
            self.latency.copy_(torch.where(done, drawn, self.latency))

    def _reaches(self, farthest: Tensor) -> Tensor:
        """Turn the farthest sensible targets, as distances from the offset, into outputs, (joints,)."""
        return torch.minimum(farthest / self.scale, torch.as_tensor(self.clip, device=farthest.device))

    def contract(self) -> dict[str, Any]:
        """Return what makes the targets of which joints: offset + scale * clip(action)."""
        numbers = {"scale": self.scale.expand(len(self.names)), "clip": self.clip, "offset": self.offset}
        return {"joint_names": self.names, "target": self.control} | numbers


@action(mirror=mirrored_joints)
class joint_position(_Targets):  # noqa: N801  named as its entry on the page
    """Targets of the joints' position control: default pose + scale * action.

    `joints` is a group of robot.yaml; `clip` bounds the actions.  `latency` [substeps] holds the targets of the step before for a
    while, drawn per episode from the range; at most the control period, `physics.decimation`.
    """

    control = "position"

    def __init__(
        self,
        robot: Part,
        *,
        joints: JointGroup = "all",
        scale: PerGroup[Positive] = 0.5,
        clip: Positive = 10.0,
        latency: IntRange = (0, 0),
    ) -> None:
        super().__init__(robot, joints, scale, clip, latency)
        whole = self.joints == range(len(robot.joint_names))
        self.offset = robot.default_joint_pos if whole else robot.default_joint_pos[list(self.joints)]
        self._limits = robot.joint_limits[:, list(self.joints)]

    def reach(self) -> Tensor:
        """Say which output moves each joint from the offset to the farther of its limits; infinite of one without, (joints,)."""
        farthest = (self._limits - self.offset).abs().amax(0)
        return torch.where(self._limits.abs().amax(0) < UNLIMITED, self._reaches(farthest), torch.inf)


@action(mirror=mirrored_joints)
class joint_velocity(_Targets):  # noqa: N801
    """Targets of the joints' velocity control: scale * action [rad/s]; the motors' torque is damping (target - qd).

    `joints`, `clip` and `latency` are those of `joint_position`.
    """

    control = "velocity"

    def __init__(
        self,
        robot: Part,
        *,
        joints: JointGroup = "all",
        scale: PerGroup[Positive] = 5.0,
        clip: Positive = 10.0,
        latency: IntRange = (0, 0),
    ) -> None:
        super().__init__(robot, joints, scale, clip, latency)
        self.offset = torch.zeros(len(self.joints), device=robot.default_joint_pos.device)
        limits = [robot.spec.velocity_limit[joint] for joint in self.joints]
        self._fastest = self.offset.new_tensor([torch.inf if limit is None else limit for limit in limits])

    def reach(self) -> Tensor:
        """Say which output asks of each joint its greatest speed; infinite where none is known, (joints,)."""
        return torch.where(self._fastest.isfinite(), self._reaches(self._fastest), torch.inf)
