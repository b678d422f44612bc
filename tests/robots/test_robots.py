"""The shipped robots against the numbers of their upstream models, and against the ground they stand on."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from embodied_rl.robot import RobotSpec, load_robot

from .conftest import REFLECT, posed, sites, with_motors

FOLDER = Path(__file__).parent
QUADRUPEDS, HUMANOIDS = ("a1", "anymal_c", "go1", "go2"), ("g1", "g1_legs")
#: What is not the reference's, and what it is instead; the robots' README.md say why.
DIFFERENT = {
    "left_hip_roll_joint": {"effort_limit": 139.0},
    "right_hip_roll_joint": {"effort_limit": 139.0},
}
#: The G1's motors: inertias of the rotor and of what each of two gears turns [kg m^2], ratios of these, number of motors.
ROTORS = {
    "M5020": ((0.139e-4, 0.017e-4, 0.169e-4), (1 + 46 / 18, 1 + 56 / 16), 1),
    "M5020_pair": ((0.139e-4, 0.017e-4, 0.169e-4), (1 + 46 / 18, 1 + 56 / 16), 2),
    "M7520_14": ((0.489e-4, 0.098e-4, 0.533e-4), (4.5, 1 + 48 / 22), 1),
    "M7520_22": ((0.489e-4, 0.109e-4, 0.738e-4), (4.5, 5.0), 1),
    "M4010": ((0.068e-4, 0.0, 0.0), (5.0, 5.0), 1),
}
#: Their largest torque [N m] and speed [rad/s].
LIMITS = {
    "M5020": (25.0, 37.0),
    "M5020_pair": (50.0, 37.0),
    "M7520_14": (88.0, 32.0),
    "M7520_22": (139.0, 20.0),
    "M4010": (5.0, 22.0),
}
#: Which of them moves what: parts of the joints' names.
MOVED_BY = {
    "M5020": ("shoulder", "elbow", "wrist_roll"),
    "M5020_pair": ("ankle", "waist_roll", "waist_pitch"),
    "M7520_14": ("hip_pitch", "hip_yaw", "waist_yaw"),
    "M7520_22": ("hip_roll", "knee"),
    "M4010": ("wrist_pitch", "wrist_yaw"),
}


@pytest.fixture(params=[*QUADRUPEDS, *HUMANOIDS])
def robot(request) -> RobotSpec:
    return load_robot(request.param)


@pytest.fixture(params=[*QUADRUPEDS, *HUMANOIDS, "h1"])
def any_robot(request) -> RobotSpec:
    """Any, also the one whose own numbers are in test_h1.py."""
    return load_robot(request.param)


@pytest.fixture(params=HUMANOIDS)
def humanoid(request) -> RobotSpec:
    return load_robot(request.param)


@pytest.fixture
def reference(robot) -> dict:
    return json.loads((FOLDER / f"{robot.name.removesuffix('_legs')}_reference.json").read_text())


def _poses(robot: RobotSpec, reference: dict) -> np.ndarray:
    """The poses of the reference, without the joints that are welded."""
    return np.array(reference["poses"])[:, [reference["joint_order"].index(name) for name in robot.joint_names]]


def _motor(joint: str) -> str:
    (motor,) = (motor for motor, parts in MOVED_BY.items() if any(part in joint for part in parts))
    return motor


def _armature(motor: str) -> float:
    """What a joint feels of its motor's rotor and gears [kg m^2]."""
    (rotor, middle, last), (first, second), number = ROTORS[motor]
    return number * (rotor * (first * second) ** 2 + middle * second**2 + last)


def _default(robot: RobotSpec, model: mujoco.MjModel, height: float = 0.0, **moved: float) -> mujoco.MjData:
    """The default pose, with some joints elsewhere."""
    pose = dict(zip(robot.joint_names, robot.default_joint_pos, strict=True)) | moved
    return posed(robot, model, pose.values(), height)


