"""What events do to a draft, and at start-up to the engine's models."""

from __future__ import annotations

from math import cos, pi, sin
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

import embodied_rl
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


def test_randomize_friction(call):
    before = torch.rand(COUNT, 4, 3)
    draft = _draft(geom_friction=before.clone())
    call(events.randomize_friction, _env(), draft, range=(0.5, 1.25))
    after = draft.model["geom_friction"]
    _assert_uniform(after[:, 1, 0], 0.5, 1.25)
    assert torch.equal(after[:, 1, 0], after[:, 3, 0])
    others = [0, 2]
    assert torch.equal(after[:, others], before[:, others]) and torch.equal(after[..., 1:], before[..., 1:])


def test_push(call):
    draft = _draft()
    hit = call(events.push, _env(), draft, interval_s=0.2, lin_vel=0.5, ang_vel=0.4)
    assert hit.dtype == torch.bool and 0.08 < hit.float().mean() < 0.12  # 0.02 s / 0.2 s
    kick = draft.qvel - 9.0
    assert not kick[~hit].any() and not kick[:, 2].any() and not kick[:, 6:].any()
    assert (kick[hit][:, [0, 1, 3, 4, 5]] != 0).all(1).float().mean() > 0.95
    assert 0.45 < kick[:, :2].abs().max() <= 0.5 + 1e-5 and 0.36 < kick[:, 3:6].abs().max() <= 0.4 + 1e-5
    assert torch.equal(draft.qpos, _draft().qpos)


def test_randomize_base_mass(call):
    mass, inertia = torch.rand(COUNT, 3) + 5.0, torch.rand(COUNT, 3, 3)
    draft = _draft(body_mass=mass.clone(), body_inertia=inertia.clone())
    given = dict(draft.model)
    call(events.randomize_base_mass, _env(), draft, added=(-1.0, 2.0))
    added = draft.model["body_mass"] - mass
    _assert_uniform(added[:, 1], -1.0, 2.0)
    assert not added[:, [0, 2]].any()
    factor = draft.model["body_mass"] / mass
    torch.testing.assert_close(draft.model["body_inertia"], inertia * factor[..., None])
    assert torch.equal(given["body_mass"], mass) and torch.equal(given["body_inertia"], inertia)  # not in place


def test_randomize_base_com(call):
    com = torch.rand(COUNT, 3, 3)
    draft = _draft(body_ipos=com.clone())
    call(events.randomize_base_com, _env(), draft, offset=0.03)
    moved = draft.model["body_ipos"] - com
    _assert_uniform(moved[:, 1], -0.03, 0.03)
    assert not moved[:, [0, 2]].any()


def test_randomize_armature(call):
    draft = _draft(dof_armature=torch.full((COUNT, 8), 0.01))
    call(events.randomize_armature, _env(), draft, factor=(1.0, 1.5))
    factor = draft.model["dof_armature"] / 0.01
    _assert_uniform(factor[:, 6:], 1.0, 1.5)
    torch.testing.assert_close(factor[:, :6], torch.ones(COUNT, 6))
    assert not torch.equal(factor[:, 6], factor[:, 7])


def test_randomize_gains(call):
    gain, bias = torch.zeros(COUNT, 2, 10), torch.zeros(COUNT, 2, 10)
    gain[..., 0], bias[..., 1], bias[..., 2] = 20.0, -20.0, -0.5
    draft = _draft(actuator_gainprm=gain.clone(), actuator_biasprm=bias.clone())
    call(events.randomize_gains, _env(), draft, stiffness=(0.8, 1.2), damping=(0.5, 1.5))
    gain, bias = draft.model["actuator_gainprm"], draft.model["actuator_biasprm"]
    _assert_uniform(gain[..., 0] / 20.0, 0.8, 1.2)
    _assert_uniform(bias[..., 2] / -0.5, 0.5, 1.5)
    # torque = kp (target - q) - kd qd keeps its form
    assert torch.equal(gain[..., 0], -bias[..., 1])
    assert not gain[..., 1:].any() and not bias[..., 3:].any() and not bias[..., 0].any()


def test_every_event_has_a_test():
    terms = find_terms()[0]["event"]
    assert [name for name in terms if f"test_{name}" not in globals()] == []


@pytest.mark.parametrize("name", sorted(find_terms()[0]["event"]))
def test_events_declare_the_fields_that_they_change(name, call):
    fields = {
        "geom_friction": (4, 3),
        "body_mass": (3,),
        "body_inertia": (3, 3),
        "body_ipos": (3, 3),
        "dof_armature": (8,),
        "actuator_gainprm": (2, 10),
        "actuator_biasprm": (2, 10),
    }
    given = {field: torch.ones(COUNT, *shape) for field, shape in fields.items()}
    draft = _draft(**given)
    term = getattr(events, name)
    call(term, _env(), draft)
    assert {field for field in fields if not torch.equal(draft.model[field], given[field])} == set(term.fields)


def test_startup_events_reach_the_engine():
    added = ["events.randomize_base_mass.added=[1.0, 2.0]", "events.randomize_base_com.offset=0.05"]
    added += ["events.randomize_armature.factor=[1.2, 1.5]", "events.randomize_gains.stiffness=[0.5, 0.9]"]
    env = embodied_rl.make("go2_flat", ["env.compile=false", *added], num_envs=3)
    model, base = env.scene.model, env.scene.base_body
    fields = ("body_mass", "body_inertia", "body_ipos", "dof_armature", "actuator_gainprm", "actuator_biasprm")
    for field in fields:
        values = env.physics.expand(field)
        assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2]), field
    extra = env.physics.expand("body_mass")[:, base].numpy() - model.body_mass[base]
    assert np.all((extra > 1.0) & (extra < 2.0))
    batch = env.physics._batch  # pyright: ignore[reportAttributeAccessIssue]
    for row in range(3):  # what MuJoCo derives from the masses has followed
        whole = batch.get_model(row).body_subtreemass[base]
        np.testing.assert_allclose(whole - model.body_subtreemass[base], extra[row], rtol=1e-4)
    env.close()
