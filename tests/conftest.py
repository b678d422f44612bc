"""What every test needs: one torch thread a worker, robots to compute with by hand, rendering, and skips with their reason."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from embodied_rl.mdp.moment import Moment

# Before anything imports torch or mujoco.  The workers share the cores, and subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")


#: A robot of one joint and one foot, which is soon compiled.
HOPPER = """
<mujoco>
  <option {option}>
  <worldbody>
    <body name="base">
      <freejoint/> <geom type="box" size="0.1 0.1 0.05"/>
      <body name="leg" pos="0.1 0 0">
        <joint name="knee" axis="0 1 0"/>
        <geom name="foot" type="sphere" size="0.02" pos="0 0 -0.2"/> <site name="foot" pos="0 0 -0.2"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
HOPPER_PAGE = """
name: hopper
model: hopper.xml
base: base
base_height: 0.22
joints:
  knee: {default: 0.0, stiffness: 20.0, damping: 0.5, effort_limit: 20.0}
feet:
  foot: {geoms: [foot], site: foot, gait_offset: 0.0}
bodies: {}
mirror: {}
"""


@pytest.fixture
def hopper() -> Callable[[Path, str], None]:
    """`hopper(folder, option)`: writes the robot, with MuJoCo's options as XML has them."""

    def write(folder: Path, option: str) -> None:
        (folder / "hopper.xml").write_text(HOPPER.format(option=option))
        (folder / "robot.yaml").write_text(HOPPER_PAGE)

    return write


# One moment of three robots on a slope, in round numbers: what the terms' values are computed from by hand.
#
# The robot has two joints, named a and b, which stand in qpos as b and a, and four feet.  Robot 0 is upright, robot 1 turned by
# 90 degrees about the vertical, robot 2 rolled by 30 degrees.  A family's conftest.py adds what is asked of them.

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
UPRIGHT = [1.0, 0.0, 0.0, 0.0]
FOOT_QUAT = [  # robot 1: one foot rolled by 30 degrees, one pitched by 60, one turned about the vertical alone
    [UPRIGHT] * 4,
    [[cos(pi / 12), sin(pi / 12), 0.0, 0.0], [cos(pi / 6), 0.0, sin(pi / 6), 0.0], [cos(pi / 4), 0.0, 0.0, sin(pi / 4)], UPRIGHT],
    [UPRIGHT] * 4,
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


@pytest.fixture
def moment() -> Moment:
    """The three robots, of whom nothing is asked."""
    import torch

    from embodied_rl.mdp.moment import Draw, Moment
    from embodied_rl.mdp.part import PartState

    def tensors(values: dict) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in values.items()}

    physics = SimpleNamespace(
        num_envs=3,
        qpos=torch.tensor(QPOS),
        qvel=torch.tensor(QVEL),
        frame_pos=torch.tensor(FOOT_POS),
        frame_lin_vel=torch.tensor(FOOT_VEL),
        frame_quat=torch.tensor(FOOT_QUAT),
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
        measured={*SENSORS, "foot_frames", "foot_orientation", "joint_torque"},
        feet=SimpleNamespace(undersides=lambda position, _: position[..., 2] - 0.02),
        # diagonal feet share a clock: front left, front right, rear left, rear right
        gait_offset=torch.tensor([0.0, 0.5, 0.5, 0.0]),
        first_foot_geoms=torch.tensor([1, 2, 3, 4]),
        foot_pairs=(torch.tensor([0, 2]), torch.tensor([1, 3])),
        default_foot_up=torch.tensor([[0.0, 0.0, 1.0]] * 4),
    )
    slope = SimpleNamespace(height=lambda xy: 0.1 * xy[..., 0], half=(2.0, 4.0))
    return Moment(
        robot=PartState(robot, physics),  # pyright: ignore[reportArgumentType]
        scene=SimpleNamespace(terrain=slope, foot_geoms=(1, 3), base_body=1),  # pyright: ignore[reportArgumentType]
        episode=SimpleNamespace(**tensors(EPISODE)),  # pyright: ignore[reportArgumentType]
        commands={},
        trackers={
            "air_time": SimpleNamespace(time=torch.tensor(AIR_TIME), flight=torch.tensor(FLIGHT)),
            "previous_joint_vel": SimpleNamespace(value=torch.tensor(PREVIOUS_JOINT_VEL)),
        },
        model={"geom_friction": torch.tensor(FRICTION)[:, None, None].repeat(1, 5, 3)},
        step_dt=0.02,
        decimation=4,
        max_episode_length=20,
        env_ids=torch.arange(3),
        draw=Draw(),
        terminated=torch.tensor([False, True, False]),
    )


@pytest.fixture
def call():
    """Calls a term as a page does: its numbers arrive as tensors."""
    import torch

    def call(term, env, *arguments, **params) -> Tensor:
        number = lambda value: isinstance(value, float | tuple)  # noqa: E731
        given = {name: torch.tensor(value) if number(value) else value for name, value in params.items()}
        return term(env, *arguments, **given)

    return call


@pytest.fixture
def term() -> Callable[[str, str], Callable]:
    """`term(kind, name)`: a shipped term."""
    from embodied_rl.config.terms import find_terms

    def find(kind: str, name: str) -> Callable:
        return getattr(importlib.import_module(find_terms()[0][kind][name].module_name), name)

    return find


@pytest.fixture
def terms_of() -> Callable[[str, str], set[str]]:
    """`terms_of(kind, package)`: names of the terms that a package brings; `tasks.velocity`."""
    from embodied_rl.config.terms import find_terms

    def names(kind: str, package: str) -> set[str]:
        return {name for name, one in find_terms()[0][kind].items() if one.module_name.startswith(f"embodied_rl.{package}.")}

    return names


@pytest.fixture
def others_changed() -> Callable[[Moment], Moment]:
    """Changes everything that a term may read of the robots 1 and 2, in place; a moment that has not computed anything yet."""
    import torch

    from embodied_rl.mdp.part import PartState

    def change(moment: Moment) -> Moment:
        physics = moment.robot._physics
        owners = (moment.episode, *moment.trackers.values(), *moment.commands.values())
        remembered = [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.Tensor)]
        state = (physics.qpos, physics.qvel, physics.frame_pos, physics.frame_lin_vel, physics.joint_torque)
        for tensor in (*state, *physics.sensors.values(), *remembered):
            if tensor.dim() and len(tensor) == 3 and tensor.is_floating_point():
                tensor[1:] *= 0.7
        return dataclasses.replace(moment, robot=PartState(moment.robot._part, physics))

    return change


@pytest.fixture(scope="session")
def gl() -> str:
    """Skips the test where MuJoCo cannot render; the value of MUJOCO_GL that it renders with."""
    from embodied_rl.machine import gl_backend

    backend, reason = gl_backend()
    if backend is None:
        pytest.skip(f"MuJoCo cannot render here: {reason}")
    return backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]  # a folder's name would be a keyword too
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
