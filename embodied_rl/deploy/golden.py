"""Golden numbers: what a policy sees, answers and asks of the motors in some states, and whether a runner agrees, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.deploy.diagnosis import clipped, diagnose
from embodied_rl.deploy.place import place, state_of
from embodied_rl.env import Env
from embodied_rl.learn.policy import Policy
from embodied_rl.mdp.moment import Draw
from embodied_rl.mdp.part import PartState

#: Steps in all, those that begin an episode, the one from which on standing is asked for, and how many are looked at physics
#: step by physics step.
STEPS, RESETS, STANDS, FINE = 100, (0, 60), 40, 10
#: States that end the list, each an episode's first: yaw and tilt, about an axis between pitch and roll [rad].
_YAWS, _TILT = (0.0, 0.5 * math.pi, math.pi), math.pi / 6
#: All of them.
STATES = STEPS + len(_YAWS)
#: Shares of a command's range that are asked for, one after the other.
_SHARES = (0.9, 0.35, 0.75, 0.1, 0.6)
#: What float32 leaves of equal numbers, as a share of a quantity's largest one, and at least.
_TOLERANCE = 1e-4
#: What a model that was written as text leaves of equal motions, after a control step, likewise.
_MOTION = 1e-3

Golden = dict[str, np.ndarray]


class Difference(NamedTuple):
    """A quantity in which a runner and the golden numbers differ."""

    name: str
    error: float
    step: int
    """The first step with it."""
    why: str
    """What it looks like; empty: like nothing that is known."""

    def __str__(self) -> str:
        return f"{self.name}: differs by {self.error:.3g} from step {self.step} on{': ' if self.why else ''}{self.why}"


def golden_page(page: Page) -> Page:
    """Change a page to one robot without noise, delays and anything random but where it starts."""
    changes = ["env.num_envs=1", "env.random_episode_phase=false", "env.compile=false", "curriculum=null", "events=null"]
    changes += ["physics.engine=native", "physics.device=auto", "events.reset_joints={position: 0.2}"]
    if any(entry.term == "reset_base" for entry in page.events.values()):  # of a base that moves
        changes.append("events.reset_base={position: 0.5, lin_vel: 0.3, ang_vel: 0.5}")
    return override(page, [*changes, *quiet(page)])


def quiet(page: Page) -> list[str]:
    """List what takes noise, gaps and delays off a page."""
    changes = [f"actions.{name}.latency=[0, 0]" for name, entry in page.actions.items() if "latency" in entry.params]
    for name in page.observations["actor"]:
        none = {"noise": "0.0", "offset": "0.0", "dropout": "0.0", "delay": "[0, 0]"}
        changes += [f"observations.actor.{name}.{key}={value}" for key, value in none.items()]
    return changes


@torch.no_grad()
def record(env: Env, policy: Policy) -> Golden:
    """Record an environment of a `golden_page` while the policy drives it.

    Returns:
        `joints`, their names, and `mirror`, each one's partner or nothing; and a row per step: `reset`, `time` since then
        [s]; `qpos` and `qvel` as `embodied_rl.deploy.place` has them, `command/NAME`; `observation/NAME` with its history, the
        oldest value first; the network's `actions`, and `bare_actions` without its normalizer; the joints' targets `q`, `dq`.
        Of the first steps a row per physics step: `fine/step`, `fine/qpos`, `fine/qvel`, `fine/q`, `fine/dq`, `fine/torque`; and
        what they come to: `motion/step`, `motion/qpos`, `motion/qvel`, `motion/time`.
    """
    spec, (group,) = env.robot.spec, (group for group in env.groups if group.name == "actor")
    network, bare = policy.deploy().cpu(), policy.bare().cpu()
    splits = np.cumsum([term.size * term.history for term in group.terms])[:-1]
    velocity = np.array([name in env.scene.velocity_joints for name in spec.joint_names])
    rows: dict[str, list[np.ndarray]] = {}
    fresh, begins, episodes, calls = torch.ones(1, dtype=torch.bool), True, 0, 0
    memory: tuple[Tensor, ...] = ()

    def add(kind: str = "", /, **values: Any) -> None:
        for name, value in values.items():
            rows.setdefault(kind + name, []).append(torch.as_tensor(value, dtype=torch.float64).numpy().copy())

    for step in range(STATES):
        tilted = step >= STEPS
        if begins or tilted or step in RESETS:
            ask(env, episodes)
            env.reset()
            begins, episodes, calls, memory = True, episodes + 1, 0, policy.start(1, "cpu")
        if tilted:
            tilt(env, _YAWS[step - STEPS])
            env.obs["actor"].copy_(group.compute(env.moment(Draw()), noisy=False, fresh=fresh))
        obs = env.obs["actor"].clone()
        actions, *kept = _all(network(obs, *memory))
        told: Any = SimpleNamespace(actions=env.terms.actions.clip(actions), previous_actions=actions, decimation=1)
        control = env.terms.actions.controls(told)[0].double().numpy()
        targets = {"q": np.where(velocity, spec.default_joint_pos, control), "dq": np.where(velocity, control, 0.0)}
        (qpos,), (qvel,) = states_of(env)
        add(reset=begins, time=calls * env.step_dt, qpos=qpos, qvel=qvel, **targets)
        add(actions=actions[0], bare_actions=_all(bare(obs, *memory))[0][0])
        add("command/", **{name: term.command[0] for name, term in env.terms.commands.items()})
        parts = np.split(obs[0].numpy(), splits)
        add("observation/", **{term.name: values for term, values in zip(group.terms, parts, strict=True)})
        if step < FINE:
            fine, (after, rate) = _physics_steps(env, control)
            for row in fine:
                add("fine/", step=step, **targets, **row)
            add("motion/", step=step, qpos=after, qvel=rate, time=env.step_dt)
        memory, calls = tuple(kept), calls + 1
        if step == STANDS:
            ask(env, None)
        env.step(actions)
        begins = bool(env.episode.done[0])  # it fell
    names = {"joints": spec.joint_names, "mirror": [spec.mirrored_name(name) if spec.mirror else "" for name in spec.joint_names]}
    named = {name: np.array(values) for name, values in names.items()}
    return named | {name: np.stack(values) for name, values in rows.items()}


def compare(
    golden: Golden, runner: Any, policy: Any, model: mujoco.MjModel, read: Callable[[Any], dict[str, Any]], *, own: bool
) -> Iterator[Difference]:
    """Compute everything anew, each stage from the golden numbers of the one before; what differs, in the pipeline's order.

    Args:
        golden: what `record` gave.
        runner: the module run_policy.py.
        policy: its `Policy`.
        model: what its `Simulation` simulates.
        read: measures one.
        own: it is training's model, so that it also moves as there.
    """
    contract, robot = policy.contract, runner.Simulation(policy, model)
    names, base = golden["joints"].tolist(), model.body(contract["base"]).id
    if odd := set(names) ^ set(policy.joints):
        yield Difference("joints", math.inf, 0, f"{min(odd)!r} is in one of contract and golden.npz alone: of another export?")
        return
    order, found = [policy.joints.index(name) for name in names], {}
    sizes = {f"observation/{term['name']}": term["size"] * term["history"] for term in contract["observations"]}
    splits = np.cumsum([*sizes.values()])[:-1]

    def note(**values: Any) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(np.array(value, dtype=float))

    for step, begins in enumerate(golden["reset"]):
        policy.action = clipped(contract, golden["actions"][step - 1])
        if begins:
            policy.reset()
        place(robot.model, robot.data, base, names, golden["qpos"][step], golden["qvel"][step])
        command = {part["name"]: golden[f"command/{part['name']}"][step] for part in contract["commands"]}
        observed = policy.observe(read(robot), command)
        note(**dict(zip(sizes, np.split(observed, splits), strict=True)))
        seen = np.concatenate([golden[name][step] for name in sizes]).astype(np.float32)
        note(actions=policy.infer(seen))
        q, dq, *_ = policy.targets(golden["actions"][step].astype(np.float32))
        note(q=q[order], dq=dq[order])
    for row, step in enumerate(golden["fine/step"].astype(int)):
        _, _, kp, kd = policy.targets(golden["actions"][step].astype(np.float32))
        place(robot.model, robot.data, base, names, golden["fine/qpos"][row], golden["fine/qvel"][row])
        told = np.zeros((2, len(names)))
        told[:, order] = golden["q"][step], golden["dq"][step]
        robot.write(*told, kp, kd)
        mujoco.mj_forward(robot.model, robot.data)
        torques = [robot.data.qfrc_actuator[robot.model.joint(name).dofadr[0]] for name in names]
        note(**{"fine/torque": torques})
    for step in golden["motion/step"].astype(int) if own else ():
        mujoco.mj_resetData(robot.model, robot.data)
        place(robot.model, robot.data, base, names, golden["qpos"][step], golden["qvel"][step])
        robot.write(*policy.targets(golden["actions"][step].astype(np.float32)))
        robot.tick()
        qpos, qvel = state_of(robot.model, robot.data, base, names)
        note(**{"motion/time": [robot.data.time], "motion/qpos": qpos, "motion/qvel": qvel})
    golden = golden | {"motion/time": golden["motion/time"][:, None]}
    for name, values in found.items():
        got, wanted = np.stack(values), golden[name]
        if got.shape != wanted.shape:
            yield Difference(
                _told(name), math.inf, 0, f"{got.shape[1]} numbers, {wanted.shape[1]} in golden.npz: of another export?"
            )
            continue
        errors = np.abs(got - wanted).max(axis=1)
        bound = (_MOTION if name.startswith("motion/") else _TOLERANCE) * max(1.0, float(np.abs(wanted).max()))
        if not errors.max() <= bound:
            first = int(np.argmax(~(errors <= bound)))
            kind = name.partition("/")[0]
            step = int(golden[f"{kind}/step"][first]) if kind in ("fine", "motion") else first
            yield Difference(_told(name), float(errors.max()), step, diagnose(name, got, golden, contract))


def ask(env: Env, episode: int | None) -> None:
    """Ask for what tells a command's numbers apart; None: for rest."""
    for command in env.terms.commands.values():
        told = command.contract() if hasattr(command, "contract") else {}
        ranges, rest = told.get("ranges"), told.get("rest")
        if episode is None and rest is not None:
            command.hold([float(one) for one in rest])
        elif ranges is not None:
            shares = [_SHARES[((episode or 0) + index) % len(_SHARES)] for index in range(command.size)]
            command.hold([float(low + share * (high - low)) for (low, high), share in zip(ranges, shares, strict=True)])


