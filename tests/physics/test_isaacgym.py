"""Isaac Gym's engine on a stand-in for the simulator, in a real Python 3.8: what it is told, what it says, and how it ends.

tests/physics/test_engines.py holds it to the protocol.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl import doctor, inspection, make_env
from embodied_rl.config import load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.physics import isaacgym, isaacgym_process
from embodied_rl.physics.isaacgym import IsaacGymPhysics
from embodied_rl.physics.isaacgym_model import collision_filters, drive_modes, ground_of, inspect_scene, lacking
from embodied_rl.physics.urdf_writer import Linkage, collides

pytestmark = pytest.mark.usefixtures("isaacgym_stand_in")

FEW = ["env.num_envs=4", "env.compile=false", "physics.engine=isaacgym"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes what it is asked for."""
    path = tmp_path / "calls"
    monkeypatch.setenv("ISAACGYM_STAND_IN_CALLS", str(path))
    return path


def noted(path: Path) -> list[dict]:
    """What was asked for since the last look."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("")
    return lines


def made(page: str, *changes: str) -> tuple[Env, IsaacGymPhysics]:
    env = make_env.make(page, [*FEW, *changes])
    assert isinstance(env.physics, IsaacGymPhysics)
    return env, env.physics


def made_of(text: str) -> IsaacGymPhysics:
    """Two robots of a model, with no page's scene about them."""
    model, nothing = mujoco.MjModel.from_xml_string(text), {"frames": (), "frame_orientation": False, "sensors": {}}
    scene: Any = SimpleNamespace(model=model, **nothing, joint_torque=True, foot_touchdown=False)
    return IsaacGymPhysics(scene, 2, load("go2_flat", FEW).physics, torch.device("cpu"))


def pid_of(physics: IsaacGymPhysics) -> int:
    return physics._worker._process.pid


def gone(pid: int) -> bool:
    """Whether the process ends within 5 s."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


# -------------------------------------------------------------------------------------------------------------- conventions


def test_states_are_those_of_the_base_in_the_world() -> None:
    """MuJoCo's own velocity of the centre of mass is the oracle."""
    model = make_env.make_scene(load("g1_flat")).model
    rng, data, result = np.random.default_rng(0), mujoco.MjData(model), np.zeros(6)
    qpos = np.concatenate([rng.normal(size=(5, 3)), rng.normal(size=(5, 4)), rng.normal(size=(5, model.nq - 7))], axis=1)
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    qvel, centre = rng.normal(size=(5, model.nv)), torch.tensor(model.body_ipos[1]).expand(5, 3)
    order = torch.arange(model.nq - 7).flip(0)
    root, dof = isaacgym._to_world(torch.tensor(qpos), torch.tensor(qvel), centre, order)
    for row in range(5):
        data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
        mujoco.mj_forward(model, data)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, 1, result, 0)
        np.testing.assert_allclose(root[row, 7:], np.concatenate([result[3:], result[:3]]), atol=1e-9)
        np.testing.assert_allclose(root[row, :7], [*data.xpos[1], *data.xquat[1][1:], data.xquat[1][0]], atol=1e-9)
        np.testing.assert_allclose(dof[row], np.stack([data.qpos[7:], data.qvel[6:]], axis=1)[::-1])
    back = torch.zeros(5, model.nq, dtype=torch.double), torch.zeros(5, model.nv, dtype=torch.double)
    isaacgym._from_world(root, dof, centre, order, *back)
    np.testing.assert_allclose(back[0], qpos, atol=1e-12)
    np.testing.assert_allclose(back[1], qvel, atol=1e-12)


@pytest.mark.parametrize("page", ["go2_rough", "g1_legs_rough"])
def test_the_ground_has_the_terrains_heights(page: str) -> None:
    scene = make_env.make_scene(load(page))
    settings, samples = ground_of(scene.model)
    assert samples is not None and samples.dtype == np.int16
    rows, columns, cell = settings["rows"], settings["columns"], settings["cell"]
    x, y = (settings["place"][axis] + cell * np.arange(count) for axis, count in ((0, columns), (1, rows)))
    heights = samples.reshape(rows, columns) * settings["rise"] + settings["place"][2]
    xy = np.stack(np.meshgrid(x, y), axis=-1)
    np.testing.assert_allclose(
        heights, scene.terrain.height(torch.tensor(xy, dtype=torch.float32)).numpy(), atol=settings["rise"]
    )
    assert np.ptp(heights) > 0.1 and settings["rise"] < 1e-3


