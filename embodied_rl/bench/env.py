"""A step of the environment against its physics alone."""

from __future__ import annotations

import statistics

import mujoco
import torch

from embodied_rl import make_env
from embodied_rl.bench.clock import now
from embodied_rl.bench.policy import driving_policy
from embodied_rl.bench.tape import BatchAlone, PhysicsAlone, Tape, WholeEnv, physics_alone
from embodied_rl.config import Page, override
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene

#: How often each side plays the tape.
_ROUNDS = 9
#: Joint friction of the reference Go2 (unitreerobotics/unitree_mujoco, go2.xml) [N m], and a solver that no page moves.
_BARE_FRICTION_LOSS = 0.2
_BARE_SOLVER = ["physics.solver=newton", "physics.iterations=10", "physics.ls_iterations=20", "physics.cone=pyramidal"]


def bench_env(page: Page) -> dict[str, float]:
    """One step of the environment against its physics alone, alternating on the same tape.

    Driven by the page's newest run, or by a short training where there is none.

    Returns:
        physics_steps_per_s: the engine alone, fed the recorded controls, resets and writes: `mujoco.batch` for native, else the
        engine's own step, without kinematics and terms; env_steps_per_s: the environment; ratio of the two.  On native also
        bare_steps_per_s: the engine on the bare robot, feet only, no sensors, with the reference's joint friction and a fixed
        solver; bare_ratio.  Medians of alternating rounds, in env steps per second.
    """
    policy = driving_policy(page)
    torch.set_num_threads(1)  # as the collector has it: the physics threads have the cores
    env = make_env.make(page)
    tape = Tape(env, policy)
    with torch.no_grad():
        env.step(tape.actions[0])  # where there is a graph, it is captured here
    sides: dict[str, WholeEnv | PhysicsAlone | BatchAlone] = {"physics": physics_alone(env, tape), "env": WholeEnv(env, tape)}
    if page.physics.engine == "native" and not page.patches:
        sides["bare"] = BatchAlone(_bare_model(page), env, tape)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS):
        for name, side in sides.items():
            side.rewind()
            started = now(env.device)
            side.play()
            seconds[name].append(now(env.device) - started)
    steps = env.num_envs * len(tape.actions)
    result: dict[str, float] = {"num_envs": env.num_envs}
    result |= {f"{name}_steps_per_s": steps / statistics.median(seconds[name]) for name in ("physics", "env")}
    result["ratio"] = _ratio(seconds["physics"], seconds["env"])
    if "bare" in sides:
        result["bare_steps_per_s"] = steps / statistics.median(seconds["bare"])
        result["bare_ratio"] = _ratio(seconds["bare"], seconds["env"])
    return result


def _ratio(part: list[float], whole: list[float]) -> float:
    return statistics.median(p / w for p, w in zip(part, whole, strict=True))


def _bare_model(page: Page) -> mujoco.MjModel:
    physics = override(page, _BARE_SOLVER).physics
    scene = build_scene(load_robot(page.robot), collisions="feet", physics=physics)
    scene.model.dof_frictionloss[list(scene.qvel_address)] = _BARE_FRICTION_LOSS
    return scene.model
