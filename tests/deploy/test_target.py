from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from embodied_rl import make_env
from embodied_rl.config import load
from embodied_rl.deploy.contract import DeployError, make_contract
from embodied_rl.deploy.place import fresh
from embodied_rl.deploy.sim2sim import Export, judge_hanging
from embodied_rl.deploy.target import Target, fit, hang
from embodied_rl.paths import shipped
from embodied_rl.robot import load_robot
from embodied_rl.scene.build import whole_spec

GO2 = shipped("robots") / "go2" / "go2.xml"
FIXED = ('<freejoint name="base"/>', "")
OPTION = '<option timestep="0.002" integrator="implicitfast"/>'


@pytest.fixture(scope="module")
def export(exported: Path) -> Export:
    return Export(exported)


@pytest.fixture
def theirs(tmp_path: Path, export: Export) -> Callable[..., Target]:
    """`theirs((old, new), ...)`: the go2 of the package, changed, as somebody else's file."""

    def fitted(*changes: tuple[str, str], **options: Any) -> Target:
        text = GO2.read_text().replace(
            '<compiler angle="radian" autolimits="true"/>', f'<compiler angle="radian" autolimits="true"/>{OPTION}'
        )
        assert OPTION in text
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / "theirs.xml").write_text(text)
        return fit(tmp_path / "theirs.xml", export.contract, export.model, **options)

    return fitted


def servos(kp: float, kv: float | None = None) -> tuple[str, str]:
    """Position servos of all joints, in an order of their own."""
    names = [f"{leg}_{part}_joint" for part in ("calf", "hip", "thigh") for leg in ("RR", "FL", "RL", "FR")]
    gain = "" if kv is None else f' kv="{kv}"'
    motors = "".join(f'<position name="{name[:-6]}" joint="{name}" kp="{kp}"{gain}/>' for name in names)
    return "</mujoco>", f"<actuator>{motors}</actuator></mujoco>"


def test_a_file_without_ground_and_motors_gets_the_contracts(theirs: Callable[..., Target], export: Export) -> None:
    target = theirs()
    assert target.notes == ["the file has no ground; the contract's plane was added"]
    assert target.differences == ["dry friction: 0 in training, 0.2 here, of all 12 joints"]
    model, joints = target.model, export.contract["joints"]
    for joint in joints:
        motor = model.actuator(joint["name"])
        assert (motor.gainprm[0], -motor.biasprm[2], motor.forcerange[1]) == (
            joint["stiffness"],
            joint["damping"],
            joint["effort_limit"],
        )
    (plane,) = (geom for geom in range(model.ngeom) if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE)
    np.testing.assert_allclose(model.geom_friction[plane], export.contract["ground"])
    assert target.lift == pytest.approx(0.0, abs=1e-3) and judge_hanging(export, target) == ""


def test_the_controllers_damping_counts_once(theirs: Callable[..., Target]) -> None:
    """Servos without kv have their kd in the joint's damping: it goes, and dry friction and armature stay."""
    target = theirs(('damping="0.1"', 'damping="0.5"'), servos(35))
    assert "joint damping 0.5 -> 0 of all 12 joints: it stood for the controller's kd, which the motors have now" in target.notes
    assert target.twice is not None
    dofs = slice(6, None)
    for model, damping in ((target.model, 0.0), (target.twice, 0.5)):
        assert (model.dof_damping[dofs] == damping).all()
        assert (model.dof_frictionloss[dofs] == 0.2).all() and (model.dof_armature[dofs] == 0.01).all()
    assert target.differences == [
        "joint damping: 0.1 in training, 0.5 here, of all 12 joints",
        "dry friction: 0 in training, 0.2 here, of all 12 joints",
    ]
    # that of a servo with a kv of its own, or beside a torque motor, is the joint's
    for motors in (servos(35, 0.5), ("</mujoco>", '<actuator><motor joint="FL_hip_joint"/></actuator></mujoco>')):
        target = theirs(('damping="0.1"', 'damping="0.5"'), motors)
        assert target.twice is None and (target.model.dof_damping[dofs] == 0.5).all()


def test_torque_is_bounded_by_the_smaller_limit(theirs: Callable[..., Target]) -> None:
    text = '<joint name="FL_calf_joint" class="calf"'
    assert text in GO2.read_text()
    target = theirs((text, f'{text} actuatorfrcrange="-10 60"'))
    assert target.model.actuator("FL_calf_joint").forcerange.tolist() == [-10.0, 45.43]
    assert target.model.actuator("FR_calf_joint").forcerange.tolist() == [-45.43, 45.43]
    assert target.differences[1:] == ["effort: -45.43 to 45.43 in training, -10 to 60 here, of FL_calf_joint"]


