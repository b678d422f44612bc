"""The H1 against the numbers of its upstream model, the ground that it stands on, and itself."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from embodied_rl.robot import RobotSpec, load_robot

from .conftest import REFLECT, posed, sites, with_motors

#: How far above the sole the hull of a foot ends [m].
CLEARANCE = 0.006


@pytest.fixture(scope="module")
def robot() -> RobotSpec:
    return load_robot("h1")


@pytest.fixture(scope="module")
def model(robot) -> mujoco.MjModel:
    return robot.mjspec().compile()


@pytest.fixture(scope="module")
def reference() -> dict:
    return json.loads((Path(__file__).parent / "h1_reference.json").read_text())


def _with(robot: RobotSpec, **positions: float) -> list[float]:
    """The default pose but for these joints."""
    assert {*positions} <= {*robot.joint_names}
    return [positions.get(name, default) for name, default in zip(robot.joint_names, robot.default_joint_pos, strict=True)]


def _hands(robot: RobotSpec, data: mujoco.MjData) -> np.ndarray:
    return np.array([data.body(name).xipos for name in robot.bodies["hands"]])


def _pairs(model: mujoco.MjModel, data: mujoco.MjData) -> set[str]:
    """Pairs that touch."""
    touching = {frozenset(pair) for pair in data.contact.geom.tolist()}
    pairs = zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)
    return {model.pair(index).name for index, ends in enumerate(pairs) if frozenset(ends) in touching}


def test_bodies_equal_the_reference(model, reference):
    assert model.nbody - 1 == len(reference["bodies"]) == 20
    for name, expected in reference["bodies"].items():
        body = model.body(name)
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, body.iquat)
        rotation = rotation.reshape(3, 3)
        assert model.body(body.parentid[0]).name == expected["parent"]
        np.testing.assert_allclose(body.mass[0], expected["mass"], atol=1e-6)
        np.testing.assert_allclose(body.ipos, expected["com"], atol=1e-6)
        np.testing.assert_allclose(rotation * body.inertia @ rotation.T, expected["inertia"], atol=1e-9)
        np.testing.assert_allclose(body.quat, expected["quat"], atol=1e-6)
        if name != "pelvis":
            np.testing.assert_allclose(body.pos, expected["pos"], atol=1e-6)
    total = sum(body["mass"] for body in reference["bodies"].values())
    np.testing.assert_allclose(model.body("pelvis").subtreemass[0], total, atol=1e-6)


def test_joints_equal_the_reference(robot, model, reference):
    assert list(robot.joint_names) == reference["joint_order"]
    per_joint = zip(robot.joint_names, robot.effort_limit, robot.sdk_index, strict=True)
    for name, effort_limit, sdk_index in per_joint:
        joint, expected = model.joint(name), reference["joints"][name]
        np.testing.assert_allclose(joint.axis, expected["axis"], atol=1e-6)
        np.testing.assert_allclose(joint.pos, expected["pos"], atol=1e-6)
        np.testing.assert_allclose(joint.range, expected["range"], atol=1e-6)
        dof = joint.dofadr[0]
        np.testing.assert_allclose(model.dof_damping[dof], expected["damping"], atol=1e-6)
        np.testing.assert_allclose(model.dof_armature[dof], expected["armature"], atol=1e-6)
        np.testing.assert_allclose(model.dof_frictionloss[dof], expected["friction_loss"], atol=1e-6)
        assert (effort_limit, sdk_index) == (expected["effort_limit"], expected["sdk_index"])
        assert model.jnt_limited[joint.id]


def test_the_gains_damp_each_motor_critically(robot, model):
    # Playground writes dampratio="1" and leaves the numbers to MuJoCo: so they are found here as well.
    spec = robot.mjspec()
    for name, stiffness in zip(robot.joint_names, robot.stiffness, strict=True):
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=stiffness, dampratio=1.0)
        assert stiffness == (800.0 if name in robot.groups["legs"] else 400.0)
    critical = spec.compile()
    found = [-critical.actuator(name).biasprm[2] for name in robot.joint_names]
    np.testing.assert_allclose(robot.damping, found, rtol=0.01)


def test_feet_and_hands_at_random_poses_equal_the_reference(robot, model, reference):
    for foot, (name, expected) in zip(robot.feet, reference["feet"].items(), strict=True):
        assert foot.name == name and foot.geoms == tuple(expected["corners"])
        for geom, corner in expected["corners"].items():
            assert model.geom(geom).type[0] == mujoco.mjtGeom.mjGEOM_SPHERE
            np.testing.assert_allclose(model.geom(geom).size[0], expected["radius"], atol=1e-6)
            np.testing.assert_allclose(model.geom(geom).pos, corner, atol=1e-6)
        np.testing.assert_allclose(model.site(foot.site).pos, expected["sole"], atol=1e-6)
    for index, pose in enumerate(reference["poses"]):
        data = posed(robot, model, pose)
        np.testing.assert_allclose(sites(robot, data), reference["foot_positions"][index], atol=1e-6)
        np.testing.assert_allclose(_hands(robot, data), reference["hand_positions"][index], atol=1e-6)


def test_mirrored_joints_put_feet_and_hands_in_mirrored_places(robot, model, reference):
    permutation, signs = robot.joint_mirror()
    for pose in np.array(reference["poses"][:20]):
        data, mirrored = posed(robot, model, pose), posed(robot, model, np.array(signs) * pose[list(permutation)])
        np.testing.assert_allclose(sites(robot, mirrored), sites(robot, data)[list(robot.foot_mirror())] * REFLECT, atol=1e-6)
        np.testing.assert_allclose(_hands(robot, mirrored), _hands(robot, data)[::-1] * REFLECT, atol=1e-6)
        for geom in robot.foot_geoms:
            partner = mirrored.geom(robot.mirrored_name(geom))
            np.testing.assert_allclose(partner.xpos, data.geom(geom).xpos * REFLECT, atol=1e-6)


def test_groups_name_every_joint_once(robot):
    for parts in (
        ("legs", "torso", "arms"),
        ("hip_yaw", "hip_roll", "hip_pitch", "knees", "ankles", "torso", "shoulders", "elbows"),
    ):
        assert sorted(name for part in parts for name in robot.groups[part]) == sorted(robot.joint_names)


def test_soles_are_on_the_ground_at_base_height_below_the_centre_of_mass(robot, model):
    data = posed(robot, model, robot.default_joint_pos, robot.base_height)
    for foot in robot.feet:
        assert abs(data.site(foot.site).xpos[2]) < 1e-3
    middle = sites(robot, data).mean(axis=0)
    assert np.linalg.norm((data.subtree_com[0] - middle)[:2]) < 0.015


def test_the_hull_of_a_foot_is_above_its_sole_however_it_is_turned(robot, model):
    data = mujoco.MjData(model)
    for pitch in np.linspace(-0.8, 0.8, 9):
        for roll in np.linspace(-0.4, 0.4, 5):
            mujoco.mju_euler2Quat(data.qpos[3:7], np.array([roll, pitch, 0.0]), "XYZ")
            mujoco.mj_kinematics(model, data)
            for foot in robot.feet:
                sole = min(data.geom(geom).xpos[2] - model.geom(geom).size[0] for geom in foot.geoms)
                hull = data.geom(f"{foot.name}_foot_hull")
                radius, half = model.geom(hull.id).size[:2]
                lowest = hull.xpos[2] - radius - half * abs(hull.xmat[8])
                assert lowest - sole > CLEARANCE - 1e-9


def test_pairs_touch_where_limbs_meet_and_not_in_the_defaultposed(robot, model):
    assert model.npair == 14 and all(model.pair(index).name for index in range(model.npair))
    data = posed(robot, model, robot.default_joint_pos, robot.base_height)
    ends = zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)
    gaps = {model.pair(index).name: mujoco.mj_geomDistance(model, data, *pair, 1.0, None) for index, pair in enumerate(ends)}
    assert min(gaps.values()) > 0.05, gaps
    assert not _pairs(model, data) and not data.ncon  # nor is anything else of it in anything else: contype 0
    legs = {"feet", "shins", "left_foot_right_shin", "right_foot_left_shin"}
    inward = _with(robot, left_hip_roll_joint=-0.25, right_hip_roll_joint=0.25)
    assert _pairs(model, posed(robot, model, inward)) == legs
    folded = {"left_elbow_joint": 0.2, "right_elbow_joint": 0.2}
    inward = _with(robot, left_shoulder_yaw_joint=-1.0, right_shoulder_yaw_joint=1.0, **folded)
    assert _pairs(model, posed(robot, model, inward)) == {"forearms", "left_forearm_torso", "right_forearm_torso"}
    raised = _with(robot, left_hip_pitch_joint=-1.2, left_elbow_joint=1.2, left_shoulder_pitch_joint=0.0)
    assert _pairs(model, posed(robot, model, raised)) == {"left_forearm_left_thigh"}


def test_it_stands(robot):
    spec = robot.mjspec()
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    model = with_motors(robot, spec)
    for push in (0.0, 0.2, -0.2):  # [m/s]
        data = posed(robot, model, robot.default_joint_pos, robot.base_height)
        data.ctrl[:] = robot.default_joint_pos
        data.qvel[0] = push
        heights = []
        for _ in range(400):
            mujoco.mj_step(model, data)
            heights.append(data.body("pelvis").xpos[2])
        assert 0.97 * robot.base_height < min(heights) and max(heights) < 1.01 * robot.base_height
        assert data.body("pelvis").xmat[8] > 0.99  # level within 8 degrees
        assert abs(data.qpos[0]) < 0.1 and np.abs(data.qvel).max() < 0.3
        touching = {model.geom(geom).name for pair in data.contact.geom for geom in pair}
        assert touching == {"ground", *robot.foot_geoms}


def test_the_model_is_drawn_with_primitives(robot, model):
    spec = robot.mjspec()
    assert not list(spec.meshes) and not list(ElementTree.parse(robot.model_path).iter("mesh"))
    assert {path.suffix for path in robot.folder.iterdir()} <= {".xml", ".yaml", ".md"}
    visuals = [geom for geom in spec.geoms if geom.group == 2]
    assert len(visuals) > 100 and not any(geom.contype or geom.conaffinity for geom in visuals)
    for geom in visuals:
        spec.delete(geom)
    bare = spec.compile()
    assert bare.ngeom == model.ngeom - len(visuals) and bare.npair == model.npair
    np.testing.assert_array_equal(bare.body_inertia, model.body_inertia)
    # What is left collides with the ground (contype 1, conaffinity 0), and with itself where a pair says so.
    assert set(bare.geom_group) == {3} and set(bare.geom_contype) == {0} and set(bare.geom_conaffinity) == {1}


def test_its_looks_hang_together_and_are_as_high_as_the_robot(robot, model):
    # Every primitive meets another one, of its own link or of the next: nothing floats.
    data = posed(robot, model, robot.default_joint_pos, robot.base_height)
    visuals = np.flatnonzero(model.geom_group == 2).tolist()
    near = {geom: {geom} for geom in visuals}
    for index, one in enumerate(visuals):
        for other in visuals[index + 1 :]:
            reach = model.geom_rbound[one] + model.geom_rbound[other]
            apart = np.linalg.norm(data.geom_xpos[one] - data.geom_xpos[other]) > reach
            if not apart and mujoco.mj_geomDistance(model, data, one, other, 0.01, None) < 1e-3:
                near[one].add(other)
                near[other].add(one)
    reached, edge = {visuals[0]}, {visuals[0]}
    while edge:
        edge = set().union(*(near[geom] for geom in edge)) - reached
        reached |= edge
    assert reached == {*visuals}
    boxes = [(geom, data.geom_xmat[geom].reshape(3, 3), model.geom_aabb[geom]) for geom in visuals]
    middles = np.array([data.geom_xpos[geom] + turned @ aabb[:3] for geom, turned, aabb in boxes])
    reaches = np.array([np.abs(turned) @ aabb[3:] for _, turned, aabb in boxes])
    low, high = (middles - reaches).min(axis=0), (middles + reaches).max(axis=0)
    assert abs(low[2]) < 2e-3 and 1.7 < high[2] < 1.8  # Unitree gives 1.8 m upright
    np.testing.assert_allclose(low[1], -high[1], atol=1e-3)