def test_bodies_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    assert model.nbody - 1 == len(reference["bodies"]) == (30 if robot.name in HUMANOIDS else 13)
    file = mujoco.MjSpec.from_file(str(robot.model_path))
    turned = {joint.parent.name: joint.name for joint in file.joints}
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
        if name != robot.base:
            np.testing.assert_allclose(body.pos, expected["pos"], atol=1e-6)
        turn, quat = np.zeros(4), np.zeros(4)
        joint = turned[name]
        axis = reference["joints"][joint]["axis"] if joint in robot.welded else [0.0, 0.0, 1.0]
        mujoco.mju_axisAngle2Quat(turn, axis, robot.welded.get(joint, 0.0))
        mujoco.mju_mulQuat(quat, np.array(expected.get("quat", (1.0, 0.0, 0.0, 0.0))), turn)
        np.testing.assert_allclose(body.quat, quat, atol=1e-6)
    total = sum(body["mass"] for body in reference["bodies"].values())
    np.testing.assert_allclose(model.body_subtreemass[0], total, atol=1e-6)


def test_joints_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    assert [*robot.joint_names, *robot.welded] == reference["joint_order"]
    for name, effort_limit in zip(robot.joint_names, robot.effort_limit, strict=True):
        joint, expected = model.joint(name), reference["joints"][name] | DIFFERENT.get(name, {})
        if robot.name in HUMANOIDS:  # the reference has one number for all
            assert expected["armature"] == 0.01
            expected["armature"] = _armature(_motor(name))
        np.testing.assert_allclose(joint.axis, expected["axis"], atol=1e-6)
        np.testing.assert_allclose(joint.pos, expected["pos"], atol=1e-6)
        np.testing.assert_allclose(joint.range, expected["range"], atol=1e-6)
        np.testing.assert_allclose(model.dof_armature[joint.dofadr[0]], expected["armature"], atol=1e-8)
        assert effort_limit == expected["effort_limit"]
        np.testing.assert_allclose(model.dof_frictionloss[joint.dofadr[0]], expected["friction_loss"], atol=1e-6)
        if "damping" in expected:
            np.testing.assert_allclose(model.dof_damping[joint.dofadr[0]], expected["damping"], atol=1e-6)
        assert model.jnt_limited[joint.id]


def test_feet_at_random_poses_equal_the_reference(robot, reference):
    model = robot.mjspec().compile()
    for foot, (name, expected) in zip(robot.feet, reference["feet"].items(), strict=True):
        assert foot.name == name
        for geom, place in zip(foot.geoms, np.reshape(expected["pos"], (-1, 3)), strict=True):
            assert model.geom(geom).type[0] == mujoco.mjtGeom.mjGEOM_SPHERE
            np.testing.assert_allclose(model.geom(geom).size[0], expected["radius"], atol=1e-6)
            np.testing.assert_allclose(model.geom(geom).pos, place, atol=1e-6)
    for pose, expected in zip(_poses(robot, reference), reference["foot_positions"], strict=True):
        data = posed(robot, model, pose)
        spheres = np.array([[data.geom(geom).xpos for geom in foot.geoms] for foot in robot.feet])
        np.testing.assert_allclose(spheres, np.reshape(expected, spheres.shape), atol=1e-6)
        np.testing.assert_allclose(sites(robot, data), spheres.mean(axis=1), atol=1e-6)


def test_mirrored_joints_put_the_feet_in_mirrored_places(robot, reference):
    model = robot.mjspec().compile()
    permutation, signs = robot.joint_mirror()
    for pose in _poses(robot, reference)[:20]:
        feet = sites(robot, posed(robot, model, pose))
        mirrored = sites(robot, posed(robot, model, np.array(signs) * pose[list(permutation)]))
        np.testing.assert_allclose(mirrored, feet[list(robot.foot_mirror())] * REFLECT, atol=1e-9)


def test_the_default_pose_is_its_own_mirror_and_within_the_ranges(any_robot):
    permutation, signs = any_robot.joint_mirror()
    default = np.array(any_robot.default_joint_pos)
    np.testing.assert_array_equal(np.array(signs) * default[list(permutation)], default)
    model = any_robot.mjspec().compile()
    low, high = np.array([model.joint(name).range for name in any_robot.joint_names]).T
    assert ((low < default) & (default < high)).all()


def test_feet_touch_the_ground_at_base_height(any_robot):
    model = any_robot.mjspec().compile()
    data = _default(any_robot, model, any_robot.base_height)
    for geom in any_robot.foot_geoms:
        assert abs(data.geom(geom).xpos[2] - model.geom(geom).size[0]) < 1e-3


