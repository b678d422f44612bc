"""One moment of three robots on a slope, in round numbers: what the terms' values are computed from by hand.

The robot has two joints, named a and b, which stand in qpos as b and a, and four feet.  Robot 0 is upright, robot 1 turned by
90 degrees about the vertical, robot 2 rolled by 30 degrees and asked to stand.
"""

from __future__ import annotations

from math import cos, pi, sin
from types import SimpleNamespace

import pytest
import torch

from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.part import PartState
from embodied_rl.tasks.velocity.command import velocity

QPOS = [  # x, y, z, quaternion, b, a
    [0.0, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0, -0.8, 0.1],
    [1.0, -1.7, 0.25, cos(pi / 4), 0.0, 0.0, sin(pi / 4), -0.8, 0.3],
    [-2.0, 0.0, 0.1, cos(pi / 12), sin(pi / 12), 0.0, 0.0, -1.45, -0.95],
]
QVEL = [  # linear in the world, angular in the base, b, a
    [0.5, -0.2, 0.1, 0.1, 0.2, 0.3, 0.0, 0.0],
    [1.0, 0.5, -0.3, 0.0, -0.4, 0.5, -2.0, 1.0],
    [0.4, 0.6, -0.2, 0.3, 0.2, -0.6, 3.0, 0.5],
]
FOOT_POS = [
    [[0.0, 0.0, 0.0]] * 4,
    [[0.0, 5.0, 0.1], [1.0, 0.0, 0.2], [0.0, 0.0, 0.02], [0.3, 0.0, 0.05]],
    [[0.0, 0.0, 0.5]] * 4,
]
FOOT_VEL = [
    [[0.6, 0.8, 7.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    [[0.3, 0.4, 9.0], [1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0]],
    [[0.1, 0.2, 0.0], [0.3, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0]],
]
SENSORS = {
    "foot_contact": [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]],
    "contact:thighs": [[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
    "contact:base": [[0.0], [1.0], [0.0]],
}
EPISODE = {
    "episode_length": [5, 20, 1000],
    "actions": [[0.0, 0.0], [1.0, -1.0], [0.5, 0.25]],
    "previous_actions": [[0.0, 0.0], [0.5, 1.0], [0.5, 0.25]],
}
PREVIOUS_JOINT_VEL = [[0.0, 0.0], [0.0, 0.0], [0.3, 2.0]]
AIR_TIME = [[0.0, 0.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.9], [0.3, 0.3, 0.1, 0.1]]
FLIGHT = [[0.0, 0.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.9], [0.3, 0.3, 0.0, 0.0]]
FRICTION = [0.5, 0.75, 1.25]
COMMAND = {
    "still": [0.0, 0.0, 0.2],  # the third robot has been told to stand for 0.2 s
    "command": [[1.0, 0.0, 0.0], [0.5, -0.5, 0.2], [0.05, 0.0, 0.05]],
}


@pytest.fixture
def moment() -> Moment:
    physics = SimpleNamespace(
        num_envs=3,
        qpos=torch.tensor(QPOS),
        qvel=torch.tensor(QVEL),
        frame_pos=torch.tensor(FOOT_POS),
        frame_lin_vel=torch.tensor(FOOT_VEL),
        frame_quat=None,
        sensors={name: torch.tensor(values) for name, values in SENSORS.items()},
        joint_torque=torch.tensor([[0.0, 0.0], [2.0, -3.0], [-10.0, 4.0]]),
    )
    robot = SimpleNamespace(
        floating=True,
        root_qpos=0,
        root_qvel=0,
        default_joint_pos=torch.tensor([0.1, -0.8]),
        joint_limits=torch.tensor([[-1.0, -1.5], [1.0, 0.5]]),
        qpos_index=torch.tensor([8, 7]),
        qvel_index=torch.tensor([7, 6]),
        measured={*SENSORS, "foot_frames", "joint_torque"},
        feet=SimpleNamespace(undersides=lambda position, _: position[..., 2] - 0.02),
        # diagonal feet share a clock: front left, front right, rear left, rear right
        gait_offset=torch.tensor([0.0, 0.5, 0.5, 0.0]),
        first_foot_geoms=torch.tensor([1, 2, 3, 4]),
    )
    asked = velocity(robot, gait_frequency=2.0)  # pyright: ignore[reportArgumentType]
    vars(asked).update(_tensors(COMMAND))
    slope = SimpleNamespace(height=lambda xy: 0.1 * xy[..., 0])
    return Moment(
        robot=PartState(robot, physics),  # pyright: ignore[reportArgumentType]
        scene=SimpleNamespace(terrain=slope, foot_geoms=(1, 3), base_body=1),  # pyright: ignore[reportArgumentType]
        episode=SimpleNamespace(**_tensors(EPISODE)),  # pyright: ignore[reportArgumentType]
        commands={"velocity": asked},
        trackers={
            "air_time": SimpleNamespace(time=torch.tensor(AIR_TIME), flight=torch.tensor(FLIGHT)),
            "previous_joint_vel": SimpleNamespace(value=torch.tensor(PREVIOUS_JOINT_VEL)),
        },
        model={"geom_friction": torch.tensor(FRICTION)[:, None, None].repeat(1, 5, 3)},
        step_dt=0.02,
        decimation=4,
        max_episode_length=20,
        draw=Draw(),
        terminated=torch.tensor([False, True, False]),
    )


@pytest.fixture
def call():
    """Calls a term as a page does: its numbers arrive as tensors."""

    def call(term, env: Moment, *arguments, **params) -> torch.Tensor:
        number = lambda value: isinstance(value, float | tuple)  # noqa: E731
        given = {name: torch.tensor(value) if number(value) else value for name, value in params.items()}
        return term(env, *arguments, **given)

    return call


def _tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}
