from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import onnx
import onnxruntime  # noqa: TID253  every test here needs it
import pytest
import torch
from rsl_rl.models import MLPModel

from embodied_rl import make_env
from embodied_rl.env import Env
from embodied_rl.export import ExportError, export, read_contract
from embodied_rl.export import contract as make_contract
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.paths import shipped
from embodied_rl.vector_env import ActionSpace

# Nothing random but the state it starts from; a history and clips that bite, as no shipped page has them.
PAGE = (
    "env.compile=false",
    "env.random_episode_phase=false",
    "observations.actor.base_ang_vel.noise=0.0",
    "observations.actor.projected_gravity.noise=0.0",
    "observations.actor.joint_pos.noise=0.0",
    "observations.actor.joint_pos.history=3",
    "observations.actor.joint_vel.noise=0.0",
    "observations.actor.joint_vel.clip=[-1.0, 1.5]",
    "actions.joint_position.clip=0.4",
    "commands.velocity.standing=0.0",
    "events.foot_friction=null",
    "events.push=null",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS = 20


@dataclass
class Exported:
    env: Env
    actor: MLPModel
    path: Path
    contract: dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """A random network whose normalizer has seen something, and its file."""
    env = make_env.make("go2_flat", PAGE, num_envs=1)
    torch.manual_seed(0)
    actor = build_actor(env.obs, env.action_space, env.page.ppo)
    with torch.no_grad():
        actor.mlp[-1].weight.mul_(10.0)  # pyright: ignore  large enough actions to move it, and to be clipped
    actor.obs_normalizer.update(0.3 + 0.5 * torch.randn(100, actor.obs_dim))  # pyright: ignore
    path = export(policy_of(actor), env, tmp_path_factory.mktemp("run") / "exported" / "policy.onnx", git_commit=COMMIT)
    yield Exported(env, actor, path, read_contract(path))
    env.close()


def test_the_contract_is_complete(exported: Exported) -> None:
    contract = exported.contract
    spec = exported.env.robot.spec
    assert contract.pop("observations")[5:] == [
        {
            "name": "joint_vel",
            "description": "Joint velocities [rad/s], (N, J).",
            "size": 12,
            "scale": 0.05,
            "clip": [-1.0, 1.5],
            "history": 1,
            "delay": [0, 0],
        },
        {
            "name": "last_action",
            "description": "Last actions of the policy, (N, A).",
            "size": 12,
            "scale": 1.0,
            "clip": None,
            "history": 1,
            "delay": [0, 0],
        },
    ]
    assert contract == {
        "robot": "go2",
        "joint_names": list(spec.joint_names),
        "default_joint_pos": list(spec.default_joint_pos),
        "stiffness": [35.0] * 12,
        "damping": [0.5] * 12,
        "effort_limit": [23.7, 23.7, 45.43] * 4,
        "actions": [
            {
                "name": "joint_position",
                "term": "joint_position",
                "target": "position",
                "joint_names": list(spec.joint_names),
                "offset": list(spec.default_joint_pos),
                "scale": [0.5] * 12,
                "clip": 0.4,
            }
        ],
        "control_dt": 0.02,
        "physics_dt": 0.005,
        "commands": [
            {
                "name": "velocity",
                "term": "velocity",
                "size": 3,
                "names": ["vx [m/s]", "vy [m/s]", "wz [rad/s]"],
                "ranges": {"lin_vel_x": [-1.0, 1.0], "lin_vel_y": [-0.5, 0.5], "ang_vel_z": [-1.0, 1.0]},
                "gait_frequency": 2.0,
                "settle_s": 0.5,
                "standing_below": 0.1,
            }
        ],
        "git_commit": COMMIT,
    }


@pytest.mark.parametrize("section", ["actions", "commands"])
def test_a_term_that_does_not_say_what_it_does_is_refused(
    section: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = dict(exported.env.terms.actions.terms) if section == "actions" else exported.env.terms.commands
    ((name, term),) = terms.items()
    for base in type(term).__mro__:
        if "contract" in vars(base):
            monkeypatch.delattr(base, "contract")
    with pytest.raises(ExportError, match=rf"^go2_flat: {section}\.{name}: {name} has no contract\(\), so that a robot cannot"):
        make_contract(exported.env)


def test_observations_are_in_the_policy_order(exported: Exported) -> None:
    terms = read_contract(exported.path)["observations"]
    assert [term["name"] for term in terms] == list(exported.env.page.observations["actor"])
    assert sum(term["size"] * term["history"] for term in terms) == exported.env.obs["actor"].shape[1]


def test_any_number_of_rows(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.path)
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, result.name) == ("obs", "actions")
    for rows in (1, 7):
        obs = torch.randn(rows, exported.actor.obs_dim)
        wanted = exported.actor.mlp(exported.actor.obs_normalizer(obs)).detach().numpy()
        actions = np.asarray(session.run(["actions"], {"obs": obs.numpy()})[0])
        np.testing.assert_allclose(actions, wanted, atol=1e-5, rtol=0)


def test_no_path_of_this_machine_is_in_the_file(exported: Exported) -> None:
    assert not re.search(rb"site-packages|\.py\b|" + str(Path.home()).encode(), exported.path.read_bytes())


def test_nothing_is_left_behind(exported: Exported) -> None:
    assert [path.name for path in exported.path.parent.iterdir()] == ["policy.onnx"]


def test_export_is_quiet(
    exported: Exported,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    tmp_path: Path,
) -> None:
    export(policy_of(exported.actor), exported.env, tmp_path / "policy.onnx")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert recwarn.list == []


def test_a_wrong_network_is_not_written(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported.path)
    (mean,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("_mean"))
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + np.float32(1e-3), mean.name))
    monkeypatch.setattr("embodied_rl.export._to_onnx", lambda *_: model)
    with pytest.raises(ExportError, match=r"^the exported network differs from torch by \S+, more than 1e-05: nothing"):
        export(policy_of(exported.actor), exported.env, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_a_policy_of_another_page_is_refused(exported: Exported, tmp_path: Path) -> None:
    other = build_actor({"actor": torch.zeros(1, 5)}, ActionSpace(12), exported.env.page.ppo)
    with pytest.raises(ExportError, match=r"^the policy takes 5 observations, the page go2_flat gives \d+; export it"):
        export(policy_of(other), exported.env, tmp_path / "policy.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"\xff not onnx", "not an ONNX file"), (b"", "an ONNX file without a contract")],
)
def test_files_without_a_contract_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"^{re.escape(str(path))}: {message}[^\n]*$"):
        read_contract(path)


