from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.env import Env
from embodied_rl.mdp.demo import demo_of
from embodied_rl.robot import load_robot
from embodied_rl.view import viewer
from embodied_rl.view.play import agent

glfw = pytest.importorskip("glfw")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.viewer")


class Window:
    """Stands in for MuJoCo's passive viewer: it is closed after some steps, and its user holds a key."""

    def __init__(self, model: Any, data: Any, key_callback: Any) -> None:
        self.data, self.press, self.steps = data, key_callback, 0
        self.cam, self.texts = SimpleNamespace(), []
        self.user_scn = mujoco.MjvScene(model, maxgeom=2000)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *error: object) -> None: ...

    def is_running(self) -> bool:
        self.steps += 1
        return self.steps <= 5

    def lock(self) -> Window:
        return self

    def set_texts(self, texts: list) -> None:
        self.texts = texts

    def sync(self) -> None:
        self.press(265)
        self.press(262)


def test_the_arrow_keys_steer(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = []

    def launch_passive(model: Any, data: Any, *, key_callback: Any) -> Window:
        windows.append(Window(model, data, key_callback))
        return windows[-1]

    monkeypatch.setattr(glfw, "init", lambda: True)
    monkeypatch.setattr(mujoco.viewer, "launch_passive", launch_passive)
    viewer.view_env(env, agent(env, "zero"))
    assert torch.allclose(env.buffers["commands.velocity.command"], torch.tensor([0.4, 0.0, -0.8]))
    assert np.allclose(windows[0].data.qpos, env.render_state(0)[1])
    assert windows[0].user_scn.ngeom > 10  # the second robot beside it
    (_, _, shown, _), (_, _, keys, changes) = windows[0].texts
    demo = demo_of(env.page)
    assert demo is not None
    assert shown.splitlines()[:2] == ["command, measured", f"vx  m/s   0.40   {demo.measured(env)[0]:.2f}"]
    said = dict(zip(keys.splitlines(), changes.splitlines(), strict=True))
    assert (said["up"], said["right"], said["home"], said["enter"]) == ("vx +0.1", "wz -0.2", "vy +0.1", "stop")

    viewer.view_env(env, agent(env, "zero"), command=[0.5, 0.1, 0.0], seconds=0.04)  # two steps
    assert torch.allclose(env.buffers["commands.velocity.command"], torch.tensor([0.6, 0.1, -0.2]))
    monkeypatch.setattr(Window, "sync", lambda self: self.press(257) if self.steps > 1 else self.press(265))
    viewer.view_env(env, agent(env, "zero"), command=[0.5, 0.1, 0.0], seconds=0.06)
    assert torch.equal(env.buffers["commands.velocity.command"], torch.zeros(2, 3))


def test_other_keys_change_nothing() -> None:
    keys = {"up": (0.1, 0.0), "left": (0.0, 0.2)}
    assert viewer.steer([0.5, 0.1], 65, keys).tolist() == [0.5, 0.1]
    assert viewer.steer([0.5, 0.1], 264, keys).tolist() == [0.5, 0.1]  # down, which the family leaves alone
    assert viewer.steer([0.5, 0.1], 265, keys).tolist() == [0.6, 0.1]
    assert viewer.steer([0.5, 0.1], 263, keys).tolist() == [0.5, 0.3]


def test_a_robot_stands_still_in_the_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(glfw, "init", lambda: True)
    monkeypatch.setattr(mujoco.viewer, "launch", lambda model, data: shown.append((model, data)))
    robot = load_robot("go2")
    viewer.view_robot(robot)
    ((model, data),) = shown
    start = data.qpos.copy()
    mujoco.mj_step(model, data, 200)
    assert data.qpos[2] == pytest.approx(robot.base_height, abs=0.06)  # it sags a little
    assert np.abs(data.qpos - start).max() < 0.3
    # the sliders reach the joints' ends
    assert np.array_equal(model.actuator_ctrlrange, model.jnt_range[1:][[model.joint(n).id - 1 for n in robot.joint_names]])


def test_without_a_display_one_line_says_what_to_do(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glfw, "init", lambda: False)
    for show in (lambda: viewer.view_env(env), lambda: viewer.view_robot(load_robot("go2"))):
        with pytest.raises(viewer.ViewerError, match=r"^no viewer: there is no display here; film instead: embodied-rl play"):
            show()
