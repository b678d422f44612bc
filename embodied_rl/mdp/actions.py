"""Action terms: what the policy's outputs do."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.types import NonNegative, Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import action


@action()
class joint_position:  # noqa: N801  named as its entry on the page
    """Targets of the joints' position control: default pose + scale * action, (N, J).

    `clip` bounds the actions.  `latency` [substeps] holds the targets of the step before for a while, drawn per episode from
    the range; it is shorter than the control period.
    """

    def __init__(self, name: str, *, scale: Positive = 0.5, clip: NonNegative = 10.0, latency: tuple[int, int] = (0, 0)) -> None:
        self.name, self.scale, self.clip, self.latency = name, scale, clip, latency
        self.state = {f"{name}.latency": 0} if latency[1] > 0 else {}

    def size(self, env: Moment) -> int:
        """Length of the action vector: the robot's joints."""
        return len(env.robot.joint_names)

    def controls(self, env: Moment, decimation: int) -> Tensor:
        """Return the controls of one step: (N, J), or (N, decimation, J) with a latency."""
        targets = env.robot.default_joint_pos + self.scale * env.actions
        if not self.state:
            return targets
        before = env.robot.default_joint_pos + self.scale * env.previous_actions
        substep = torch.arange(decimation, device=targets.device)
        late = substep[None, :] < env.buffers[f"{self.name}.latency"][:, None]
        return torch.where(late[..., None], before[:, None], targets[:, None])

    def update(self, env: Moment, done: Tensor) -> None:
        """Draw the latency of the episodes that begin, done (N,) bool."""
        if self.state:
            drawn = env.draw.integers(*self.latency)
            buffer = env.buffers[f"{self.name}.latency"]
            buffer.copy_(torch.where(done, drawn, buffer))