def test_no_part_is_inside_another_at_the_defaultposed(robot):
    spec = robot.mjspec()
    for geom in spec.geoms:
        geom.contype = geom.conaffinity
    model = spec.compile()
    data = _default(robot, model)
    assert not [(model.geom(pair[0]).bodyid[0], model.geom(pair[1]).bodyid[0]) for pair in data.contact.geom]
    if robot.name in HUMANOIDS:  # legs that cross meet, and the same check finds it
        assert _default(robot, model, left_hip_roll_joint=-0.3, right_hip_roll_joint=0.3).ncon
    else:  # so do front legs thrown back and rear ones forward, under the trunk
        assert posed(robot, model, [0.0, 1.4, 0.0] * 2 + [0.0, -1.4, 0.0] * 2).ncon


def _balance(robot: RobotSpec, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Keep a humanoid over its feet: ankles push where it is about to fall, the waist holds the torso upright."""
    mujoco.mj_subtreeVel(model, data)
    base = model.body(robot.base).id
    height, middle = data.subtree_com[base, 2], sites(robot, data)[:, 0].mean()
    falls_to = data.subtree_com[base, 0] + data.subtree_linvel[base, 0] * math.sqrt(height / 9.81)
    for name, default in zip(robot.joint_names, robot.default_joint_pos, strict=True):
        if name.endswith("ankle_pitch_joint"):
            data.actuator(name).ctrl = default + 15.0 * (falls_to - middle)
        elif name == "waist_pitch_joint":
            data.actuator(name).ctrl = default + 2.0 * math.asin(data.body("torso_link").xmat[6])


def test_it_stands(robot):
    model = with_motors(robot, robot.mjspec())
    data = _default(robot, model, robot.base_height)
    data.ctrl[:] = robot.default_joint_pos
    heights = []
    for _ in range(400):
        if robot.name in HUMANOIDS:
            _balance(robot, model, data)
        mujoco.mj_step(model, data)
        heights.append(data.body(robot.base).xpos[2])
    assert 0.8 * robot.base_height < min(heights) and max(heights) < 1.05 * robot.base_height
    assert heights[-1] > 0.85 * robot.base_height
    assert data.body(robot.base).xmat[8] > 0.99  # level within 8 degrees
    touching = {model.geom(geom).name for pair in data.contact.geom for geom in pair}
    assert touching == {"ground", *robot.foot_geoms}


def test_a_humanoid_that_only_holds_its_pose_falls(humanoid):
    # Its ankles have 57 N m/rad, and would need more than m g h, 241, to hold it up without moving; see README.md.
    model = with_motors(humanoid, humanoid.mjspec())
    data = _default(humanoid, model, humanoid.base_height)
    data.ctrl[:] = humanoid.default_joint_pos
    mujoco.mj_step(model, data, 200)
    assert data.body("pelvis").xpos[2] > 0.95 * humanoid.base_height
    mujoco.mj_step(model, data, 240)
    assert data.body("pelvis").xpos[2] < 0.5 * humanoid.base_height


def test_the_model_is_drawn_with_primitives(robot):
    spec = robot.mjspec()
    assert not list(spec.meshes) and not list(ElementTree.parse(robot.model_path).iter("mesh"))
    for folder in {robot.folder, robot.model_path.resolve().parent}:
        assert {path.suffix for path in folder.iterdir()} <= {".xml", ".yaml", ".md"}
    full = spec.compile()
    visuals = [geom for geom in spec.geoms if geom.group == 2]
    assert len(visuals) > 30 and not any(geom.contype or geom.conaffinity for geom in visuals)
    for geom in visuals:
        spec.delete(geom)
    bare = spec.compile()
    assert bare.ngeom == full.ngeom - len(visuals)
    np.testing.assert_array_equal(bare.body_inertia, full.body_inertia)
    # What is left collides with the ground (contype 1, conaffinity 0) and not with itself, pairs of a humanoid aside.
    assert set(bare.geom_group) == {3} and set(bare.geom_contype) == {0} and set(bare.geom_conaffinity) == {1}
    assert bool(bare.npair) == (robot.name in HUMANOIDS)


def test_feet_decide_their_friction(any_robot):
    model = any_robot.mjspec().compile()
    for name in any_robot.foot_geoms:
        geom = model.geom(name)
        assert geom.priority[0] == 1 and geom.condim[0] == 3
        np.testing.assert_allclose(geom.friction, (0.8, 0.02, 0.01))


def test_gains_and_limits_are_the_motors(humanoid):
    model, omega = humanoid.mjspec().compile(), 2.0 * math.pi * 10.0
    for index, name in enumerate(humanoid.joint_names):
        armature = _armature(_motor(name))
        np.testing.assert_allclose(model.dof_armature[model.joint(name).dofadr[0]], armature, rtol=1e-6)
        np.testing.assert_allclose(humanoid.stiffness[index], armature * omega**2, rtol=1e-6)
        np.testing.assert_allclose(humanoid.damping[index], 4.0 * armature * omega, rtol=1e-6)
        assert (humanoid.effort_limit[index], humanoid.velocity_limit[index]) == LIMITS[_motor(name)]
        assert humanoid.sdk_index[index] == index


def test_g1_legs_weighs_what_g1_weighs():
    legs, whole = load_robot("g1_legs"), load_robot("g1")
    assert len(legs.joint_names) == 12 and len(legs.welded) == 17 and len(whole.joint_names) == 29 and not whole.welded
    assert legs.joint_names == whole.joint_names[:12] and legs.feet == whole.feet and legs.base_height == whole.base_height
    inertias = []
    for robot in (whole, legs):
        model = robot.mjspec().compile()
        data = _default(robot, model, robot.base_height, left_knee_joint=0.9, right_hip_yaw_joint=0.3)
        dense = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, dense)
        inertias.append((model.body_subtreemass[1], *data.subtree_com[1], *dense[:18, :6].ravel()))
    np.testing.assert_allclose(inertias[0], inertias[1], atol=1e-9)


def _met(model: mujoco.MjModel, data: mujoco.MjData) -> set[frozenset[str]]:
    return {frozenset(model.geom(geom).name for geom in pair) for pair in data.contact.geom}


def test_limbs_meet_as_the_pairs_say():
    robot = load_robot("g1")
    model = robot.mjspec().compile()
    pairs = [
        frozenset(model.geom(geom).name for geom in (one.geom1[0], one.geom2[0])) for one in map(model.pair, range(model.npair))
    ]
    assert len({*pairs}) == len(pairs) and all(model.pair(index).name for index in range(model.npair))
    mirrored = [frozenset(robot.mirrored_name(name) for name in pair) for pair in pairs]
    assert {*mirrored} == {*pairs}
    assert not _met(model, _default(robot, model))
    low, high = np.array([model.joint(name).range for name in robot.joint_names]).T
    draw, met = np.random.default_rng(0), set()
    data, address = mujoco.MjData(model), [model.joint(name).qposadr[0] for name in robot.joint_names]
    for index in range(3000):  # in turns anywhere, and near the default pose
        anywhere = draw.uniform(low, high)
        near = np.clip(np.array(robot.default_joint_pos) + draw.normal(0.0, 0.5, len(low)), low, high)
        data.qpos[address] = anywhere if index % 2 else near
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        met |= _met(model, data)
    assert met == {*pairs}


def test_legs_of_g1_legs_meet_too():
    robot = load_robot("g1_legs")
    model = robot.mjspec().compile()
    assert not _met(model, _default(robot, model))
    crossed = _met(model, _default(robot, model, left_hip_roll_joint=-0.2, right_hip_roll_joint=0.2))
    assert crossed == {frozenset({"left_shin", "right_shin"}), frozenset({"left_foot", "right_foot"})}


def test_the_hull_of_a_foot_stays_above_its_spheres(humanoid):
    model = humanoid.mjspec().compile()
    for foot in humanoid.feet:
        hull = model.geom(f"{foot.name}_foot")
        assert hull.type[0] == mujoco.mjtGeom.mjGEOM_BOX and (hull.quat == (1, 0, 0, 0)).all()
        corners = hull.pos + hull.size * np.array([*itertools.product((-1, 1), (-1, 1), (-1, 1))])
        spheres = np.array([model.geom(name).pos for name in foot.geoms])
        radius = model.geom(foot.geoms[0]).size[0]
        assert abs(corners[:, 2].min() - (spheres[:, 2].min() - radius) - 0.006) < 1e-9
        for roll, pitch in itertools.product(np.linspace(-1.2, 1.2, 13), repeat=2):  # up in the foot's frame
            up = np.array((-math.sin(pitch), math.sin(roll) * math.cos(pitch), math.cos(roll) * math.cos(pitch)))
            assert (corners @ up).min() > (spheres @ up).min() - radius
