"""MuJoCo's own viewer: on a robot, or on a task that a policy plays while the arrow keys steer."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.demo import demo_of
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import build_scene
from embodied_rl.view.play import Policy, agent, commands, forget, hold_command

_KEYS = {265: "up", 264: "down", 263: "left", 262: "right"}
"""Names of GLFW's keys."""


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


@torch.no_grad()
def view_env(env: Env, policy: Policy | None = None) -> None:
    """Show the first robot in real time; the arrow keys change its command as the page's family says.

    Args:
        env: of a `playback_page` whose episodes are long.
        policy: what acts; by default the robot stands.

    Raises:
        ViewerError: there is no display, or macOS needs another interpreter.
    """
    _check_display()
    import mujoco.viewer

    if sys.platform == "darwin" and not mujoco.viewer._MJPYTHON:
        raise ViewerError("no viewer: on macOS run it with mjpython in place of python: mjpython -m embodied_rl view ...")
    demo = demo_of(env.page)
    if demo and not commands(demo, env):
        demo = None
    keys = demo.KEYS if demo else {}
    command, policy = np.zeros(len(demo.COLUMNS) if demo else 0), policy or agent(env, "zero")

    def on_key(key: int) -> None:
        command[:] = steer(command, key, keys)

    env.reset()
    model, qpos, _ = env.render_state(0)
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    with mujoco.viewer.launch_passive(model, data, key_callback=on_key) as viewer:
        viewer.cam.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        viewer.cam.trackbodyid = model.body(env.scene.robot.base).id
        viewer.cam.distance, viewer.cam.elevation = 8.0 * env.scene.robot.base_height, -14.0
        due = time.perf_counter()
        while viewer.is_running():
            if demo:
                hold_command(env, command.tolist())
            forget(policy, env.step(policy(env.obs)))
            with viewer.lock():
                data.qpos[:] = env.render_state(0)[1]
                mujoco.mj_forward(model, data)
            viewer.sync()
            due = max(due + env.step_dt, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))


def steer(command: Sequence[float] | np.ndarray, key: int, keys: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the command after a key of the keyboard, GLFW's code; `keys` says what each adds, others change nothing."""
    return np.round(np.asarray(command) + keys.get(_KEYS.get(key, ""), 0.0), 3)


def _check_display() -> None:
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it returns False
        works = glfw.init()
    if not works:
        raise ViewerError("no viewer: there is no display here; film instead: embodied-rl play ... --video film.mp4")
