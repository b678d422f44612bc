"""How far each engine is from C MuJoCo: one control step of random robots by the engine, and by mj_step.

    python benchmarks/parity/engines.py [--engines native warp mjx] [--robots go2 go1] [--pairs N] [--device cpu|cuda] [--json F]

Both sides begin with the same float32 state and controls and no warm start, once with the solver of the page ROBOT_flat and
once with as many iterations as it takes.  The error of a pair is the largest of its components; contacts are counted from
MuJoCo's list of them and not from its sensors.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.config import load as load_page
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.physics.native import NativePhysics
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

ENGINES, ROBOTS, COLLISIONS = ("native", "warp", "mjx"), ("go2", "go1"), ("full", "feet")
SEED = 0
#: Iterations that suffice both solvers, of their Newton method and of its line search.
CONVERGED = ("physics.iterations=50", "physics.ls_iterations=50")
#: What float32 keeps of a control step, by field.  Its spacing is 6e-8 of a number: the errors of C's own results in float32 (the
#: engine native) are 2e-7 m and 3e-6 rad/s.  The engines also compute in it: legs of 0.2 kg are accelerated by some 1e3 rad/s^2,
#: of which 1e-6 is lost in each of a dozen products and sums, so 1e-5 rad/s in each of four substeps of 5 ms, more where contacts
#: couple the legs; qpos follows at 5 ms, a foot at 0.4 m of the joints.  Torques are kp q + kd qd, with kp of 20 to 35 N m/rad.
TOLERANCES = {
    "qpos": 5e-6,
    "qvel": 5e-4,
    "joint_torque": 5e-4,
    "frame_pos": 5e-6,
    "frame_lin_vel": 2e-4,
}
#: The size of the disturbances that tell whether a contact or a limit hangs on rounding, and how many are tried.
NUDGE, NUDGES = 1e-6, 8
#: The ground reaches this far in the search for a robot's lowest point [m].
_REACH = 10.0
#: Warp and MJX turn a capsule's friction pyramid with its axis where that is further than 60 degrees from the ground's normal,
#: C always does.  A pyramid is no cone: its edges hold more than its faces.
_STEEP = 0.5
#: MJX finds other points, and another number of them, where these lie on a plane.
_EDGED = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER)


@dataclass(frozen=True)
class Pairs:
    """What both sides are given, float32, (pairs, ...)."""

    qpos: Tensor
    qvel: Tensor
    ctrl: Tensor


@dataclass(frozen=True)
class Comparison:
    """One control step of every pair on both sides."""

    engine: str
    scene: Scene
    settings: PhysicsSettings
    pairs: Pairs
    found: dict[str, np.ndarray]
    """What the engine says, by field, (pairs, ...)."""
    expected: dict[str, np.ndarray]
    """What mj_step says; `foot_contact` among it."""

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """The largest error of each pair, by field, (pairs,)."""
        fields = [name for name in self.found if name != "foot_contact"]
        return {name: np.abs(self.found[name] - self.expected[name]).reshape(len(self.pairs.qpos), -1).max(1) for name in fields}

    @property
    def contacts_agree(self) -> np.ndarray:
        """Whether the flags of all feet are the same, bool (pairs,)."""
        return (self.found["foot_contact"] == self.expected["foot_contact"]).all(1)

    @property
    def outliers(self) -> np.ndarray:
        """Pairs with an error beyond its tolerance, or another contact."""
        beyond = [~(error <= TOLERANCES[name]) for name, error in self.errors.items()]  # a nan is beyond
        return np.flatnonzero(np.any(beyond, axis=0) | ~self.contacts_agree)

    @property
    def reasons(self) -> dict[int, str]:
        """Why each outlier is one; "" where nothing explains it."""
        return {int(index): explanation(self, int(index)) for index in self.outliers}


def main() -> None:
    parser = argparse.ArgumentParser(description="One control step of each engine beside mj_step.")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, metavar="ENGINE")
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=ROBOTS, metavar="ROBOT")
    parser.add_argument("--collisions", nargs="+", choices=COLLISIONS, default=COLLISIONS, metavar="SET", help="full, feet")
    parser.add_argument("--pairs", type=int, default=200, metavar="N", help="random states and controls (default 200)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of warp and mjx; native runs on the CPU")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    results = []
    for engine in options.engines:
        for robot in options.robots:
            for collisions in options.collisions:
                for overrides in ((), CONVERGED):
                    comparison = compare(engine, robot, options.device, options.pairs, collisions, overrides)
                    results.append(measure(engine, robot, options.device, comparison, collisions))
    print(table(results))
    print(f"\n{datetime.date.today()}, {options.pairs} pairs, {_machine(options.device)}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(engine: str, robot: str, device: str, comparison: Comparison, collisions: str) -> dict[str, Any]:
    """A comparison in figures: median, 99th percentile and maximum of every field, and why its outliers are."""
    figures = {
        name: {"median": float(np.median(e)), "p99": float(np.quantile(e, 0.99)), "max": float(e.max())}
        for name, e in comparison.errors.items()
    }
    return {
        "engine": engine,
        "device": "cpu" if engine == "native" else device,
        "robot": robot,
        "collisions": collisions,
        "iterations": comparison.settings.iterations,
        "pairs": len(comparison.pairs.qpos),
        "errors": figures,
        "foot_contact_agrees": float(comparison.contacts_agree.mean()),
        "outliers": len(comparison.outliers),
        "reasons": dict(Counter(reason or "unexplained" for reason in comparison.reasons.values())),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Figures of `measure` as a Markdown table; its cells hold median, 99th percentile and maximum."""
    fields = list(TOLERANCES)
    rows = [["engine", "robot", "iterations", *fields, "foot_contact", "outliers"]]
    rows.append(["---"] * len(rows[0]))
    for result in results:
        errors = result["errors"]
        cells = [" / ".join(f"{v:.0e}" for v in errors[name].values()) if name in errors else "" for name in fields]
        agrees = f"{100 * result['foot_contact_agrees']:.1f} %"
        why = ", ".join(f"{count} {reason}" for reason, count in result["reasons"].items()) or "0"
        rows.append(
            [result["engine"], f"{result['robot']} {result['collisions']}", str(result["iterations"]), *cells, agrees, why]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def compare(
    engine: str, robot: str, device: str, count: int = 200, collisions: str = "full", overrides: tuple[str, ...] = ()
) -> Comparison:
    """The engine's step and mj_step's, of the same pairs."""
    settings = load_page(f"{robot}_flat", [f"physics.engine={engine}", *overrides]).physics
    needs = {"foot_contact", "foot_frames", "joint_torque"}
    scene = build_scene(load_robot(robot), collisions=collisions, physics=settings, needs=needs, dry_friction=False)
    pairs = draw(scene, count)
    physics = start(engine, scene, settings, count, device)
    try:
        found = _engine_step(physics, pairs)
    finally:
        physics.close()
    rows = [mj_step(scene, settings, *_row(pairs, i)) for i in range(count)]
    expected = {name: np.stack([row[name] for row in rows]) for name in found}
    return Comparison(engine, scene, settings, pairs, found, expected)


def start(engine: str, scene: Scene, settings: PhysicsSettings, count: int, device: str) -> Physics:
    """An engine without compiled surroundings."""
    if engine == "native":
        return NativePhysics(scene, count, settings.decimation)
    if engine == "warp":
        from embodied_rl.physics.warp import WarpPhysics

        return WarpPhysics(scene, count, settings, torch.device(device))
    from embodied_rl.physics.mjx import MjxPhysics

    return MjxPhysics(scene, count, settings.decimation, torch.device(device))


def draw(scene: Scene, count: int, seed: int = SEED) -> Pairs:
    """Robots in all attitudes, joints anywhere within their limits; half touch the ground, others are up to 0.2 m above it.

    A fifth of the controls is so far from its joint that the motor saturates.
    """
    rng, model = np.random.default_rng(seed), scene.model
    joints, nu = [model.joint(name) for name in scene.robot.joint_names], model.nu
    low, high = np.array([joint.range for joint in joints]).T
    quat = rng.normal(size=(count, 4)) * (1.0, 0.4, 0.4, 1.0)
    angles = rng.uniform(low, high, size=(count, nu))
    qpos = np.tile(model.qpos0, (count, 1))
    assert scene.root is not None  # the robots of this comparison float
    base, speed = scene.root.qpos, scene.root.qvel
    qpos[:, base : base + 2] = rng.uniform(-1.0, 1.0, size=(count, 2))
    qpos[:, base + 3 : base + 7] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    qpos[:, list(scene.qpos_address)] = angles
    spread = np.full(model.nv, 2.0)
    spread[speed : speed + 6] = np.repeat((0.5, 1.0), 3)
    qvel = rng.normal(size=(count, model.nv)) * spread
    touching = rng.random(count) < 0.5
    height = np.where(touching, rng.uniform(-0.01, 0.0, count), rng.uniform(0.0, 0.2, count))
    for row in range(count):
        qpos[row, base + 2] += height[row] - _lowest(model, qpos[row])
    spread = np.where(rng.random((count, nu)) < 0.2, 2.0, 0.3)
    ctrl = angles + rng.uniform(-1.0, 1.0, (count, nu)) * spread
    single = lambda values: torch.tensor(values, dtype=torch.float32)  # noqa: E731
    return Pairs(single(qpos), single(qvel), single(ctrl))


def mj_step(
    scene: Scene, settings: PhysicsSettings, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray
) -> dict[str, np.ndarray]:
    """One control step of C, and what explains a difference from it.

    `capped` says whether the solver used all iterations it may, or all but one, which a line search in float32 may need on top;
    `steep` whether a capsule stood steeply on the ground; `edges` whether a box or a cylinder touched it.
    """
    model, data = scene.model, mujoco.MjData(scene.model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
    capped = steep = edges = False
    for _ in range(settings.decimation):
        mujoco.mj_step(model, data)
        capped |= bool(data.solver_niter.max() + 1 >= settings.iterations)
        steep |= any(_stands_steeply(model, data, contact) for contact in data.contact)
        edges |= bool(np.isin(model.geom_type[data.contact.geom], _EDGED).any())
    state = {"qpos": data.qpos.copy(), "qvel": data.qvel.copy(), "joint_torque": data.actuator_force.copy()}
    contact = _feet(scene, data)  # of the last substep, before mj_forward makes those of the state after it
    mujoco.mj_forward(model, data)
    sites = [model.site(foot.site).id for foot in scene.robot.feet]
    velocity = np.zeros((len(sites), 6))
    for row, site in zip(velocity, sites, strict=True):
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, row, 0)
    frames = {"frame_pos": data.site_xpos[sites].copy(), "frame_lin_vel": velocity[:, 3:]}
    reasons = {"capped": capped, "steep": steep, "edges": edges}
    return state | frames | {"foot_contact": contact} | {name: np.array(value) for name, value in reasons.items()}


def explanation(comparison: Comparison, index: int) -> str:
    """Why an engine may differ from C in a pair's step; "" where nothing says so.

    - "cut short": C's solver used all iterations it may. Solvers that are stopped on their way stand in different places.
    - "steep capsule": its friction pyramid is turned otherwise.
    - "edge": MJX puts contacts of boxes and cylinders elsewhere.
    - "rounding": a disturbance of that size changes which contacts or limits hold.
    """
    scene, settings = comparison.scene, comparison.settings
    row = _row(comparison.pairs, index)
    step = mj_step(scene, settings, *row)
    if step["capped"]:
        return "cut short"
    if step["steep"] and settings.cone == "pyramidal":
        return "steep capsule"
    if step["edges"] and comparison.engine == "mjx":
        return "edge"
    qpos, qvel, ctrl = row
    data = mujoco.MjData(scene.model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
    return "rounding" if hangs_on_rounding(scene.model, data, settings.decimation) else ""


def hangs_on_rounding(model: mujoco.MjModel, start: mujoco.MjData, substeps: int) -> bool:
    """Whether a disturbance of that size changes which contacts or limits hold within a control step."""

    def constraints(data: mujoco.MjData) -> list[tuple[int, int]]:
        counts = []
        for _ in range(substeps):
            mujoco.mj_step(model, data)
            counts.append((data.ncon, data.nefc))
        return counts

    rng, still = np.random.default_rng(0), constraints(copy.copy(start))
    for _ in range(NUDGES):
        moved, push = copy.copy(start), NUDGE * rng.normal(size=(2, model.nv))
        mujoco.mj_integratePos(model, moved.qpos, push[0], 1.0)
        moved.qvel += push[1]
        if constraints(moved) != still:
            return True
    return False


def _stands_steeply(model: mujoco.MjModel, data: mujoco.MjData, contact: Any) -> bool:
    capsules = [geom for geom in contact.geom if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE]
    normal = contact.frame[:3]
    return any(np.linalg.norm(np.cross(data.geom_xmat[geom].reshape(3, 3)[:, 2], normal)) < _STEEP for geom in capsules)


def _row(pairs: Pairs, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pairs.qpos[index].double().numpy(), pairs.qvel[index].double().numpy(), pairs.ctrl[index].double().numpy()


def _engine_step(physics: Physics, pairs: Pairs) -> dict[str, np.ndarray]:
    everyone = torch.ones(physics.num_envs, dtype=torch.bool, device=physics.device)
    physics.reset(everyone)
    physics.write(everyone, qpos=pairs.qpos.to(physics.device), qvel=pairs.qvel.to(physics.device))
    outputs = {"joint_torque": physics.joint_torque, "frame_pos": physics.frame_pos, "frame_lin_vel": physics.frame_lin_vel}
    outputs |= physics.sensors
    for tensor in outputs.values():
        tensor.fill_(torch.inf)  # what the engine leaves out shows as an infinite error
    physics.step(pairs.ctrl.to(physics.device))
    physics.refresh()
    outputs = {"qpos": physics.qpos, "qvel": physics.qvel} | outputs
    return {name: tensor.cpu().double().numpy() for name, tensor in outputs.items()}


def _lowest(model: mujoco.MjModel, qpos: np.ndarray) -> float:
    """Height of the lowest point that can touch the ground [m]."""
    model = copy.copy(model)
    model.geom_margin[model.geom("ground").id] = _REACH
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_collision(model, data)
    return min(contact.dist for contact in data.contact)


def _feet(scene: Scene, data: mujoco.MjData) -> np.ndarray:
    """Whether each foot touches something, (F,)."""
    touching = set(data.contact.geom.flatten().tolist())
    feet = [{scene.model.geom(name).id for name in foot.geoms} for foot in scene.robot.feet]
    return np.array([float(not geoms.isdisjoint(touching)) for geoms in feet])


def _machine(device: str) -> str:
    where = torch.cuda.get_device_name() if device == "cuda" else f"{machine.cores()} cores of {platform.machine()}"
    packages = [name for name in ("mujoco", "mujoco-warp", "warp-lang", "mujoco-mjx", "jax", "torch") if _version(name)]
    return f"{where}, " + ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
