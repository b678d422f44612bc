"""The compiled scene: which geoms collide, what is measured, what the page's options become."""

from __future__ import annotations

import dataclasses
from typing import get_args

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.physics.native import NativePhysics
from embodied_rl.robot import RobotSpec, load_robot
from embodied_rl.scene import Root, Scene, SceneError, build_scene

ROBOTS = ("go2", "go1", "a1", "anymal_c")
#: A robot whose masses are inferred from its geoms, listed in another order than its page's.
BIPED = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <body name="trunk" pos="0 0 0.6">
      <freejoint/>
      <geom name="trunk" type="box" size="0.1 0.1 0.1"/>
      <geom type="sphere" size="0.05" pos="0 0 0.2" contype="0" conaffinity="0"/>
      <body name="left_leg" pos="0 0.1 -0.1">
        <joint name="left_hip" axis="0 1 0"/>
        <geom type="capsule" size="0.03" fromto="0 0 0 0 0 -0.3"/>
        <geom name="left_toe" type="sphere" size="0.04" pos="0.1 0 -0.4"/>
        <geom name="left_heel" type="sphere" size="0.04" pos="-0.1 0 -0.4"/>
        <site name="left_sole" pos="0 0 -0.4"/>
      </body>
      <body name="right_leg" pos="0 -0.1 -0.1">
        <joint name="right_hip" axis="0 1 0"/>
        <geom type="capsule" size="0.03" fromto="0 0 0 0 0 -0.3"/>
        <geom name="right_toe" type="sphere" size="0.04" pos="0.1 0 -0.4"/>
        <site name="right_sole" pos="0 0 -0.4"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="left_hip"/></actuator>
</mujoco>
"""
BIPED_PAGE = """
name: biped
model: biped.xml
base: trunk
base_height: 0.54
joints:
  right_hip: {default: 0.1, stiffness: 30.0, damping: 2.0, effort_limit: 40.0}
  left_hip: {default: 0.1, stiffness: 20.0, damping: 1.0, effort_limit: 50.0}
feet:
  right: {geoms: [right_toe], site: right_sole}
  left: {geoms: [left_toe, left_heel], site: left_sole}
