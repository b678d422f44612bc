from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import yaml

from embodied_rl.config import Page
from embodied_rl.deploy.contract import DeployError, check, json_schema, make_contract, read_contract, read_folder
from embodied_rl.make_env import make
from embodied_rl.paths import PACKAGE
from embodied_rl.robot import load_robot

from .conftest import COMMIT, rewrite

SCHEMA = PACKAGE.parent / "docs" / "contract.schema.json"


def test_the_contract_is_complete(exported: Path) -> None:
    contract, robot = read_contract(exported / "policy.onnx"), load_robot("go2")
    joints, observations = contract.pop("joints"), contract.pop("observations")
    assert [joint["name"] for joint in joints] == list(robot.joint_names)
    assert joints[2] == {
        "name": "FL_calf_joint",
        "sdk_index": 5,
        "default": -1.5,
        "stiffness": 35.0,
        "damping": 0.5,
        "effort_limit": 45.43,
        "velocity_limit": None,
        "armature": 0.01,
        "friction_loss": 0.0,
        "joint_damping": 0.1,
    }
    assert [term["name"] for term in observations] == [
        "base_ang_vel", "projected_gravity", "velocity_command", "gait_phase", "joint_pos", "joint_vel", "last_action"
    ]  # fmt: skip
    assert observations[5] == {
        "name": "joint_vel",
        "term": "joint_vel",
        "description": "Joint velocities [rad/s], (N, J).",
        "command": None,
        "size": 12,
        "scale": 0.05,
        "clip": [-30.0, 30.5],
        "history": 1,
        "delay": [0, 0],
        "privileged": False,
    }
    assert contract == {
        "version": 2,
        "robot": "go2",
        "task": "velocity",
        "base": "base",
        "base_height": 0.3235,
        "control_dt": 0.02,
        "physics_dt": 0.01,
        "held": [],
        "actions": [
            {
                "name": "joint_position",
                "term": "joint_position",
                "target": "position",
                "joint_names": list(robot.joint_names),
                "offset": list(robot.default_joint_pos),
                "scale": [0.5] * 12,
                "clip": 0.6,
            }
        ],
        "commands": [
            {
                "name": "velocity",
                "term": "velocity",
                "size": 3,
                "names": ["vx [m/s]", "vy [m/s]", "wz [rad/s]"],
                "ranges": [[-1.0, 1.0], [-0.5, 0.5], [-1.0, 1.0]],
                "rest": [0.0, 0.0, 0.0],
                "gait_frequency": 2.0,
                "settle_s": 0.5,
                "standing_below": 0.1,
            }
        ],
        "memory": [],
        "feet": [{"name": name, "gait_offset": offset} for name, offset in (("FL", 0.0), ("FR", 0.5), ("RL", 0.5), ("RR", 0.0))],
        "ground": [1.0, 0.02, 0.01],
        "stop_tilt": 1.0,
        "git_commit": COMMIT,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["joints"][3].pop("stiffness"), "joints.3.stiffness: is missing"),
        (lambda c: c.pop("actions"), "actions: is missing"),
        (lambda c: c["actions"][0].pop("scale"), "actions.0.scale: is missing"),
        (lambda c: c.update(scales=1.0), "scales: no such field"),
        (lambda c: c["joints"][0].update(stifness=3.0), "joints.0.stifness: no such field; did you mean 'stiffness'?"),
        (lambda c: c.update(version=1), "version: 1, and this version of embodied_rl reads 2"),
        (lambda c: c.pop("version"), "version: is missing"),
        (lambda c: c["joints"][0].update(damping="0.5"), 'joints.0.damping: "0.5": input should be a valid number'),
        (lambda c: c["actions"][0]["scale"].pop(), "actions.0.scale: 11 numbers, and 12 joints"),
        (
            lambda c: c["actions"][0]["joint_names"].__setitem__(0, "FL_hip"),
            "actions.0.joint_names: no joint 'FL_hip'; did you mean 'FL_hip_joint'?",
        ),
        (lambda c: c["observations"][2].update(command="velocty"), "observations.2.command: no command 'velocty'; did you"),
    ],
)
def test_what_is_missing_unknown_or_of_another_version_is_refused_by_name(
    change: Any, message: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "a")
    rewrite(tmp_path / "a", change)
    with pytest.raises(DeployError, match=rf"policy\.onnx: contract\.{re.escape(message)}[^\n]*$"):
        read_folder(tmp_path / "a")


def test_a_contract_for_people_that_says_something_else_is_named(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "a")
    assert read_folder(tmp_path / "a") == read_contract(exported / "policy.onnx")
    rewrite(tmp_path / "a", lambda c: c["joints"][4].update(stiffness=70.0), for_people=False)
    with pytest.raises(
        DeployError, match=r"contract\.yaml: joints\.FR_thigh_joint\.stiffness: 35\.0, and policy\.onnx.* has 70\.0"
    ):
        read_folder(tmp_path / "a")
    (tmp_path / "a" / "contract.yaml").unlink()  # it is for people
    assert read_folder(tmp_path / "a")["joints"][4]["stiffness"] == 70.0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"\xff not onnx", "not an ONNX file"), (b"", "an ONNX file without a contract")],
)
def test_files_without_a_contract_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeployError, match=rf"^{re.escape(str(path))}: {message}[^\n]*$"):
        read_contract(path)


@pytest.mark.parametrize("section", ["actions", "commands"])
def test_a_term_that_does_not_say_what_it_does_is_refused(section: str, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(page, num_envs=1)
    ((name, term),) = env.terms.actions.terms if section == "actions" else env.terms.commands.items()
    for base in type(term).__mro__:
        if "contract" in vars(base):
            monkeypatch.delattr(base, "contract")
    with pytest.raises(DeployError, match=rf"^go2_flat: {section}\.{name}: {name} has no contract\(\), so that a robot cannot"):
        make_contract(env, [])
    env.close()


def test_the_schema_is_current_and_fits(exported: Path) -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "python -m embodied_rl.deploy.contract > docs/contract.schema.json"
    written = yaml.safe_load((exported / "contract.yaml").read_text())
    assert check(written, "") == written and set(written) == set(json_schema()["properties"])


def test_gains_are_those_that_are_measured(exported: Path) -> None:
    """Not read: the torque of each joint at 0.01 rad from its target gives kp, at 0.1 rad/s kd."""
    contract = read_contract(exported / "policy.onnx")
    model = mujoco.MjModel.from_xml_path(str(exported / "model.xml"))
    data = mujoco.MjData(model)
    for joint in contract["joints"]:
        found, motor = model.joint(joint["name"]), model.actuator(joint["name"]).id
        for away, rate, wanted in ((0.01, 0.0, 0.01 * joint["stiffness"]), (0.0, 0.1, -0.1 * joint["damping"])):
            mujoco.mj_resetDataKeyframe(model, data, 0)
            data.ctrl[motor] = data.qpos[found.qposadr[0]] + away
            data.qvel[found.dofadr[0]] = rate
            mujoco.mj_forward(model, data)
            assert data.qfrc_actuator[found.dofadr[0]] == pytest.approx(wanted, abs=1e-9)
    names = [model.joint(index).name for index in range(1, model.njnt)]
    np.testing.assert_allclose(model.key_qpos[0][7:], [{j["name"]: j["default"] for j in contract["joints"]}[n] for n in names])
