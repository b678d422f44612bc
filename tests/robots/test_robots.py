"""The shipped robots against the numbers of their upstream models, and against the ground they stand on."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from embodied_rl.robot import RobotSpec, load_robot

FOLDER = Path(__file__).parent
REFLECT = np.array([1.0, -1.0, 1.0])


@pytest.fixture(params=["a1", "anymal_c", "go1", "go2"])
def robot(request) -> RobotSpec:
    return load_robot(request.param)


@pytest.fixture
def reference(robot) -> dict:
    return json.loads((FOLDER / f"{robot.name}_reference.json").read_text())


def _pose(robot: RobotSpec, model: mujoco.MjModel, joint_pos, height: float = 0.0) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:7] = (0.0, 0.0, height, 1.0, 0.0, 0.0, 0.0)
    for name, value in zip(robot.joint_names, joint_pos, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_forward(model, data)
    return data


def _feet(robot: RobotSpec, data: mujoco.MjData) -> np.ndarray:
    return np.array([data.site(foot.site).xpos for foot in robot.feet])


def test_bodies_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    assert model.nbody - 1 == len(reference["bodies"]) == 13
    for name, expected in reference["bodies"].items():
        body = model.body(name)
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, body.iquat)
        rotation = rotation.reshape(3, 3)
        assert model.body(body.parentid[0]).name == expected["parent"]
        np.testing.assert_allclose(body.mass[0], expected["mass"], atol=1e-6)
        np.testing.assert_allclose(body.ipos, expected["com"], atol=1e-6)
        # 1e-6 of the whole would hide the calves' smallest moment, 4e-5 kg m^2.
        np.testing.assert_allclose(rotation * body.inertia @ rotation.T, expected["inertia"], atol=1e-9)
        if name != "base":
            np.testing.assert_allclose(body.pos, expected["pos"], atol=1e-6)
    total = sum(body["mass"] for body in reference["bodies"].values())
    np.testing.assert_allclose(model.body_subtreemass[0], total, atol=1e-6)


def test_joints_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    assert list(robot.joint_names) == reference["joint_order"]
    for name, effort_limit in zip(robot.joint_names, robot.effort_limit, strict=True):
        joint, expected = model.joint(name), reference["joints"][name]
        np.testing.assert_allclose(joint.axis, expected["axis"], atol=1e-6)
        np.testing.assert_allclose(joint.pos, expected["pos"], atol=1e-6)
        np.testing.assert_allclose(joint.range, expected["range"], atol=1e-6)
        np.testing.assert_allclose(model.dof_armature[joint.dofadr[0]], expected["armature"], atol=1e-6)
        assert effort_limit == expected["effort_limit"]
        np.testing.assert_allclose(model.dof_frictionloss[joint.dofadr[0]], expected["friction_loss"], atol=1e-6)
        assert model.jnt_limited[joint.id]


def test_feet_at_random_poses_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    for foot, (name, expected) in zip(robot.feet, reference["feet"].items(), strict=True):
        assert foot.name == name
        np.testing.assert_allclose(model.geom(foot.geoms[0]).size[0], expected["radius"], atol=1e-6)
    for pose, expected in zip(reference["poses"], reference["foot_positions"], strict=True):
        data = _pose(robot, model, pose)
        np.testing.assert_allclose(_feet(robot, data), expected, atol=1e-6)
        np.testing.assert_allclose([data.geom(foot.geoms[0]).xpos for foot in robot.feet], expected, atol=1e-6)


def test_mirrored_joints_put_the_feet_in_mirrored_places(robot, reference):
    model = robot.mjspec().compile()
    permutation, signs = robot.joint_mirror()
    for pose in np.array(reference["poses"][:20]):
        feet = _feet(robot, _pose(robot, model, pose))
        mirrored = _feet(robot, _pose(robot, model, np.array(signs) * pose[list(permutation)]))
        np.testing.assert_allclose(mirrored, feet[list(robot.foot_mirror())] * REFLECT, atol=1e-9)


def test_the_default_pose_is_its_own_mirror_and_within_the_ranges(robot):
    permutation, signs = robot.joint_mirror()
    default = np.array(robot.default_joint_pos)
    np.testing.assert_array_equal(np.array(signs) * default[list(permutation)], default)
    model = robot.mjspec().compile()
    low, high = np.array([model.joint(name).range for name in robot.joint_names]).T
    assert ((low < default) & (default < high)).all()


def test_feet_touch_the_ground_at_base_height(robot):
    model = robot.mjspec().compile()
    data = _pose(robot, model, robot.default_joint_pos, robot.base_height)
    for foot in robot.feet:
        geom = data.geom(foot.geoms[0])
        assert abs(geom.xpos[2] - model.geom(foot.geoms[0]).size[0]) < 1e-3


def test_no_part_is_inside_another_at_the_default_pose(robot):
    spec = robot.mjspec()
    for geom in spec.geoms:
        geom.contype = geom.conaffinity
    model = spec.compile()
    data = _pose(robot, model, robot.default_joint_pos)
    assert not [(model.geom(pair[0]).bodyid[0], model.geom(pair[1]).bodyid[0]) for pair in data.contact.geom]
    # Front legs thrown back and rear ones forward meet under the trunk, and the same check finds it.
    assert _pose(robot, model, [0.0, 1.4, 0.0] * 2 + [0.0, -1.4, 0.0] * 2).ncon


def test_it_stands(robot):
    spec = robot.mjspec()
    spec.option.timestep = 0.005
    ground = spec.worldbody.add_geom(name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1])
    ground.contype, ground.conaffinity = 1, 0
    for name, stiffness, damping, limit in zip(
        robot.joint_names, robot.stiffness, robot.damping, robot.effort_limit, strict=True
    ):
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=stiffness, kv=damping)
        actuator.forcerange = [-limit, limit]
    model = spec.compile()
    data = _pose(robot, model, robot.default_joint_pos, robot.base_height)
    data.ctrl[:] = robot.default_joint_pos
    heights = []
    for _ in range(400):
        mujoco.mj_step(model, data)
        heights.append(data.body("base").xpos[2])
    assert 0.8 * robot.base_height < min(heights) and max(heights) < 1.05 * robot.base_height
    assert heights[-1] > 0.85 * robot.base_height
    assert data.body("base").xmat[8] > 0.99  # level within 8 degrees
    touching = {model.geom(geom).name for pair in data.contact.geom for geom in pair}
    assert touching == {"ground", *(geom for foot in robot.feet for geom in foot.geoms)}


def test_the_model_is_drawn_with_primitives(robot):
    spec = robot.mjspec()
    assert not list(spec.meshes) and not list(ElementTree.parse(robot.model_path).iter("mesh"))
    assert {path.suffix for path in robot.folder.iterdir()} <= {".xml", ".yaml", ".md"}
    full = spec.compile()
    visuals = [geom for geom in spec.geoms if geom.group == 2]
    assert len(visuals) > 30 and not any(geom.contype or geom.conaffinity for geom in visuals)
    for geom in visuals:
        spec.delete(geom)
    bare = spec.compile()
    assert bare.ngeom == full.ngeom - len(visuals)
    np.testing.assert_array_equal(bare.body_inertia, full.body_inertia)
    # What is left collides with the ground (contype 1, conaffinity 0) and not with itself.
    assert set(bare.geom_group) == {3} and set(bare.geom_contype) == {0} and set(bare.geom_conaffinity) == {1}


def test_feet_decide_their_friction(robot):
    model = robot.mjspec().compile()
    for foot in robot.feet:
        geom = model.geom(foot.geoms[0])
        assert geom.priority[0] == 1 and geom.condim[0] == 3
        np.testing.assert_allclose(geom.friction, (0.8, 0.02, 0.01))
