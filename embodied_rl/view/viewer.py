"""MuJoCo's own viewer: on a robot, or on a task that a policy plays while the arrow keys steer."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.machine import display_error
from embodied_rl.mdp.demo import Demo, demo_of
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import build_scene
from embodied_rl.view.film import add_robot
from embodied_rl.view.play import Policy, agent, commands, forget, hold_command, poses, rest_of, warn_outside

_KEYS = {265: "up", 264: "down", 263: "left", 262: "right", 268: "home", 269: "end"}
"""Names of GLFW's keys."""

_STOP = 257
"""GLFW's code of Enter, which commands what the window began with where no command was given."""


class ViewerError(UserError):
    """No window can be opened here; one line."""


def view_robot(robot: RobotSpec) -> None:
    """Show the robot standing on the ground; the sliders of `Control` move its joints.  Returns when the window is closed.

    Raises:
        ViewerError: there is no display.
    """
    _check_display()
    import mujoco.viewer  # not at the top: it loads the window library

    scene = build_scene(robot, collisions="full", physics=PhysicsSettings())
    model = scene.render_model
    joints = [model.joint(name).id for name in robot.joint_names]
    model.actuator_ctrlrange[:] = model.jnt_range[joints]  # the sliders' ends
    model.actuator_ctrllimited[:] = model.jnt_limited[joints]
    data = mujoco.MjData(model)
    if scene.root:
        data.qpos[scene.root.qpos + 2] = robot.base_height
    data.qpos[list(scene.qpos_address)] = data.ctrl[:] = robot.default_joint_pos
    mujoco.viewer.launch(model, data)


@torch.inference_mode()
@one_thread()
def view_env(
    env: Env, policy: Policy | None = None, *, command: Sequence[float] | None = None, seconds: float | None = None
) -> None:
    """Show the robots in real time; keys change their command as the page's family says, and the window names them.

    Args:
        env: of a `playback_page` whose episodes are long.
        policy: what acts; by default the robots stand.
        command: where the keys begin; by default zeros, or what training asked for that is nearest.
        seconds: after how long the window closes; by default when its user closes it.

    Raises:
        ViewerError: there is no display, or macOS needs another interpreter.
        UserError: the command does not suit the page.
    """
    _check_display()
    import mujoco.viewer

    if sys.platform == "darwin" and not mujoco.viewer._MJPYTHON:
        raise ViewerError("no viewer: on macOS run it with mjpython in place of python: mjpython -m embodied_rl view ...")
    demo = demo_of(env.page)
    if demo and not commands(demo, env):
        demo = None
    keys = demo.KEYS if demo else {}
    rest, policy = rest_of(env) if demo else [], policy or agent(env, "zero")
    told = np.array(rest)
    if command is not None:
        hold_command(env, command)
        warn_outside(env, command)
        if demo:
            told[:] = command

    def on_key(key: int) -> None:
        told[:] = rest if key == _STOP else steer(told, key, keys)

    env.reset()
    model, others = env.scene.render_model, mujoco.MjData(env.scene.render_model)
    data = mujoco.MjData(model)
    data.qpos[:] = poses(env)[0]
    steps = None if seconds is None else max(1, round(seconds / env.step_dt))
    with mujoco.viewer.launch_passive(model, data, key_callback=on_key) as viewer:
        viewer.cam.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        viewer.cam.trackbodyid = model.body(env.scene.robot.base).id
        viewer.cam.distance, viewer.cam.elevation = 8.0 * env.scene.robot.base_height, -14.0
        due = time.perf_counter()
        while viewer.is_running() and steps != 0:
            steps = steps and steps - 1
            if demo:
                hold_command(env, told.tolist())
            forget(policy, env.step(policy(env.obs)))
            first, *beside = poses(env)
            with viewer.lock():
                data.qpos[:] = first
                mujoco.mj_forward(model, data)
                if (drawn := viewer.user_scn) is not None:
                    drawn.ngeom = 0
                    for others.qpos[:] in beside:
                        mujoco.mj_forward(model, others)
                        add_robot(model, others, drawn)
            if demo:
                viewer.set_texts(_overlay(demo, told, demo.measured(env)))
            viewer.sync()
            due = max(due + env.step_dt, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))


def _overlay(demo: Demo, told: np.ndarray, measured: Sequence[float]) -> list[tuple]:
    """Write what is commanded and measured beside each other, and what the keys do."""
    rows = [f"{name}   {ask:.2f}   {does:.2f}" for name, ask, does in zip(demo.COLUMNS, told, measured, strict=True)]
    changes = {
        key: ", ".join(f"{name.split()[0]} {change:+g}" for name, change in zip(demo.COLUMNS, changes, strict=True) if change)
        for key, changes in demo.KEYS.items()
    } | {"enter": "stop"}
    top, bottom = mujoco.mjtGridPos.mjGRID_TOPLEFT, mujoco.mjtGridPos.mjGRID_BOTTOMLEFT
    return [
        (None, top, "\n".join(["command, measured", *rows]), ""),
        (None, bottom, "\n".join(changes), "\n".join(changes.values())),
    ]


def steer(command: Sequence[float] | np.ndarray, key: int, keys: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the command after a key of the keyboard, GLFW's code; `keys` says what each adds, others change nothing."""
    return np.round(np.asarray(command) + keys.get(_KEYS.get(key, ""), 0.0), 3)


def _check_display() -> None:
    if reason := display_error():
        raise ViewerError(f"no viewer: {reason}; film instead: embodied-rl play ... --video film.mp4")