#: Balls in one place, of which MuJoCo says which meet: masks, bodies that hang on each other, and an exclusion.
BALLS = """
<mujoco>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="base"><freejoint/> <geom size="1" mass="1"/> <geom size="1" mass="1" contype="2" conaffinity="2"/>
      <body name="a"><joint name="a"/> <geom size="1" mass="1"/>
        <body name="b"><joint name="b"/> <geom size="1" mass="1"/>
          <body name="fixed"> <geom size="1" mass="1" contype="0" conaffinity="3"/></body>
          <body name="c"><joint name="c"/> <geom size="1" mass="1" contype="0" conaffinity="1"/></body>
        </body>
      </body>
      <body name="d"><joint name="d"/> <geom size="1" mass="1" contype="2" conaffinity="1"/>
        <body name="e"><joint name="e"/> <geom size="1" mass="1" contype="0" conaffinity="1"/></body></body>
    </body>
  </worldbody>
  <contact><exclude body1="base" body2="b"/></contact>
</mujoco>
"""


@pytest.mark.parametrize("measured", [False, True])
def test_shapes_meet_where_geoms_do(measured: bool) -> None:
    model = mujoco.MjModel.from_xml_string(BALLS)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    meeting = {tuple(sorted(pair)) for pair in data.contact.geom.tolist() if 0 not in pair}
    linkage = Linkage(model, [{geom} for geom in range(1, model.ngeom)] if measured else ())
    filters = collision_filters(model, linkage)
    link = {geom: number for number, one in enumerate(linkage.links) for geom in one.geoms}
    found = set()
    for one in filters:
        for other in filters:
            first, second = link[one], link[other]
            adjacent = first == second or linkage.links[first].parent == second or linkage.links[second].parent == first
            if one < other and not adjacent and not filters[one] & filters[other]:
                found.add((one, other))
    assert found == meeting and meeting


def test_most_robots_need_one_bit_or_none() -> None:
    for page, bits in (("go2_flat", {1}), ("g1_flat", {1})):
        scene = make_env.make_scene(load(page))
        assert set(collision_filters(scene.model, Linkage(scene.model)).values()) <= bits | {0}


# ------------------------------------------------------------------------------------------------- what the simulator is told


def test_it_is_asked_once_a_step_for_what_was_written(calls: Path) -> None:
    env, physics = made("go2_flat")
    env.step(torch.zeros(4, env.num_actions))
    noted(calls)
    qpos = physics.qpos.clone()
    qpos[:, 2] += 1.0
    physics.write(torch.tensor([True, False, False, True]), qpos=qpos)
    physics.write(torch.tensor([False, False, True, False]), qvel=torch.zeros_like(physics.qvel))
    physics.step(env.controls())
    simulated = ["simulate", "fetch_results"] * env.page.physics.decimation
    asked = noted(calls)
    assert [one["call"] for one in asked[:3]] == [
        "set_actor_root_state_tensor_indexed",
        "set_dof_state_tensor_indexed",
        "set_dof_position_target_tensor",
    ]
    assert [one["call"] for one in asked[3:]] == simulated
    assert asked[0]["rows"] == asked[1]["rows"] == [0, 2, 3]
    physics.step(env.controls())
    assert [one["call"] for one in noted(calls)] == ["set_dof_position_target_tensor", *simulated]
    env.close()


