"""Run an exported policy in MuJoCo; on a robot, replace the three methods of `Simulation` by calls of its SDK (README.md)."""

import argparse
import json
import time
from collections import deque
from pathlib import Path

import mujoco
import numpy as np
import onnxruntime

VERSION, HERE = 2, Path(__file__).resolve().parent
#: By term: its value, of the policy, what a robot measures (see `Simulation.read`), and the term's part of the contract.
OBSERVATIONS = {
    "base_ang_vel": lambda policy, state, term: state["ang_vel"],
    "projected_gravity": lambda policy, state, term: gravity(*state["quat"]),
    "joint_pos": lambda policy, state, term: state["joint_pos"] - policy.default,
    "joint_vel": lambda policy, state, term: state["joint_vel"],
    "last_action": lambda policy, state, term: policy.action,
}
# what the task family adds


class Policy:
    """The network and what its contract puts around it; its clock counts calls, one every `control_dt` seconds."""

    def __init__(self, path=HERE / "policy.onnx"):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.contract = json.loads(self.session.get_modelmeta().custom_metadata_map["contract"])
        if (given := self.contract.get("version")) != VERSION:
            raise SystemExit(f"{path}: contract.version: {given}, and this runner reads {VERSION}; take the one beside the file")
        if unknown := [term["term"] for term in self.contract["observations"] if term["term"] not in OBSERVATIONS]:
            raise SystemExit(f"{path}: no {unknown[0]!r} in OBSERVATIONS; write there how your robot knows it")
        self.commands, joints = {part["name"]: part for part in self.contract["commands"]}, self.contract["joints"]
        self.joints, self.sdk_index = [joint["name"] for joint in joints], [joint["sdk_index"] for joint in joints]
        self.default, self.stiffness, self.damping = np.array([[j["default"], j["stiffness"], j["damping"]] for j in joints]).T
        self.reset()

    def reset(self):
        """Begin an episode: nothing is remembered."""
        self.calls, self.past, self.command, self.notes = 0, {}, {}, {}  # notes: what a term remembers
        self.action = np.zeros(sum(len(part["joint_names"]) for part in self.contract["actions"]))
        self.memory = {part["input"]: np.zeros(part["shape"], np.float32) for part in self.contract["memory"]}

    def __call__(self, state, command):
        """Return each joint's targets q, dq and gains kp, kd, of a `state` and the `command`'s numbers by name."""
        return self.targets(self.infer(self.observe(state, command)))

    def observe(self, state, command):
        """Return what the network sees: terms side by side, each clipped, scaled, its last values from the oldest on."""
        seen = []
        for name, part in self.commands.items():
            asked, bounds = np.array(command[name], dtype=float), part.get("ranges") or [(-np.inf, np.inf)] * part["size"]
            taken = asked if asked.tolist() == part.get("rest") else np.clip(np.nan_to_num(asked), *np.transpose(bounds))
            if (taken != asked).any() and not np.array_equal(taken, self.command.get(name)):
                print(f"{name}: {asked} is more than training asked for, {taken} is taken ({', '.join(part['names'])})")
            self.command[name] = taken
        for term in self.contract["observations"]:
            value = np.atleast_1d(OBSERVATIONS[term["term"]](self, state, term))
            value = np.clip(value, *(term["clip"] or (-np.inf, np.inf))) * term["scale"]
            past = self.past.setdefault(term["name"], deque([value] * term["history"], maxlen=term["history"]))
            past.append(value)
            seen += past
        return np.concatenate(seen).astype(np.float32)

    def infer(self, observation):
        """Return the network's outputs; what it remembers is kept for the next call."""
        actions, *memory = self.session.run(None, {"obs": observation[None], **self.memory})
        self.memory = dict(zip(self.memory, memory, strict=True))
        return actions[0]

    def targets(self, outputs):
        """Share the outputs out among the actions; joints that none drives hold the default pose."""
        q, dq, kp, kd, clipped = self.default.copy(), 0.0 * self.default, self.stiffness.copy(), self.damping.copy(), []
        for part in self.contract["actions"]:
            own, outputs = np.split(outputs, [len(part["joint_names"])])
            clipped.append(np.clip(own, -part["clip"], part["clip"]))
            index = [self.joints.index(name) for name in part["joint_names"]]
            position, target = part["target"] == "position", part["offset"] + np.array(part["scale"]) * clipped[-1]
            (q if position else dq)[index], kp[index] = target, kp[index] * position
        self.action, self.calls = np.concatenate(clipped), self.calls + 1
        return q, dq, kp, kd