def tilt(env: Env, yaw: float) -> None:
    """Turn a floating base away and lean it over, in place."""
    if not env.robot.floating:
        return
    qpos, turned, axis = env.physics.qpos.clone(), np.zeros(4), (math.sqrt(0.5), math.sqrt(0.5), 0.0)
    quats = [np.zeros(4), np.zeros(4)]
    mujoco.mju_axisAngle2Quat(quats[0], np.array((0.0, 0.0, 1.0)), yaw)
    mujoco.mju_axisAngle2Quat(quats[1], np.array(axis), _TILT)
    mujoco.mju_mulQuat(turned, *quats)
    qpos[:, env.robot.root_qpos + 3 : env.robot.root_qpos + 7] = torch.tensor(turned, dtype=qpos.dtype)
    env.physics.write(torch.ones(1, dtype=torch.bool), qpos=qpos, qvel=env.physics.qvel.clone())


def states_of(env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Measure an environment's robots as `embodied_rl.deploy.place` has them: qpos and qvel, a row each."""
    robot = PartState(env.robot, env.physics)
    qpos = torch.cat((robot.base_pos_w, robot.base_quat_w, robot.joint_pos), dim=1)
    qvel = torch.cat((robot.base_lin_vel_w, robot.base_ang_vel_b, robot.joint_vel), dim=1)
    return qpos.double().numpy(), qvel.double().numpy()


def _physics_steps(env: Env, control: np.ndarray) -> tuple[list[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Take a control step of plain MuJoCo: state and torques at each of its physics steps, and the state after them."""
    scene, names, data = env.scene, env.robot.joint_names, mujoco.MjData(env.scene.model)
    base, dofs, rows = scene.base_body, list(scene.qvel_address), []
    (qpos,), (qvel,) = states_of(env)
    place(scene.model, data, base, names, qpos, qvel)
    data.ctrl[:] = control
    for _ in range(env.page.physics.decimation):
        mujoco.mj_forward(scene.model, data)
        qpos, qvel = state_of(scene.model, data, base, names)
        rows.append({"qpos": qpos, "qvel": qvel, "torque": data.qfrc_actuator[dofs].copy()})
        mujoco.mj_step(scene.model, data)
    return rows, state_of(scene.model, data, base, names)


def _all(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


def _told(name: str) -> str:
    """Name a quantity for people."""
    known = {"q": "position targets", "dq": "velocity targets", "fine/torque": "joint torques"}
    known |= {"motion/time": "the period", "motion/qpos": "positions a period later", "motion/qvel": "velocities a period later"}
    return known.get(name) or name.replace("observation/", "observation ")