def test_another_cone_and_integrator_are_told(theirs: Callable[..., Target]) -> None:
    changed = OPTION.replace("implicitfast", 'RK4" cone="elliptic" impratio="100')
    told = [line for line in theirs((OPTION, changed)).differences if line.startswith("option")]
    assert told == [
        "option integrator: implicitfast in training, rk4 here",
        "option cone: pyramidal in training, elliptic here",
        "option impratio: 1 in training, 100 here",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("FL_hip_joint", "FL_hip_jnt")], r"no joint 'FL_hip_joint'; did you mean '.L_hip_j\w+'\?"),
        ([('name="base" pos', 'name="trunk" pos'), FIXED], r"no body 'base', whose orientation the policy sees"),
        ([FIXED], r"'base' is fixed to the world, and moves freely in training; give it a <freejoint/>"),
        (
            [('timestep="0.002"', 'timestep="0.003"')],
            r"option\.timestep: 0\.003 s goes 6\.667 times into the policy's step of 0\.02 s",
        ),
        ([("<worldbody>", "<worldbod>")], "cannot be read: "),
    ],
)
def test_what_is_no_model_of_this_robot_is_refused(changes: list, message: str, theirs: Callable[..., Target]) -> None:
    with pytest.raises(DeployError, match=rf"theirs\.xml: {message}[^\n]*$"):
        theirs(*changes)


def test_a_base_of_another_name_is_told_by_its_free_joint(theirs: Callable[..., Target]) -> None:
    target = theirs(('name="base" pos', 'name="trunk" pos'))
    assert target.base == "trunk"
    assert "no body 'base': 'trunk', which has the free joint, is taken for it, with its frame" in target.notes


def test_the_policys_step_is_as_long_in_any_model(theirs: Callable[..., Target], export: Export) -> None:
    for timestep, steps in (("0.002", 10), ("0.005", 4), ("0.02", 1)):
        target = theirs(('timestep="0.002"', f'timestep="{timestep}"'))
        assert export.runner.Simulation(export.policy, target.model).substeps == steps
    assert theirs((OPTION, "")).model.opt.timestep == 0.002  # MuJoCo's own, where a file names none: 10 a policy's step


def test_their_own_motors_are_kept_if_they_follow_targets(theirs: Callable[..., Target]) -> None:
    target = theirs(servos(20, 1.0), keep_motors=True)
    assert "the file's own motors drive it" in target.notes and target.twice is None
    motor = target.model.actuator("FL_calf_joint")
    assert (motor.gainprm[0], motor.biasprm[2]) == (20.0, -1.0)
    with pytest.raises(DeployError, match=r"--keep-motors: FL_hip_joint has 0 motors; leave the option out$"):
        theirs(keep_motors=True)
    with pytest.raises(DeployError, match=r"--keep-motors: FL_hip_joint has a torque motor, which follows no target"):
        theirs(("</mujoco>", '<actuator><motor joint="FL_hip_joint"/></actuator></mujoco>'), keep_motors=True)


def test_looks_whose_meshes_are_missing_are_left_out(theirs: Callable[..., Target]) -> None:
    mesh = '<asset><mesh name="shell" file="shell.stl"/></asset>'
    target = theirs(("<worldbody>", f'{mesh}<worldbody><geom type="mesh" mesh="shell" contype="0" conaffinity="0"/>'))
    assert target.notes[0] == "1 meshes are not there; their looks are left out"


def test_joints_that_the_policy_does_not_know_are_named(theirs: Callable[..., Target]) -> None:
    tail = '<body pos="-0.3 0 0"><joint name="tail" range="-1 1"/><geom size="0.01" mass="1"/></body>'
    target = theirs(('<body name="FL_hip"', f'{tail}<body name="FL_hip"'))
    assert "joints that the policy does not know, left as they are: tail" in target.notes
    assert any(line.startswith("mass of the robot: ") for line in target.differences)


def test_a_joint_that_sinks_while_it_hangs_is_named(theirs: Callable[..., Target], export: Export) -> None:
    target = theirs(('<joint name="FL_thigh_joint"', '<joint name="FL_thigh_joint" stiffness="200" springref="2.5"'))
    assert hang(target.model, export.runner, copy.copy(export.policy))[0] == "FL_thigh_joint"
    assert re.match(
        r"hung up and asked for nothing, FL_thigh_joint ends \d\.\d\d rad from its target", judge_hanging(export, target)
    )


