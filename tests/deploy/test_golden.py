from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.deploy.contract import KEY, DeployError, read_contract
from embodied_rl.deploy.golden import FINE, RESETS, STEPS
from embodied_rl.deploy.network import make_network
from embodied_rl.deploy.report import golden as compare
from embodied_rl.deploy.sim2sim import Export
from embodied_rl.learn.policy import Policy


def sides(contract: dict[str, Any]) -> None:
    """Take each joint for its mirror partner."""
    partners = {"FL": "FR", "FR": "FL", "RL": "RR", "RR": "RL"}
    for joint in contract["joints"]:
        joint["name"] = partners[joint["name"][:2]] + joint["name"][2:]


def swapped(contract: dict[str, Any]) -> None:
    one, other = contract["joints"][1], contract["joints"][4]
    one["name"], other["name"] = other["name"], one["name"]


def doubled(contract: dict[str, Any]) -> None:
    for joint in contract["joints"]:
        joint["stiffness"] *= 2.0


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "two joints swapped": (
        {"contract": swapped}, r"observation joint_pos: .*: FL_thigh_joint and FR_thigh_joint are swapped"
    ),
    "two joints swapped in the runner": (
        {"runner": ("        self.qpos, self.qvel =", "        joints[:2] = joints[1::-1]\n        self.qpos, self.qvel =")},
        r"observation joint_pos: .*: FL_hip_joint and FL_thigh_joint are swapped",
    ),
    "left and right swapped": ({"contract": sides}, r"observation joint_pos: .*: left and right are swapped"),
    "gains x 2": ({"contract": doubled}, r"joint torques: .*: other gains: kp of FL_hip_joint is 70 where it was 35, 2 times"),
    "degrees": (
        {"runner": ('"joint_pos": self.data.qpos[self.qpos]', '"joint_pos": np.degrees(self.data.qpos[self.qpos])')},
        r"observation joint_pos: .*: it is in degrees; radians are needed",
    ),
    "degrees a second": (
        {"runner": ('"ang_vel": velocity[:3]', '"ang_vel": np.degrees(velocity[:3])')},
        r"observation base_ang_vel: .*: it is in degrees; radians are needed",
    ),
    "xyzw": (
        {"runner": ("base.xquat.copy()", "base.xquat[[1, 2, 3, 0]]")},
        r"observation projected_gravity: .*: the quaternion's order is mistaken",
    ),
    "world-frame angular velocity": (
        {"runner": ("base.id, velocity, 1)", "base.id, velocity, 0)")},
        r"observation base_ang_vel: .*: it is in the world's frame; the base's own is needed",
    ),
    "gravity's sign": (
        {"runner": ("gravity(*state[\"quat\"]),", "-gravity(*state[\"quat\"]),")},
        r"observation projected_gravity: .*: its sign is reversed",
    ),
    "an action scale left out": (
        {"runner": (' + np.array(part["scale"]) * clipped[-1]', " + clipped[-1]")},
        r"position targets: .*: the action is not multiplied by its scale",
    ),
    "default pose not added": (
        {"contract": lambda c: c["actions"][0].update(offset=[0.0] * 12)},
        r"position targets: .*: the action's offset, the default pose, is not added",
    ),
    "default pose not taken off": (
        {"runner": ('state["joint_pos"] - policy.default', 'state["joint_pos"]')},
        r"observation joint_pos: .*: the default pose is not taken off; positions count from there",
    ),
    "history newest first": (
        {"runner": ("seen += past", "seen += reversed(past)")},
        r"observation joint_pos: .*: its history has the newest value first; the oldest comes first",
    ),
    "history begun with zeros": (
        {"runner": ("deque([value] *", "deque([0.0 * value] *")},
        r"observation joint_pos: .*: its history begins with zeros; after a reset it is full of the first value",
    ),
    "the command's order": (
        {"runner": ('policy.command[term["command"]], "gait', 'policy.command[term["command"]][[2, 0, 1]], "gait')},
        r"observation velocity_command: .*: they stand in another order: wz \[rad/s\], vx \[m/s\], vy \[m/s\]",
    ),
    "a scale left out": (
        {"runner": (' * term["scale"]', ' * (term["scale"] if term["name"] != "joint_vel" else 1.0)')},
        r"observation joint_vel: .*: it is not multiplied by its scale, 0\.05",
    ),
    "torques of old states": (
        {
            "runner": (
                "        gain[self.motors, 0], bias[self.motors, 1], bias[self.motors, 2] = 1.0, -kp, -kd\n"
                "        self.data.ctrl[self.motors] = kp * q + kd * dq",
                "        gain[self.motors, 0], bias[self.motors, 1], bias[self.motors, 2] = 1.0, 0.0, 0.0\n"
                "        now, rate = self.data.qpos[self.qpos], self.data.qvel[self.qvel]\n"
                "        self.data.ctrl[self.motors] = kp * (q - now) + kd * (dq - rate)",
            )
        },
        r"(positions|velocities) a period later: .*: the model, its timestep, or the motors' loop between two reads",
    ),
    "twice the physics steps": (
        {"runner": ("self.data, self.substeps)", "self.data, 2 * self.substeps)")},
        r"the period: .*: it takes 0\.04 s where it took 0\.02 s: another number of physics steps, or another timestep",
    ),
    "gains of a part": (
        {"runner": ("self.data.ctrl[self.motors] = kp * q + kd * dq", "self.data.ctrl[self.motors] = 0.9 * kp * q + kd * dq")},
        r"joint torques: ",
    ),
}  # fmt: skip


