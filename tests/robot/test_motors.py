"""Classes of motors, and gains written as a second-order system."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from embodied_rl.robot import load_robot
from embodied_rl.robot.motors import gains


def test_a_joint_takes_its_motors_numbers_and_overrides_them(biped):
    assert biped.joint_names == ("left_hip", "left_pitch", "left_knee", "right_hip", "right_pitch", "right_knee")
    assert biped.effort_limit == (5.0, 5.0, 8.0, 5.0, 6.0, 8.0)
    assert biped.velocity_limit == (30.0, 30.0, None, 30.0, 30.0, None)
    assert biped.friction_loss == (None, 0.3, None, None, None, None)
    assert biped.joint_damping == (None, None, 0.2, None, None, 0.2)
    assert biped.armature == (None, None, 0.01, None, None, 0.02)
    model = biped.mjspec().compile()
    for name, armature, damping, friction in [("left_knee", 0.01, 0.2, 0.0), ("left_pitch", 0.0, 0.0, 0.3)]:
        dof = model.joint(name).dofadr[0]
        assert (model.dof_armature[dof], model.dof_damping[dof], model.dof_frictionloss[dof]) == (armature, damping, friction)


def test_gains_are_those_of_the_second_order_system(biped):
    omega = 2 * math.pi * 10.0
    assert biped.stiffness[2] == pytest.approx(0.01 * omega**2) and biped.damping[2] == pytest.approx(2 * 2.0 * 0.01 * omega)
    # the joint's own armature counts
    assert biped.stiffness[5] == pytest.approx(0.02 * omega**2) and biped.damping[5] == pytest.approx(2 * 2.0 * 0.02 * omega)


@pytest.mark.parametrize("armature, stiffness, damping", [(0.003609725, 14.2506, 0.90722), (0.025101925, 99.0984, 6.30880)])
def test_gains_are_mjlabs(armature, stiffness, damping):
    """Of two motors of its Unitree G1, from 10 Hz and a damping ratio of 2."""
    motor = {"natural_frequency": 10.0, "damping_ratio": 2.0, "armature": armature}
    assert gains(motor) == pytest.approx((stiffness, damping), rel=1e-5)


def test_a_motor_without_load_oscillates_at_its_natural_frequency(write):
    xml = """<mujoco><option gravity="0 0 0" timestep="1e-5"/><worldbody><body name="disk"><joint name="spin" axis="0 0 1"/>
    <geom size=".01" mass="1e-6"/></body></worldbody></mujoco>"""
    page = """\
model: biped.xml
base: disk
base_height: 0.0
joints: {spin: {default: 0.0, natural_frequency: 5.0, damping_ratio: 0.0, armature: 0.02, effort_limit: 100.0}}
"""
    robot = load_robot(str(write(page, name="disk", xml=xml)))
    assert robot.name == "disk"  # of the folder
    spec = robot.mjspec()
    spec.add_actuator(name="spin", target="spin", trntype=mujoco.mjtTrn.mjTRN_JOINT).set_to_position(
        kp=robot.stiffness[0], kv=robot.damping[0]
    )
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[0] = 0.1
    positions = []
    for _ in range(20000):  # a period is 0.2 s
        mujoco.mj_step(model, data)
        positions.append(data.qpos[0])
    np.testing.assert_allclose(positions[-1], 0.1, atol=1e-4)
    np.testing.assert_allclose(positions[9999], -0.1, atol=1e-4)


def test_null_takes_a_motors_number_away(write, biped):
    page = "extends: ../biped\nmotors: {knee: {natural_frequency: null, damping_ratio: null, stiffness: 7.0, damping: 0.7}}\n"
    robot = load_robot(str(write(page, name="soft", xml=None)))
    assert robot.stiffness == (20.0, 20.0, 7.0) * 2 and robot.damping == (1.0, 1.0, 0.7) * 2
    assert robot.armature == biped.armature


WRONG = {
    "unknown motor": ("motor: hip}", "motor: hop}", ["9: joints.left_hip.motor: no motor 'hop'; did you mean 'hip'?"]),
    "unknown key": ("{stiffness", "{stifness", None),
    "both ways": (
        "{natural_frequency",
        "{stiffness: 1.0, natural_frequency",
        [
            "7: motors.knee.stiffness: stands beside natural_frequency: gains are written one way, stiffness and damping or "
            "natural_frequency and damping_ratio; null takes an inherited key away"
        ],
    ),
    "both ways at a joint": ("default: 0.4, motor: knee}", "default: 0.4, motor: knee, stiffness: 1.0, damping: 1.0}", None),
    "half of gains": ("damping: 1.0, ", "", ["6: motors.hip.damping: is missing beside stiffness; write both"]),
    "half of a system": (
        "damping_ratio: 2.0, ",
        "",
        ["7: motors.knee.damping_ratio: is missing beside natural_frequency; write both"],
    ),
    "no gains": (
        "stiffness: 20.0, damping: 1.0, ",
        "",
        [
            "6: motors.hip.stiffness: is missing; write stiffness and damping, "
            "or natural_frequency and damping_ratio with armature"
        ],
    ),
    "no limit": ("effort_limit: 5.0, ", "", ["6: motors.hip.effort_limit: is missing; it must be a number"]),
    "an armature of 0": (
        "motor: knee, armature: 0.02",
        "motor: knee, armature: 0.0",
        ["14: joints.right_knee.armature: is 0; gains of natural_frequency need one above 0 [kg m^2]"],
    ),
}


@pytest.mark.parametrize("old, new, expected", WRONG.values(), ids=WRONG)
def test_a_motors_mistake_is_told_once(mistakes, old, new, expected):
    said = mistakes(old, new)
    if expected is not None:
        assert said == expected
    else:
        assert len(said) in (1, 2) and all(line.split(": ")[1].startswith(("motors.", "joints.")) for line in said)


def test_a_frequency_needs_an_armature(mistakes):
    said = mistakes("armature: 0.01, ", "")
    assert said == ["7: motors.knee.armature: is missing; gains of natural_frequency need one above 0 [kg m^2]"]