BENT = '<joint name="FL_thigh_joint" class="front_thigh"'


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            [(BENT, f'{BENT} axis="0 -1 0"')],
            "axis in the base's frame: 0 0.995 0.09983 in training, 0 -0.995 -0.09983 here, of FL_thigh_joint",
        ),
        ([(BENT, f'{BENT} pos="0 0 0.05"')], "place in the base's frame: "),
        ([(BENT, f'{BENT} ref="0.3"')], "position of the drawn pose (ref): 0 in training, 0.3 here, of FL_thigh_joint"),
        ([(BENT, f'{BENT} type="slide"')], "kind (2 slide, 3 hinge): 3 in training, 2 here, of FL_thigh_joint"),
        ([(BENT, f'{BENT} stiffness="5"')], "springs in joints, which training has not: FL_thigh_joint"),
        ([(BENT, f'{BENT} damping="0.1 5 3"')], "damping that grows with the speed, which training has not: FL_thigh_joint"),
        ([("0.021112 0 -0.005366", "0.15 0 -0.005366")], "centre of mass of the link in the base's frame: "),
        ([('timestep="0.002"', 'timestep="0.002" gravity="0 0 -5"')], "option gravity: 0 0 -9.81 in training, 0 0 -5 here"),
        (
            [(OPTION, '<option timestep="0.002"><flag contact="disable"/></option>')],
            "option flag contact: off here, not so in training",
        ),
        (
            [("</mujoco>", '<equality><joint joint1="FL_thigh_joint" joint2="FR_thigh_joint"/></equality></mujoco>')],
            "1 equality constraints, which training has not",
        ),
        ([('conaffinity="1"', 'conaffinity="0"')], "nothing of the robot touches the ground in the default pose: "),
        ([('friction="0.8', 'friction="0.05')], "friction with the ground: 0.8 in training, where it was not random, 0.05 here"),
    ],
)
def test_what_a_model_has_otherwise_is_said(changes: list, said: str, theirs: Callable[..., Target]) -> None:
    assert [line for line in theirs(*changes).differences if line.startswith(said)], theirs(*changes).differences


def test_the_files_defaults_of_motors_are_not_the_contracts(theirs: Callable[..., Target]) -> None:
    for default in ('<motor gear="6.33"/>', '<general gear="5" ctrlrange="-1 1"/>'):
        model = theirs(("<default>\n    <joint", f"<default>\n    {default}<joint")).model
        assert (model.actuator_gear[:, 0] == 1.0).all() and not model.actuator_ctrllimited.any()


def test_kept_servos_are_measured(theirs: Callable[..., Target]) -> None:
    notes = theirs(servos(20, 1.0), keep_motors=True).notes
    assert "kp of FL_hip_joint: 35 in training, 20 here" in notes and "kd of FL_hip_joint: 0.5 in training, 1 here" in notes
    motors = servos(35)[1].replace("<position", "<velocity", 1).replace(' kp="35"', ' kv="1"', 1)
    with pytest.raises(DeployError, match=r"has a servo of the velocity, and the policy gives the other"):
        theirs(("</mujoco>", motors), keep_motors=True)


@pytest.fixture(scope="module")
def legs() -> tuple[dict, mujoco.MjModel]:
    """The contract of a robot with welded joints, and its own model."""
    page = load("g1_legs_flat", ["env.compile=false", "env.num_envs=1", "physics.num_threads=1"])
    env = make_env.make(page)
    contract = make_contract(env, [])
    env.close()
    spec = whole_spec(load_robot("g1_legs"), collisions="full", physics=page.physics, controls={}, dry_friction=True)
    return contract, spec.compile()


def test_the_pose_of_welded_joints_stands_in_the_contract(legs) -> None:
    robot = load_robot("g1_legs")
    assert {one["name"]: one["position"] for one in legs[0]["held"]} == robot.welded
    elbow = next(one for one in legs[0]["held"] if one["name"] == "left_elbow_joint")
    # stiffer than the gains that a G1 walks with, whose policy balances its torso
    assert elbow == {
        "name": "left_elbow_joint",
        "sdk_index": 18,
        "position": 1.28,
        "stiffness": 50.0,
        "damping": 3.0,
        "effort_limit": 25.0,
    }


def test_a_target_that_has_them_holds_them_there(legs) -> None:
    """The whole G1, hung up by its pelvis for two seconds: its waist and arms are where the legs' robot has them."""
    contract, own = legs
    target = fit(shipped("robots") / "g1" / "g1.xml", contract, own)
    assert any(note.startswith("joints that training had welded are held where it had them") for note in target.notes)
    assert not any("left as they are" in note for note in target.notes)
    data = fresh(target.model)
    start = data.qpos[:7].copy()
    for _ in range(1000):
        data.qpos[:7], data.qvel[:6] = start, 0.0
        mujoco.mj_step(target.model, data)
    for joint in contract["held"]:
        assert data.joint(joint["name"]).qpos[0] == pytest.approx(joint["position"], abs=0.15), joint["name"]
    # as heavy, and its centre of mass where it was
    for model, base in ((target.model, "pelvis"), (own, "pelvis")):
        assert model.body_subtreemass[model.body(base).id] == pytest.approx(35.112, abs=1e-3)
    masses = [difference for difference in target.differences if difference.startswith(("mass", "centre"))]
    assert masses == []


def test_motors_that_do_not_hold_are_replaced(legs, tmp_path: Path) -> None:
    text = (shipped("robots") / "g1" / "g1.xml").read_text()
    motor = '<actuator><motor name="twist" joint="waist_yaw_joint"/></actuator></mujoco>'
    (tmp_path / "theirs.xml").write_text(text.replace("</mujoco>", motor))
    target = fit(tmp_path / "theirs.xml", *legs)
    assert [target.model.actuator(index).name for index in range(target.model.nu)].count("waist_yaw_joint") == 1
    with pytest.raises(KeyError):
        target.model.actuator("twist")
