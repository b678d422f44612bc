"""What events do to a draft, and at start-up to the engine's models."""

from __future__ import annotations

from math import cos, pi, sin
from types import SimpleNamespace
from typing import cast

import torch

from embodied_rl import rotations
from embodied_rl.config.terms import find_terms
from embodied_rl.mdp import events
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.moment import Draw, Moment

COUNT, STANDING = 5000, (0.0, 0.0, 0.4, 1.0, 0.0, 0.0, 0.0, -0.8, 0.1)
#: Two joints, a and b, which stand in qpos as b and a.
ROBOT = SimpleNamespace(
    floating=True,
    default_joint_pos=torch.tensor([0.1, -0.8]),
    joint_limits=torch.tensor([[-1.0, -0.9], [0.15, 0.5]]),
    qpos_index=torch.tensor([8, 7]),
    qvel_index=torch.tensor([7, 6]),
    root_qpos=0,
    root_qvel=0,
    foot_geoms=torch.tensor([False, True, False, True]),
)


def _env(number: float | None = None) -> Moment:
    """Draws random numbers, or always the same one."""
    random = torch.rand(COUNT, 40, generator=torch.Generator().manual_seed(0))
    block = random if number is None else torch.full_like(random, number)
    scene = SimpleNamespace(base_body=1)
    return cast(Moment, SimpleNamespace(robot=ROBOT, scene=scene, draw=Draw(block), step_dt=0.02))


def _draft(**model: torch.Tensor) -> Draft:
    return Draft(torch.tensor(STANDING).repeat(COUNT, 1), torch.full((COUNT, 8), 9.0), model)


def _assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    width = high - low
    assert low - 1e-5 <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high + 1e-5
    torch.testing.assert_close(
        values.double().mean(0), torch.full(values.shape[1:], (low + high) / 2).double(), rtol=0, atol=0.02 * width
    )


def test_reset_base(call):
    draft = _draft()
    options = {"position": 0.5, "height": (0.1, 0.3), "yaw": 2.0, "tilt": 0.2, "lin_vel": 0.6, "ang_vel": 0.7}
    call(events.reset_base, _env(), draft, **options)
    _assert_uniform(draft.qpos[:, :2], -0.5, 0.5)
    _assert_uniform(draft.qpos[:, 2], 0.5, 0.7)
    _assert_uniform(draft.qvel[:, :3], -0.6, 0.6)
    _assert_uniform(draft.qvel[:, 3:6], -0.7, 0.7)
    quat = draft.qpos[:, 3:7]
    torch.testing.assert_close(quat.norm(dim=-1), torch.ones(COUNT))
    _assert_uniform(rotations.yaw_of(quat), -2.0, 2.0)
    up = rotations.rotate(quat, torch.tensor([0.0, 0.0, 1.0]).expand(COUNT, 3))
    assert 0.19 < torch.acos(up[:, 2].clamp(max=1.0)).max() < 0.2 * 2**0.5 + 1e-3
    assert torch.equal(draft.qpos[:, 7:], _draft().qpos[:, 7:]) and (draft.qvel[:, 6:] == 9.0).all()


def test_reset_base_in_the_middle_of_its_ranges_changes_nothing_but_the_height(call):
    draft = _draft()
    call(events.reset_base, _env(0.5), draft, height=(0.1, 0.3), tilt=1.0, lin_vel=1.0, ang_vel=1.0)
    expected = torch.tensor(STANDING)
    expected[2] += 0.2
    torch.testing.assert_close(draft.qpos, expected.expand(COUNT, -1))
    assert not draft.qvel[:, :6].any()


def test_reset_base_turns_the_default_attitude_about_the_vertical(call):
    draft = _draft()
    lying = torch.tensor([0.8, 0.6, 0.0, 0.0])
    draft.qpos[:, 3:7] = lying
    call(events.reset_base, _env(0.0), draft, yaw=pi / 2)
    expected = rotations.quat_mul(torch.tensor([cos(pi / 4), 0.0, 0.0, -sin(pi / 4)]), lying)
    torch.testing.assert_close(draft.qpos[0, 3:7], expected)


def test_reset_joints(call):
    draft = _draft()
    call(events.reset_joints, _env(), draft, position=0.3, velocity=2.0)
    a, b = draft.qpos[:, 8], draft.qpos[:, 7]
    # default 0.1 and -0.8, each +-0.3, limits up to 0.15 and from -0.9
    assert a.min() < -0.19 and (a >= -0.2 - 1e-6).all() and a.max() == torch.tensor(0.15)
    assert b.max() > -0.51 and (b <= -0.5 + 1e-6).all() and b.min() == torch.tensor(-0.9)
    _assert_uniform(draft.qvel[:, 6:], -2.0, 2.0)
    assert torch.equal(draft.qpos[:, :7], _draft().qpos[:, :7]) and (draft.qvel[:, :6] == 9.0).all()


def test_push(call):
    draft = _draft()
    hit = call(events.push, _env(), draft, interval_s=0.2, lin_vel=0.5, ang_vel=0.4)
    assert hit.dtype == torch.bool and 0.08 < hit.float().mean() < 0.12  # 0.02 s / 0.2 s
    kick = draft.qvel - 9.0
    assert not kick[~hit].any() and not kick[:, 2].any() and not kick[:, 6:].any()
    assert (kick[hit][:, [0, 1, 3, 4, 5]] != 0).all(1).float().mean() > 0.95
    assert 0.45 < kick[:, :2].abs().max() <= 0.5 + 1e-5 and 0.36 < kick[:, 3:6].abs().max() <= 0.4 + 1e-5
    assert torch.equal(draft.qpos, _draft().qpos)


def test_every_event_has_a_test():
    terms = find_terms()[0]["event"]
    assert [name for name in terms if f"test_{name}" not in globals()] == [
        "randomize",  # a table, with tests of its own
        "start_on_patch",  # tests/tasks/velocity/test_levels.py
    ]