bodies: {legs: [right_leg, left_leg], trunk: [trunk]}
mirror: {left: right}
"""


def _build(robot: str | RobotSpec, collisions: str = "feet", needs=(), **physics) -> Scene:
    spec = load_robot(robot) if isinstance(robot, str) else robot
    return build_scene(spec, collisions=collisions, physics=PhysicsSettings(**physics), needs=needs)


@pytest.fixture
def biped(tmp_path) -> RobotSpec:
    (tmp_path / "biped.xml").write_text(BIPED)
    (tmp_path / "robot.yaml").write_text(BIPED_PAGE)
    return load_robot(str(tmp_path))


def _geom_names(model: mujoco.MjModel) -> list[str]:
    return [model.geom(i).name for i in range(model.ngeom)]


# ------------------------------------------------------------------------------------------------------------- collisions


@pytest.mark.parametrize("name", ROBOTS)
def test_the_feet_set_is_the_feet_and_the_ground(name):
    scene = _build(name)
    feet = [geom for foot in scene.robot.feet for geom in foot.geoms]
    assert sorted(_geom_names(scene.model)) == sorted([*feet, "ground"])
    assert [scene.model.geom(i).name for i in scene.foot_geoms] == feet


@pytest.mark.parametrize("name", ROBOTS)
def test_the_full_set_is_every_colliding_geom_of_the_robot(name):
    scene, robot = _build(name, "full"), load_robot(name).mjspec().compile()
    colliding = (robot.geom_contype | robot.geom_conaffinity) != 0
    assert scene.model.ngeom == colliding.sum() + 1  # the ground
    # body by body, with the same shapes: what is not the feet's is the rest
    for body in range(1, robot.nbody):
        here = scene.model.geom_bodyid == scene.model.body(robot.body(body).name).id
        there = colliding & (robot.geom_bodyid == body)
        np.testing.assert_array_equal(scene.model.geom_size[here], robot.geom_size[there])
        np.testing.assert_array_equal(scene.model.geom_pos[here], robot.geom_pos[there])
    assert np.all((scene.model.geom_contype | scene.model.geom_conaffinity) != 0)


@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("name", ROBOTS)
def test_what_does_not_collide_takes_no_mass_along(name, collisions):
    scene, robot = _build(name, collisions), load_robot(name).mjspec().compile()
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_array_equal(getattr(scene.model, field), getattr(robot, field))


@pytest.mark.parametrize("collisions", ["feet", "full"])
def test_masses_inferred_from_geoms_stay_when_the_geoms_go(biped, collisions):
    scene, robot = _build(biped, collisions), biped.mjspec().compile()
    np.testing.assert_allclose(scene.model.body_mass, robot.body_mass, rtol=1e-12)
    np.testing.assert_allclose(scene.model.body_inertia, robot.body_inertia, rtol=1e-12)
    np.testing.assert_allclose(scene.model.body_ipos, robot.body_ipos, atol=1e-12)
    assert scene.model.ngeom == (4 if collisions == "feet" else 7)
    np.testing.assert_allclose(scene.render_model.body_mass, robot.body_mass, rtol=1e-12)


def test_feet_outrank_the_ground():
    for name in ROBOTS:
        model = _build(name).model
        assert all(model.geom_priority[foot] > model.geom("ground").priority[0] for foot in _build(name).foot_geoms)


def test_the_default_pose_stands_on_the_ground():
    for name in ROBOTS:
        scene = _build(name, needs={"foot_frames"})
        data = mujoco.MjData(scene.model)
        data.qpos[2] = scene.robot.base_height
        data.qpos[list(scene.qpos_address)] = scene.robot.default_joint_pos
        mujoco.mj_kinematics(scene.model, data)
        lowest = data.geom_xpos[list(scene.foot_geoms), 2] - scene.model.geom_size[list(scene.foot_geoms), 0]
        np.testing.assert_allclose(lowest, 0.0, atol=5e-4)
        for frame, foot in zip(scene.frames, scene.robot.feet, strict=True):
            place, quat, matrix = np.zeros(3), np.zeros(4), np.zeros(9)
            mujoco.mju_mulPose(place, quat, data.xpos[frame.body], data.xquat[frame.body], frame.position, frame.quat)
            mujoco.mju_quat2Mat(matrix, quat)
            np.testing.assert_allclose(place, data.site(foot.site).xpos, atol=1e-12)
            np.testing.assert_allclose(matrix, data.site(foot.site).xmat, atol=1e-12)
            assert frame.name == foot.name


def test_a_geom_that_a_tendon_runs_over_stays_and_touches_nothing(biped, tmp_path):
    pulley = '<geom name="pulley" type="cylinder" size="0.02 0.1"/><site name="a" pos="0 0.1 0.1"/><body name="left_leg"'
    path = '<spatial><site site="a"/><geom geom="pulley"/><site site="left_sole"/></spatial>'
    model = BIPED.replace('<body name="left_leg"', pulley).replace("<actuator>", f"<tendon>{path}</tendon><actuator>")
    model = model.replace('name="trunk" type="box"', 'name="trunk" contype="0" conaffinity="0" type="box"')
    (tmp_path / "biped.xml").write_text(model)
    scene = _build(biped)
    assert "pulley" in _geom_names(scene.model) and scene.model.ntendon == 1
    assert not scene.model.geom("pulley").contype[0] and not scene.model.geom("pulley").conaffinity[0]
    assert _build(biped, "full").model.geom("pulley").contype[0] == 1
    with pytest.raises(SceneError, match="'trunk' cannot touch anything"):
        _build(biped, needs={"contact:trunk"})


# ------------------------------------------------------------------------------------------------- actuators and options


@pytest.mark.parametrize("name", [*ROBOTS, "biped"])
def test_controls_joints_and_gains_are_in_the_pages_order(name, biped):
    robot = biped if name == "biped" else load_robot(name)
    scene = _build(robot)
    model = scene.model
    assert model.nu == len(robot.joint_names)
    for index, joint in enumerate(robot.joint_names):
        assert model.actuator(index).name == joint
        assert model.actuator_trnid[index, 0] == model.joint(joint).id
        assert scene.qpos_address[index] == model.joint(joint).qposadr[0]
        assert scene.qvel_address[index] == model.joint(joint).dofadr[0]
    rng = np.random.default_rng(0)
    data = mujoco.MjData(model)
    data.qpos[2] = 10.0
    position, velocity, target = rng.uniform(-0.5, 0.5, (3, model.nu))
    data.qpos[list(scene.qpos_address)], data.qvel[list(scene.qvel_address)], data.ctrl[:] = position, velocity, target
    mujoco.mj_forward(model, data)
    torque = np.array(robot.stiffness) * (target - position) - np.array(robot.damping) * velocity
    limit = np.array(robot.effort_limit)
    np.testing.assert_allclose(data.actuator_force, torque.clip(-limit, limit), atol=1e-9)
    data.ctrl[:] = 1e3  # targets are not limited, torques are
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force, limit, atol=1e-9)


def test_a_joint_may_be_driven_by_its_velocity(biped):
    scene = build_scene(biped, collisions="feet", physics=PhysicsSettings(), controls={"left_hip": "velocity"})
    model, left, right = scene.model, biped.joint_names.index("left_hip"), biped.joint_names.index("right_hip")
    rng, data = np.random.default_rng(0), mujoco.MjData(model)
    data.qpos[2] = 10.0
    for scale in (1.0, 1e3):  # within the motors' limits, and beyond
        position, velocity, target = rng.uniform(-0.5, 0.5, (3, model.nu))
        target *= scale
        data.qpos[list(scene.qpos_address)], data.qvel[list(scene.qvel_address)] = position, velocity
        data.ctrl[:] = target
        mujoco.mj_step(model, data)
        torque = np.zeros(2)
        # the page: right_hip 30 N m/rad, 2 N m s/rad, 40 N m; left_hip 1 N m s/rad, 50 N m
        torque[right] = np.clip(30.0 * (target[right] - position[right]) - 2.0 * velocity[right], -40.0, 40.0)
        torque[left] = np.clip(1.0 * (target[left] - velocity[left]), -50.0, 50.0)
        np.testing.assert_allclose(data.actuator_force, torque, atol=1e-9)
    assert (scene.render_model.actuator_biasprm == model.actuator_biasprm).all()


def test_joints_that_are_driven_by_their_position_are_the_same_model(biped):
    controls = dict.fromkeys(biped.joint_names, "position")
    built = build_scene(biped, collisions="feet", physics=PhysicsSettings(), controls=controls).model
    for field in ("actuator_gainprm", "actuator_biasprm", "actuator_gaintype", "actuator_biastype", "actuator_forcerange"):
        np.testing.assert_array_equal(getattr(built, field), getattr(_build(biped).model, field))


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"left_hop": "velocity"}, "the controls of biped: left_hop: velocity: no joint 'left_hop'; did you mean 'left_hip'?"),
        ({"left_hip": "velocty"}, "the controls of biped: left_hip: velocty: no kind 'velocty'; did you mean 'velocity'?"),
        ({"left_hip": "torque"}, "the controls of biped: left_hip: torque: no kind 'torque'; allowed: position, velocity"),
    ],
)
def test_a_control_that_is_unknown_is_one_line(biped, controls, message):
    with pytest.raises(SceneError) as caught:
        build_scene(biped, collisions="feet", physics=PhysicsSettings(), controls=controls)
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------------------- the root


def _edited(robot: RobotSpec, old: str, new: str, page: tuple[str, str] = ("", "")) -> RobotSpec:
    """Read the robot again with another model, and another page."""
    assert old in BIPED and page[0] in BIPED_PAGE
    robot.model_path.write_text(BIPED.replace(old, new))
    (robot.folder / "robot.yaml").write_text(BIPED_PAGE.replace(*page))
    return load_robot(str(robot.folder))


BALL = '<body name="ball" pos="2 0 0.1"><freejoint/><geom size="0.1" mass="0.2" contype="0" conaffinity="0"/></body>'


def test_the_root_is_the_bases_joint_wherever_it_stands(biped):
    assert _build(biped).root == Root(0, 0)
    behind = _edited(biped, '<body name="trunk"', BALL + '<body name="trunk"')
    scene = _build(behind)
    assert scene.root == Root(7, 6)
    assert scene.model.body(scene.base_body).jntadr[0] == scene.model.joint(1).id
    fixed = _edited(biped, "<freejoint/>", "")
    assert _build(fixed).root is None
    other = _edited(biped, '<body name="trunk" pos="0 0 0.6">\n      <freejoint/>', f'{BALL}<body name="trunk" pos="0 0 0.6">')
    assert _build(other).root is None


def test_a_base_that_hangs_on_the_body_with_the_free_joint_is_one_line(biped):
    robot = _edited(biped, "", "", ("base: trunk", "base: left_leg"))
    with pytest.raises(SceneError) as caught:
        _build(robot)
    page = robot.folder / "robot.yaml"
    assert str(caught.value) == f"{page}: base: 'left_leg' hangs on 'trunk', which has the free joint; write base: trunk"


def test_a_robot_behind_a_ball_steps_and_is_seen_as_the_robot_alone(biped):
    """Kinematics and a control step of the native engine, by address."""
    needs = {"foot_orientation", "foot_contact"}
    alone = _build(biped, needs=needs)
    behind = _build(_edited(biped, '<body name="trunk"', BALL + '<body name="trunk"'), needs=needs)
    rng, found = np.random.default_rng(0), []
    pose = np.concatenate((rng.uniform((-0.1, -0.1, 0.45), (0.1, 0.1, 0.65)), rng.normal(size=4) * (1.0, 0.1, 0.1, 0.1)))
    pose[3:] /= np.linalg.norm(pose[3:])
    velocity, joints, ctrl = rng.normal(size=6), rng.uniform(-0.3, 0.3, 2), rng.uniform(-0.3, 0.3, 2)
    for scene in (alone, behind):
        physics, root = NativePhysics(scene, 1, 4, 1), scene.root
        assert root is not None
        qpos, qvel = torch.tensor(scene.model.qpos0[None]).float(), torch.zeros(1, scene.model.nv)
        qpos[:, root.qpos : root.qpos + 7] = torch.tensor(pose).float()
        qvel[:, root.qvel : root.qvel + 6] = torch.tensor(velocity).float()
        qpos[:, list(scene.qpos_address)] = torch.tensor(joints).float()
        physics.write(torch.ones(1, dtype=torch.bool), qpos=qpos, qvel=qvel)
        physics.step(torch.tensor(ctrl[None]).float())
        physics.refresh()
        assert physics.sensors["foot_contact"].any()
        state = physics.qpos[:, root.qpos : root.qpos + 7], physics.qvel[:, root.qvel : root.qvel + 6]
        found.append([*state, physics.frame_pos, physics.frame_lin_vel, physics.frame_quat])
        data = mujoco.MjData(scene.model)
        data.qpos[:] = physics.qpos[0].numpy()
        mujoco.mj_kinematics(scene.model, data)
        sites = [data.site(foot.site).xpos for foot in scene.robot.feet]
        np.testing.assert_allclose(physics.frame_pos[0].numpy(), sites, atol=1e-5)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=2e-6)


def test_options_reach_both_models():
    scene = _build(
        "go2",
        dt=0.004,
        integrator="euler",
        solver="cg",
        cone="elliptic",
        iterations=7,
        ls_iterations=9,
        impratio=3.0,
        tolerance=1e-5,
    )
    for model in (scene.model, scene.render_model):
        option = model.opt
        assert option.timestep == 0.004
        assert option.integrator == mujoco.mjtIntegrator.mjINT_EULER
        assert option.solver == mujoco.mjtSolver.mjSOL_CG
        assert option.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
        assert (option.iterations, option.ls_iterations) == (7, 9)
        assert (option.impratio, option.tolerance) == (3.0, 1e-5)


def test_every_option_of_the_page_has_its_counterpart():
    for field in ("integrator", "solver", "cone"):
        for value in get_args(PhysicsSettings.model_fields[field].annotation):
            _build("go2", **{field: value})


def test_a_bad_state_is_not_replaced_by_the_engine():
    model = _build("go2").model
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_AUTORESET
    mujoco.set_mju_user_warning(lambda message: None)
    data = mujoco.MjData(model)
    data.qvel[0] = np.nan
    mujoco.mj_step(model, data)
    assert np.isnan(data.qpos[0])


# --------------------------------------------------------------------------------------------------------------- sensors


def test_sensors_stand_in_the_columns_that_the_scene_says(biped):
    scene = _build(biped, "full", {"foot_contact", "contact:legs", "contact:trunk"})
    names = {}
    for need, (columns, shape) in scene.sensors.items():
        watched = [scene.model.geom(scene.model.sensor_objid[i]).name for i in range(*columns.indices(10**6))]
        names[need] = np.array(watched).reshape(shape).tolist()
    assert names == {
        "contact:legs": [["right_leg_collision_0"], ["left_leg_collision_0"]],  # the order of robot.yaml, feet aside
        "contact:trunk": [["trunk"]],  # the sphere above it does not collide
        "foot_contact": [["right_toe", "right_toe"], ["left_toe", "left_heel"]],
    }
    assert scene.model.nsensordata == 7
    np.testing.assert_array_equal(scene.model.sensor_dim, 1)


@pytest.mark.parametrize("name", ROBOTS)
def test_only_what_is_asked_for_is_measured(name):
    bare = _build(name)
    assert (bare.sensors, bare.frames, bare.joint_torque, bare.model.nsensor) == ({}, (), False, 0)
    assert not bare.frame_orientation
    scene = _build(name, "full", {"foot_contact", "foot_frames", "joint_torque", "contact:calves"})
    assert set(scene.sensors) == {"foot_contact", "contact:calves"} and len(scene.frames) == 4 and scene.joint_torque
    assert scene.sensors["foot_contact"][1] == (4, 1)
    columns = sorted(i for c, _ in scene.sensors.values() for i in range(*c.indices(10**6)))
    assert columns == list(range(scene.model.nsensordata))


@pytest.mark.parametrize(
    ("needs", "collisions", "message"),
    [
        ({"contact:thighs"}, "feet", "'thighs', but 'FL_thigh' cannot touch anything: set scene.collisions: full"),
        ({"contact:thigs"}, "full", "has no group 'thigs'; did you mean 'contact:thighs'?"),
        ({"foot_contacts"}, "feet", "'foot_contacts' is unknown; did you mean 'foot_contact'?"),
        ({"zzz"}, "feet", "'zzz' is unknown; allowed: foot_contact, foot_touchdown, foot_frames"),
    ],
)
def test_a_need_that_cannot_be_served_is_one_line(needs, collisions, message):
    with pytest.raises(SceneError) as caught:
        _build("go2", collisions, needs)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("need", ["foot_contact", "foot_frames", "foot_orientation"])
def test_a_robot_without_feet_cannot_serve_their_terms(biped, need):
    footless = dataclasses.replace(biped, feet=())
    with pytest.raises(SceneError, match=f"robot.yaml: feet: none named, but a term of the page reads '{need}'"):
        _build(footless, needs={need})
    assert _geom_names(_build(footless).model) == ["ground"]


def test_a_body_without_collision_geoms_in_the_full_set(biped, tmp_path):
    (tmp_path / "biped.xml").write_text(BIPED.replace('name="trunk" type', 'contype="0" conaffinity="0" type'))
    with pytest.raises(SceneError, match=r"give trunk a collision geom in .*biped.xml"):
        _build(biped, "full", {"contact:trunk"})


# ---------------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("name", ROBOTS)
def test_the_shown_model_has_the_same_state_and_looks(name, collisions):
    scene, robot = _build(name, collisions), load_robot(name).mjspec().compile()
    shown = scene.render_model
    assert (shown.nq, shown.nv, shown.nu) == (scene.model.nq, scene.model.nv, scene.model.nu)
    np.testing.assert_array_equal(shown.jnt_qposadr, scene.model.jnt_qposadr)
    assert [shown.joint(i).name for i in range(shown.njnt)] == [scene.model.joint(i).name for i in range(shown.njnt)]
    assert shown.ngeom == robot.ngeom + 1 > scene.model.ngeom
    assert shown.nlight >= 1 and shown.ntex >= 2 and shown.geom("ground").matid[0] >= 0
    assert scene.model.nlight == 0