def test_robots_are_what_their_pages_say(calls: Path) -> None:
    env, physics = made("a1_flat", "scene.collisions=full")
    env.step(torch.zeros(4, env.num_actions))
    asked, model = noted(calls), env.scene.model
    for kind, count in (("set_actor_dof_properties", 4), ("set_actor_rigid_body_properties", 4)):
        assert sum(one["call"] == kind for one in asked) == count
    drive = next(one for one in asked if one["call"] == "set_actor_dof_properties")
    spec = env.robot.spec
    dofs = [model.joint(1 + int(number)).name for number in physics._dofs]
    # the importer's order is another one
    assert dofs != list(spec.joint_names) and sorted(dofs) == sorted(spec.joint_names)
    for number, name in enumerate(dofs):
        own, joint = spec.joint_names.index(name), model.joint(name)
        assert drive["stiffness"][number] == pytest.approx(spec.stiffness[own])
        assert drive["damping"][number] == pytest.approx(spec.damping[own] + model.dof_damping[joint.dofadr[0]])
        assert drive["effort"][number] == pytest.approx(spec.effort_limit[own])
        assert drive["armature"][number] == pytest.approx(model.dof_armature[joint.dofadr[0]])
        assert drive["driveMode"][number] == 1
    bodies = next(one for one in asked if one["call"] == "set_actor_rigid_body_properties")
    assert sum(bodies["mass"]) == pytest.approx(model.body_mass.sum(), rel=1e-6)
    # links in another order too, each with its own
    own = [physics.expand(field).double().numpy()[:1] for field in ("body_mass", "body_ipos", "body_inertia")]
    names = [link.name for link in physics._linkage.links]
    order = [names.index(name) for name in next(one["links"] for one in asked if one["call"] == "load_asset")]
    assert order != sorted(order)
    for given, wanted in zip(("mass", "com", "inertia"), physics._linkage.inertials(*own), strict=True):
        np.testing.assert_allclose(bodies[given], wanted[0, order], rtol=1e-5, atol=1e-7)
    shapes = next(one for one in asked if one["call"] == "set_actor_rigid_shape_properties")
    ground = next(one for one in asked if one["call"] == "add_ground")["friction"]
    filters = collision_filters(model, physics._linkage)
    geoms = [geom for link in order for geom in physics._linkage.links[link].geoms]
    assert list(dict.fromkeys(physics._geoms.tolist())) == geoms
    assert shapes["filter"] == [filters[geom] for geom in physics._geoms.tolist()]
    for friction, geom in zip(shapes["friction"], physics._geoms, strict=True):
        assert 0.5 * (friction + ground) == pytest.approx(float(physics.expand("geom_friction")[0, geom, 0]))
    env.close()


def test_torques_are_those_of_the_drives() -> None:
    env, physics = made("go2_flat", "env.seed=5")
    gain, damping = torch.tensor(env.robot.spec.stiffness), torch.tensor(env.robot.spec.damping)
    limit = torch.tensor(env.robot.spec.effort_limit)
    ctrl = physics.qpos[:, 7:] + torch.linspace(-0.5, 3.0, 48).view(4, 12)
    physics._reads_torque = True
    physics.step(ctrl)
    wanted = gain * (ctrl - physics.qpos[:, 7:]) - damping * physics.qvel[:, 6:]
    torch.testing.assert_close(physics.joint_torque, wanted.clamp(-limit, limit).float(), rtol=1e-4, atol=1e-4)
    assert (physics.joint_torque.abs() == limit).any() and (physics.joint_torque.abs() < limit).any()
    env.close()