# ------------------------------------------------------------------------------------------------------ on a robot
# From here on only NumPy, onnxruntime and MuJoCo, as on a robot or in another simulator: the contract must suffice.


class Deployed:
    """A policy with what stands in its contract, on a robot that plain MuJoCo simulates."""

    def __init__(self, path: Path, options: dict[str, int]) -> None:
        self.session = onnxruntime.InferenceSession(path)
        self.contract = contract = read_contract(path)
        (self.driven,), (self.asked,) = contract["actions"], contract["commands"]
        spec = mujoco.MjSpec.from_file(str(shipped("robots") / contract["robot"] / f"{contract['robot']}.xml"))
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], contype=1, conaffinity=0)
        gains = zip(*(contract[key] for key in ("joint_names", "stiffness", "damping", "effort_limit")), strict=True)
        for name, stiffness, damping, limit in gains:
            motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            motor.set_to_position(kp=stiffness, kv=damping)
            motor.forcelimited, motor.forcerange = True, (-limit, limit)
            motor.ctrllimited = False
            spec.joint(name).actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE
        for name, value in options.items():
            setattr(spec.option, name, value)
        spec.option.timestep = contract["physics_dt"]
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.default = np.array(contract["default_joint_pos"])
        joints = [self.model.joint(name) for name in contract["joint_names"]]
        self.qpos = [joint.qposadr[0] for joint in joints]
        self.qvel = [joint.dofadr[0] for joint in joints]
        self.action, self.past, self.seconds, self.still = np.zeros(len(joints)), {}, 0.0, 1e3

    def measure(self, name: str, command: np.ndarray) -> np.ndarray:
        if name == "base_ang_vel":
            return self.data.qvel[3:6]
        if name == "projected_gravity":
            rotation = np.zeros(9)
            mujoco.mju_quat2Mat(rotation, self.data.qpos[3:7])
            return rotation.reshape(3, 3).T @ (0.0, 0.0, -1.0)
        if name == "velocity_command":
            return command
        if name == "gait_phase":
            phase = 2 * np.pi * self.asked["gait_frequency"] * self.seconds
            moving = max(np.hypot(*command[:2]), abs(command[2])) > self.asked["standing_below"]
            self.still = 0.0 if moving else self.still + self.contract["control_dt"]
            settling = self.still < self.asked["settle_s"] + 0.5 * self.contract["control_dt"]
            return np.array([np.sin(phase), np.cos(phase)]) * (moving or settling)
        if name == "joint_pos":
            return self.data.qpos[self.qpos] - self.default
        if name == "joint_vel":
            return self.data.qvel[self.qvel]
        assert name == "last_action"
        return self.action

    def observe(self, command: np.ndarray) -> np.ndarray:
        parts = []
        for term in self.contract["observations"]:
            value = self.measure(term["name"], command)
            assert value.shape == (term["size"],)
            if term["clip"] is not None:
                value = value.clip(*term["clip"])
            value = value * term["scale"]
            past = self.past.setdefault(term["name"], deque([value] * term["history"], maxlen=term["history"]))
            past.append(value)
            parts += past
        return np.concatenate(parts).astype(np.float32)

    def step(self, command: np.ndarray) -> np.ndarray:
        actions = np.asarray(self.session.run(["actions"], {"obs": self.observe(command)[None]})[0])[0]
        self.action = actions.clip(-self.driven["clip"], self.driven["clip"])
        self.data.ctrl[:] = self.driven["offset"] + np.array(self.driven["scale"]) * self.action
        for _ in range(round(self.contract["control_dt"] / self.contract["physics_dt"])):
            mujoco.mj_step(self.model, self.data)
        self.seconds += self.contract["control_dt"]
        return actions


def test_the_contract_suffices_to_run_the_policy(exported: Exported) -> None:
    env = exported.env
    options = env.scene.model.opt
    names = ("integrator", "solver", "cone", "iterations", "ls_iterations", "impratio", "tolerance", "disableflags")
    robot = Deployed(exported.path, {name: getattr(options, name) for name in names})
    with torch.no_grad():
        obs = env.reset()["actor"]
        robot.data.qpos[:], robot.data.qvel[:] = env.physics.qpos[0].numpy(), env.physics.qvel[0].numpy()
        command = env.buffers["commands.velocity.command"][0].numpy().copy()
        wanted, clipped = [], 0
        for _ in range(STEPS):
            action = exported.actor.mlp(exported.actor.obs_normalizer(obs))
            wanted.append(action[0].numpy().copy())
            clipped += int((action.abs() > 0.4).sum())
            assert not env.step(action).terminated.any()
    actions = [robot.step(command) for _ in range(STEPS)]
    np.testing.assert_allclose(actions, wanted, atol=1e-4, rtol=0)
    assert clipped
    assert np.ptp(wanted, axis=0).max() > 0.1