class Simulation:
    """A robot in MuJoCo: what it measures, what its motors are told, and time."""

    def __init__(self, policy, model=None):
        self.model = model or mujoco.MjModel.from_xml_path(str(HERE / "model.xml"))
        self.data, joints = mujoco.MjData(self.model), [self.model.joint(name) for name in policy.joints]
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        self.qpos, self.qvel = [joint.qposadr[0] for joint in joints], [joint.dofadr[0] for joint in joints]
        self.motors = [self.model.actuator(name).id for name in policy.joints]
        self.base, self.substeps = policy.contract["base"], round(policy.contract["control_dt"] / self.model.opt.timestep)

    def read(self):
        """Measure: the base's orientation (wxyz), its angular velocity in its own frame, joints in the contract's order."""
        mujoco.mj_step1(self.model, self.data)
        base, velocity = self.data.body(self.base), np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, base.id, velocity, 1)
        joints = {"joint_pos": self.data.qpos[self.qpos], "joint_vel": self.data.qvel[self.qvel]}
        return {"quat": base.xquat.copy(), "ang_vel": velocity[:3]} | joints

    def write(self, q, dq, kp, kd):
        """Tell the motors: torque = kp (q - position) + kd (dq - velocity) at every physics step, within their limits."""
        gain, bias = self.model.actuator_gainprm, self.model.actuator_biasprm
        gain[self.motors, 0], bias[self.motors, 1], bias[self.motors, 2] = 1.0, -kp, -kd
        self.data.ctrl[self.motors] = kp * q + kd * dq

    def tick(self):
        """Wait for the next period."""
        mujoco.mj_step(self.model, self.data, self.substeps)


def gravity(w, x, y, z):
    """Return the direction of gravity in a body's frame, of the body's orientation."""
    return np.array([2.0 * (w * y - x * z), -2.0 * (w * x + y * z), 2.0 * (x * x + y * y) - 1.0])


if __name__ == "__main__":  # bring the robot into its default pose, run the policy, let go of it where it tilts too far
    parser, policy = argparse.ArgumentParser(), Policy()
    names = [name for part in policy.commands.values() for name in part["names"]]
    said = f"{', '.join(names) or 'this policy takes no command'}; default zeros"
    parser.add_argument("--command", type=float, nargs=len(names) or "*", default=[0.0] * len(names), help=said)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the policy runs")
    options = parser.parse_args()
    robot, dt, numbers = Simulation(policy), policy.contract["control_dt"], iter(options.command)
    command = {name: [next(numbers) for _ in part["names"]] for name, part in policy.commands.items()}
    start, begun = robot.read()["joint_pos"], time.perf_counter()
    for step in range(-100, round(options.seconds / dt)):  # the first 100 bring it into the default pose
        state = robot.read()
        if -gravity(*state["quat"])[2] < np.cos(policy.contract["stop_tilt"]):
            robot.write(policy.default, 0.0 * policy.default, 0.0 * policy.stiffness, policy.damping)
            raise SystemExit(f"stopped after {step * dt:.2f} s: tilted by more than {policy.contract['stop_tilt']} rad")
        pose = policy.default + (start - policy.default) * -step / 100
        robot.write(*(policy(state, command) if step >= 0 else (pose, 0.0 * pose, policy.stiffness, policy.damping)))
        robot.tick()
    print(f"ran {options.seconds} s, {(step + 101) * dt / (time.perf_counter() - begun):.1f} times as fast as real time")