@pytest.mark.parametrize("damping", [0.0, 5.0])
def test_a_velocity_drive_has_the_joints_damping_too(damping: float) -> None:
    """It settles where MuJoCo does: kv (target - qd) - damping qd = 0; beside it, a position drive on another joint."""
    text = LEG.replace('range="-1 1"', f'axis="0 1 0" damping="{damping}"')
    text = text.replace("</body></body>", '<body><joint name="knee" axis="0 1 0"/><geom size="0.01"/></body></body></body>')
    text = text.replace("</actuator>", '<velocity name="turn" joint="hip" kv="5"/></actuator>').replace(
        'joint="hip" kp', 'joint="knee" kv="1" kp'
    )
    physics = made_of(text)
    for _ in range(100):
        physics.step(torch.tensor([0.4, 2.0]).expand(2, 2))
    torch.testing.assert_close(physics.qvel[:, 6], torch.full((2,), 2.0 * 5.0 / (5.0 + damping)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(physics.qpos[:, 8], torch.full((2,), 0.4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(physics.joint_torque[:, 1], damping * physics.qvel[:, 6], rtol=1e-3, atol=1e-2)
    # of gains that change, the target follows in the same step
    gain, bias = physics.expand("actuator_gainprm"), physics.expand("actuator_biasprm")
    gain[:, 1], bias[:, 1] = 2.0 * gain[:, 1], 2.0 * bias[:, 1]
    physics.write(torch.ones(2, dtype=torch.bool), actuator_gainprm=gain, actuator_biasprm=bias)
    physics.step(torch.tensor([0.4, 2.0]).expand(2, 2))
    told = physics._shared["control"][0][:, physics._driven[1]]
    torch.testing.assert_close(told, torch.full((2,), 2.0 * 10.0 / (10.0 + damping)))
    physics.close()


def test_sensors_tell_the_parts_that_they_ask_for() -> None:
    """The feet of a robot that stands touch the ground, and its calves, which are of the same bodies, do not."""
    env, physics = made("go2_flat_full")
    pose = env.robot.default_qpos.expand(4, -1).clone()
    physics.write(torch.ones(4, dtype=torch.bool), qpos=pose, qvel=torch.zeros_like(physics.qvel))
    for _ in range(40):
        physics.step(pose[:, 7:])
    assert physics.sensors["foot_contact"].all()
    groups = [name for name in physics.sensors if name.startswith("contact:")]
    assert groups and not any(physics.sensors[name].any() for name in groups)
    pose[:, 2] = 2.0
    physics.write(torch.ones(4, dtype=torch.bool), qpos=pose)
    physics.step(pose[:, 7:])
    assert not physics.sensors["foot_contact"].any()
    env.close()


def test_touchdowns_are_looked_for_in_every_substep() -> None:
    page = load("go2_flat", FEW)
    scene = replace(make_env.make_scene(page), foot_touchdown=True)
    physics = IsaacGymPhysics(scene, 2, page.physics, torch.device("cpu"))
    pose = torch.tensor(scene.default_qpos(), dtype=torch.float32).expand(2, -1).clone()
    pose[:, 2] += 0.05
    physics.write(torch.ones(2, dtype=torch.bool), qpos=pose)
    landed = torch.zeros(2, 4)
    for _ in range(30):
        physics.step(pose[:, 7:])
        landed += physics.sensors["foot_touchdown"]
    assert (landed >= 1).all() and physics.sensors["foot_contact"].all()
    physics.close()


def test_parts_without_names_are_found() -> None:
    text = LEG.replace('<joint name="hip"', '<joint axis="0 1 0"').replace(' joint="hip"', ' joint="knee"')
    text = text.replace("</body></body>", '<body pos="0 0 -0.3"><joint name="knee"/><geom size="0.01"/></body></body></body>')
    physics = made_of(text.replace('<body name="leg">', "<body>"))
    for _ in range(20):
        physics.step(torch.full((2, 1), 0.3))
    assert (physics.qpos[:, 8] > 0.2).all() and (physics.qpos[:, 7] == 0.0).all()
    physics.close()


def test_numbers_of_their_own(calls: Path) -> None:
    env, physics = made("go2_flat")
    model, everyone = env.scene.model, torch.ones(4, dtype=torch.bool)
    mass, friction = physics.expand("body_mass"), physics.expand("geom_friction")
    mass[:, 1] += torch.arange(4.0)
    physics.write(everyone, body_mass=mass)
    physics.step(env.controls())
    asked = noted(calls)
    heavier = [sum(one["mass"]) for one in asked if one["call"] == "set_actor_rigid_body_properties"]
    np.testing.assert_allclose(heavier, model.body_mass.sum() + np.arange(4), rtol=1e-6)
    ground = next(one for one in asked if one["call"] == "add_ground")["friction"]
    friction[..., 0] = torch.tensor([0.5, 0.7, 0.9, 1.1])[:, None]
    physics.write(torch.tensor([False, True, False, True]), geom_friction=friction)
    physics.step(env.controls())
    asked = [one for one in noted(calls) if one["call"] == "set_actor_rigid_shape_properties"]
    assert [one["env"] for one in asked] == [1, 3]
    for one, wanted in zip(asked, (0.7, 1.1), strict=True):
        np.testing.assert_allclose(0.5 * (np.array(one["friction"]) + ground), wanted, rtol=1e-6)
    # a mass that is what it was is no news, another one is
    physics.write(everyone, body_mass=mass)
    physics.step(env.controls())
    physics.write(everyone, body_mass=1.1 * mass)
    with pytest.raises(
        UserError, match=r"takes body_mass before its first step alone: let the event that draws it have `when: st"
    ):
        physics.step(env.controls())
    env.close()


@pytest.mark.parametrize(
    ("field", "factor", "message"),
    [
        ("geom_friction", 0.1, "is less than half the ground's"),
        ("actuator_gainprm", 1.5, "is no position drive with actuator_gainprm and actuator_biasprm that do not belong together"),
    ],
)
def test_numbers_that_cannot_be_are_refused(field: str, factor: float, message: str) -> None:
    env, physics = made("go2_flat")
    values = physics.expand(field)
    physics.write(torch.ones(4, dtype=torch.bool), **{field: factor * values})
    with pytest.raises(UserError, match=message):
        physics.step(env.controls())
    env.close()


def test_poses_in_the_world_are_those_in_the_environments(monkeypatch: pytest.MonkeyPatch, calls: Path) -> None:
    """Whichever the simulator gives, ours are from each environment's own origin."""
    found = []
    for origins in ("", "1"):
        monkeypatch.setenv("ISAACGYM_STAND_IN_ORIGINS", origins)
        env, physics = made("go2_flat", "env.seed=3")
        for _ in range(5):
            env.step(torch.full((4, env.num_actions), 0.3))
        places = next(one["places"] for one in noted(calls) if one["call"] == "prepare_sim")
        assert (np.ptp(places, axis=0) > 1.0).tolist() == [bool(origins), bool(origins), False]
        found.append((physics.qpos.clone(), physics.qvel.clone(), physics.sensors["foot_contact"].clone()))
        env.close()
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- what it refuses

LEG = """
<mujoco>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="base"><freejoint/> <geom size="0.1"/>
      <body name="leg"><joint name="hip" range="-1 1"/> <geom size="0.05" pos="0 0 -0.3"/></body></body>
  </worldbody>
  <actuator><position name="motor" joint="hip" kp="20"/></actuator>
</mujoco>
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('range="-1 1"', 'range="-1 1" stiffness="3"', "it has springs at joints (jnt_stiffness); take native"),
        ('<body name="leg">', '<body name="leg" gravcomp="1">', "it has gravity compensation"),
        ("<worldbody>", '<option density="1.2"/><worldbody>', "it has a fluid around it"),
        ("<worldbody>", '<worldbody><geom type="box" size="1 1 1" pos="5 0 0"/>', "it has other ground than one plane or height"),
        ("<worldbody>", '<worldbody><body mocap="true"/>', "it has mocap bodies"),
        (
            '<position name="motor" joint="hip" kp="20"/>',
            '<motor name="motor" joint="hip"/>',
            "actuator 'motor' drives neither a po",
        ),
        ('kp="20"', 'kp="20" gear="2"', "actuator 'motor' drives neither a position nor a velocity, with gear 1"),
        ('kp="20"', 'kp="20" ctrlrange="-1 1"', "actuator 'motor' drives neither a position nor a velocity"),
        ('kp="20"', 'kp="20" forcerange="-7 5"', "it has drives that are stronger one way than the other"),
        ("<worldbody>", '<option><flag limit="disable"/></option><worldbody>', "it has gravity or limits switched off"),
        ('range="-1 1"', 'range="-1 1" damping="1 0.5"', "it has damping that grows with speed (dof_dampingpoly)"),
        ("<freejoint/>", '<joint type="free" damping="1"/>', "it has damping or armature of the base's free joint"),
        ('<geom size="0.05"', '<geom condim="1" size="0.05"', "it has contacts without friction (condim 1)"),
        (
            '<geom size="0.05"',
            '<geom type="ellipsoid" size="0.1 0.2 0.3"',
            "geom 'geom_2' is of the kind ellipsoid, which a URDF has",
        ),
        ('<geom size="0.05"', '<geom contype="2" conaffinity="2" size="0.05"', "parts that collide, and not with the ground"),
        (
            "<worldbody>",
            '<worldbody><body><geom type="box" size="1 1 1"/></body>',
            "it has other ground than one plane or height",
        ),
        ('type="plane"', 'type="plane" euler="0 5 0"', "its ground is level"),
        ("</actuator>", '<velocity name="other" joint="hip"/></actuator>', "'motor' and 'other' drive one joint"),
        ('size="0 0 1"', 'size="0 0 1" pos="0 0 0.1"', "its ground is level, a plane at z = 0, and the model's is elsewhere"),
    ],
)
def test_what_it_would_simulate_wrongly_is_refused(old: str, new: str, message: str) -> None:
    assert LEG.count(old) == 1
    model = mujoco.MjModel.from_xml_string(LEG.replace(old, new))
    with pytest.raises(UserError) as caught:
        inspect_scene(cast(Any, SimpleNamespace(model=model, sensors={})), {})
    assert str(caught.value).startswith("physics.engine: isaacgym") and message in str(caught.value)


def test_a_mask_of_all_bits_collides() -> None:
    model = mujoco.MjModel.from_xml_string(LEG.replace('<geom size="0.05"', '<geom contype="-1" conaffinity="0" size="0.05"'))
    assert [model.geom_contype[2], *collides(model)] == [-1, True, True, True]
    inspect_scene(cast(Any, SimpleNamespace(model=model, sensors={})), {})
    condim = LEG.replace('<geom size="0.05"', '<geom contype="-1" conaffinity="0" condim="1" size="0.05"')
    with pytest.raises(UserError, match="contacts without friction"):
        lacking(mujoco.MjModel.from_xml_string(condim))


def test_what_it_leaves_out_is_said() -> None:
    model = mujoco.MjModel.from_xml_string(LEG.replace('range="-1 1"', 'range="-1 1" frictionloss="0.1"'))
    assert lacking(model) == ["the dry friction of 1 joints is left out: its own is a share of the joint's force"]
    assert drive_modes(mujoco.MjModel.from_xml_string(LEG.replace("position name", "velocity name").replace("kp", "kv"))) == [
        "velocity"
    ]


@pytest.mark.parametrize(
    ("quantity", "of", "when", "message"),
    [
        ("gravity", "scene", "startup", "has no values of opt.gravity per simulation, which an event draws; it has body_mass"),
        ("friction_loss", "all", "startup", "has no values of dof_frictionloss per simulation"),
        (
            "mass",
            "base",
            "iteration",
            "takes body_mass before its first step alone: let the event that draws it have `when: startup`",
        ),
        ("mass", "base", "startup", None),
        ("com", "base", "startup", None),
        ("stiffness", "all", "reset", None),
        ("damping", "all", "reset", None),
        ("armature", "all", "startup", None),
    ],
)
def test_check_knows_what_events_may_draw(quantity: str, of: str, when: str, message: str | None) -> None:
    values = "[-0.1, 0.1]" if quantity == "com" else "[0.9, 1.1]"
    event = f"{{term: randomize, quantity: {quantity}, of: {of}, operation: {'add' if quantity == 'com' else 'scale'}, "
    changes = [f"events.own={event}range: {values}, when: {when}}}", "physics.engine=isaacgym"]
    if quantity == "gravity":
        changes[0] = changes[0].replace("of: scene, ", "")
    if quantity == "friction_loss":
        changes.append("scene.dry_friction=true")
    page = load("go2_flat", changes)
    if message:
        with pytest.raises(UserError) as caught:
            inspection.inspect(page)
        assert str(caught.value).startswith("physics.engine: isaacgym") and message in str(caught.value)
        return
    (line,) = [line for line in inspection.inspect(page).lines if line.startswith("isaacgym")]
    assert "of the page's physics it reads dt, decimation, device and num_threads" in line
    env, _ = made("go2_flat", *changes)
    for _ in range(2):
        env.step(torch.zeros(4, env.num_actions))
    env.close()


def test_the_doctor_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._isaacgym()
    assert found.works and found.detail.startswith("isaacgym 1.0rc4, torch stand-in, python 3.8")
    monkeypatch.setenv("EMBODIED_RL_ISAACGYM_PYTHON", "/nowhere/python")
    found = doctor._isaacgym()
    assert (
        not found.works
        and found.detail == "EMBODIED_RL_ISAACGYM_PYTHON=/nowhere/python: is no file; name a Python 3.8 that has isaacgym"
    )


# -------------------------------------------------------------------------------------------------------------- how it ends


@pytest.fixture
def shared_memory() -> Iterator[None]:
    """No process has an end of it, or of a pipe or socket, that it did not have before."""
    before = _shared(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()  # an error's traceback holds what was made
    assert (_shared(), len(os.listdir("/proc/self/fd"))) <= before


def _shared() -> int:
    count = 0
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            count += "memfd:embodied_rl" in os.readlink(entry)
    return count


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("die", "its process was ended by SIGSEGV; it last said: something broke in the simulator"),
        ("hang", "no answer to 'step' in 1 s: its process hung, and was ended"),
        ("error", "GymError: an error of the simulator"),
        ("deny", "RuntimeError: set_dof_position_target_tensor was not taken"),
    ],
)
def test_a_fault_is_one_line(fault: str, message: str, monkeypatch: pytest.MonkeyPatch, shared_memory: None) -> None:
    monkeypatch.setenv("ISAACGYM_STAND_IN_FAULT", fault)
    monkeypatch.setattr(isaacgym, "STEP_S", 1.0)
    env, physics = made("go2_flat")
    pid = pid_of(physics)
    with pytest.raises(UserError) as caught:
        for _ in range(2):
            env.step(torch.zeros(4, env.num_actions))
    assert str(caught.value) == f"physics.engine: isaacgym: {message}"
    env.close()
    assert gone(pid)


def test_a_killed_worker_is_one_line(shared_memory: None) -> None:
    env, physics = made("go2_flat")
    env.step(torch.zeros(4, env.num_actions))
    os.kill(pid_of(physics), signal.SIGKILL)
    with pytest.raises(UserError, match=r"^physics.engine: isaacgym: its process was ended by SIGKILL$"):
        env.step(torch.zeros(4, env.num_actions))
    with pytest.raises(UserError, match=r"^physics.engine: isaacgym: its process was ended before$"):
        env.step(torch.zeros(4, env.num_actions))
    env.close()


def test_what_it_says_of_overflows_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ISAACGYM_STAND_IN_FAULT", "overflow")
    env, _ = made("go2_flat")
    for _ in range(2):
        env.step(torch.zeros(4, env.num_actions))
    for _ in range(2):
        env.drain_totals()
    said = [record.message for record in caplog.records if "it says" in record.message]
    assert said == ["physics.engine: isaacgym: it says: PxGpu: contact buffer overflow detected, contacts have been dropped"]
    env.close()


def test_an_interrupt_leaves_no_answer_for_the_next_question(monkeypatch: pytest.MonkeyPatch, shared_memory: None) -> None:
    env, physics = made("go2_flat")
    env.step(torch.zeros(4, env.num_actions))

    class Interrupted:
        def register(self, *_: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isaacgym_process.select, "poll", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            physics.step(env.controls())
    with pytest.raises(UserError, match="its process was ended before"):
        physics.step(env.controls())
    env.close()


def test_it_is_no_more_when_nobody_has_it() -> None:
    env, physics = made("go2_flat")
    pid = pid_of(physics)
    env.close()
    assert gone(pid)
    worker = isaacgym_process.Worker()
    pid = worker._process.pid
    del worker
    assert gone(pid)


@pytest.mark.parametrize("fault", ["", "hang"])
def test_it_ends_with_us(fault: str, tmp_path: Path, shared_memory: None) -> None:
    """We are killed, while it waits, and while it hangs in the simulator with the interpreter's lock."""
    script = (
        "import sys, torch\nfrom embodied_rl import make\n"
        f"env = make('go2_flat', {FEW})\n"
        "print(env.physics._worker._process.pid, flush=True)\n"
        "while True:\n    env.step(torch.zeros(4, env.num_actions))\n"
    )
    environment = os.environ | ({"ISAACGYM_STAND_IN_FAULT": fault} if fault else {})
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    time.sleep(1.0)
    os.kill(pid, 0)
    process.kill()
    process.wait()
    assert gone(pid)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("import sys; sys.exit(3)", "its process ended with 3"),
        ("raise SystemExit('no licence found')", "its process ended with 1; it last said: no licence found"),
        (None, "and isaacgym loads in 3.6, 3.7, 3.8; name one of these"),
        ({"protocol": 2}, "does not speak our protocol 1"),
        ({"token": "another"}, "does not speak our protocol 1"),
        ({"isaacgym": "1.0rc3"}, "has isaacgym 1.0rc3, and this is written for 1.0rc4"),
        ({"error": "ModuleNotFoundError: No module named 'isaacgym'"}, "has no isaacgym; install Isaac Gym Preview 4"),
        ({"error": "ImportError: libpython3.8.so.1.0: no such file"}, "isaacgym: ImportError: libpython3.8.so.1.0: no such file"),
    ],
)
def test_another_worker_is_refused(
    answers: str | dict | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_memory: None
) -> None:
    if isinstance(answers, str):
        script = answers
    else:
        found = {"protocol": 1, "python": "3.11.7", "torch": "2", "isaacgym": "1.0rc4"}
        found |= {"python": "3.8.18"} | answers if answers else {}
        script = (
            "import json, socket, sys\nchannel = socket.socket(fileno=int(sys.argv[1]))\n"
            f"request = json.loads(channel.recv(1 << 20))\nanswer = {{'token': request['token']}} | {found!r}\n"
            "channel.send(json.dumps(answer).encode())\nchannel.recv(10)\n"
        )
    path = tmp_path / "worker.py"
    path.write_text(script)
    monkeypatch.setattr(isaacgym_process, "_WORKER", path)
    monkeypatch.setenv("EMBODIED_RL_ISAACGYM_PYTHON", sys.executable)
    with pytest.raises(UserError) as caught:
        isaacgym_process.Worker()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_python_without_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python38: Path, shared_memory: None
) -> None:
    monkeypatch.setenv("EMBODIED_RL_ISAACGYM_PYTHON", str(python38))
    # ours, of another version, is none of its business
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "isaacgym_stand_in"))
    with pytest.raises(UserError, match="has no isaacgym; install Isaac Gym Preview 4, which NVIDIA gives away at"):
        isaacgym_process.Worker()
    file = tmp_path / "python"
    file.write_text("")
    for given, why in (("", "is not set"), (str(tmp_path / "none"), "is no file"), (str(file), "cannot be executed")):
        monkeypatch.setenv("EMBODIED_RL_ISAACGYM_PYTHON", given)
        with pytest.raises(UserError, match=why):
            isaacgym_process.Worker()
    file.chmod(0o755)
    with pytest.raises(UserError, match="Exec format error; name a Python"):
        isaacgym_process.Worker()


# ----------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("page", ["go2_flat", "go2_rough"])
def test_pages_train(page: str, tmp_path: Path) -> None:
    from embodied_rl import training
    from embodied_rl.learn.run import Run

    changes = ["env.num_envs=64", "env.compile=false", "physics.engine=isaacgym", "train.steps=8"]
    task = load(page, changes)
    trainer = training.make_trainer(task, Run.create(task, tmp_path / "run"))
    found = list(trainer.train(3))
    assert len(found) == 3 and all(
        np.isfinite(value) for metrics in found for value in metrics.values() if isinstance(value, float)
    )