def test_it_agrees_with_itself(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(exported, None) == 0
    assert (
        capsys.readouterr().out
        == f"golden: {STEPS + 3} steps of 7 terms, actions and targets, torques of {FINE} steps: all agree\n"
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(mistake: str, planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    change, message = MISTAKES[mistake]
    assert compare(planted(**change), None) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert re.match(rf"golden: {message}", first), first
    assert len(others) <= 1


def test_a_normalizer_that_was_left_out_is_named(
    exported: Path, policy: Policy, planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bare, contract = Policy(torch.nn.Identity(), policy.network, None), read_contract(exported / "policy.onnx")
    assert compare(planted(network=make_network(bare, {KEY: json.dumps(contract)})), None) == 1
    assert re.match(
        r"golden: actions: .*: the network sees .* not normalized; its normalizer was left out", capsys.readouterr().out
    )


def test_what_the_golden_numbers_hold(exported: Path) -> None:
    export = Export(exported)
    golden, contract = export.numbers("golden.npz"), export.contract
    assert golden["reset"].sum() >= len(RESETS) + 3 and golden["reset"][0] == golden["reset"][60] == 1
    # each last action is the action of the step before, clipped, and 0 where an episode begins
    clipped = np.clip(golden["actions"], -0.6, 0.6)
    wanted = np.where(golden["reset"][1:, None] > 0, 0.0, clipped[:-1])
    np.testing.assert_allclose(golden["observation/last_action"][1:], wanted, atol=1e-6)
    assert (np.abs(golden["actions"]) > 0.6).any()
    # yaw 0, 90 and 180 degrees with 30 degrees of tilt
    x, y = golden["qpos"][-3:, 4:6].T
    np.testing.assert_allclose(np.degrees(np.arccos(1 - 2 * (x * x + y * y))), 30.0, atol=1e-3)
    # each torque is that of its own physics step's state
    joints = contract["joints"]
    kp, kd, limit = (np.array([joint[key] for joint in joints]) for key in ("stiffness", "damping", "effort_limit"))
    torque = kp * (golden["fine/q"] - golden["fine/qpos"][:, 7:]) - kd * golden["fine/qvel"][:, 6:]
    np.testing.assert_allclose(golden["fine/torque"], np.clip(torque, -limit, limit), atol=1e-6)
    assert len(golden["fine/torque"]) == round(contract["control_dt"] / contract["physics_dt"]) * FINE
    history = golden["observation/joint_pos"].reshape(len(golden["reset"]), 3, 12)
    assert (history[0] == history[0, 0]).all() and (history[60] == history[60, 0]).all()
    np.testing.assert_array_equal(history[5, :2], history[4, 1:])


def test_an_error_in_the_runner_is_told_with_its_line(planted: Callable[..., Path]) -> None:
    folder = planted(runner=("seen += past", "seen += passed"))
    with pytest.raises(DeployError, match=r"run_policy\.py:\d+: NameError: name 'passed' is not defined$"):
        compare(folder, None)
    with pytest.raises(DeployError, match=r"golden\.npz: no such file; export the run anew$"):
        (folder / "golden.npz").unlink()
        compare(folder, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["joints"][0].update(effort_limit=300.0),
            "model.xml: effort_limit of FL_hip_joint is 23.7, and 300 in the contract",
        ),
        (lambda c: c.update(stop_tilt=2.0), "contract.stop_tilt: 2.0, and 1.0 when it was exported"),
        (lambda c: c["joints"][0].update(sdk_index=77), "contract.joints.FL_hip_joint.sdk_index: 77, and 3 when it was exported"),
    ],
)
def test_what_no_number_shows_is_told_by_the_contract(
    change: Any, said: str, planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(planted(contract=change), None) == 1
    assert said in capsys.readouterr().out


def test_a_model_that_was_changed_is_told(planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted()
    model = folder / "model.xml"
    model.write_text(model.read_text().replace('mass="6.921"', 'mass="13.8"'))
    assert compare(folder, None) == 1
    assert "a period later: differs" in capsys.readouterr().out


def test_numbers_that_are_not_there_agree_with_nothing(planted: Callable[..., Path]) -> None:
    folder = planted()
    with np.load(folder / "golden.npz") as arrays:
        numbers = dict(arrays)
    for changed, said in (
        (numbers | {"actions": numbers["actions"][:0]}, "actions is empty"),
        (numbers | {"q": numbers["q"] * np.nan}, "q is not finite"),
        ({name: values for name, values in numbers.items() if name != "joints"}, "has no joints"),
    ):
        np.savez(folder / "golden.npz", **changed)
        with pytest.raises(DeployError, match=rf"golden\.npz: {said}; export the run anew$"):
            compare(folder, None)
