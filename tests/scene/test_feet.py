"""Undersides of feet of any shape, against MuJoCo's own distance to a plane."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics.native import NativePhysics
from embodied_rl.robot import Foot, load_robot
from embodied_rl.scene import Feet, Scene, build_scene

#: Six legs; their feet differ in number, kind and attitude of geoms.  `sole` is welded below its shin, which has the site.
ROBOT = """
<mujoco>
  <asset>
    <mesh name="hoof" vertex="-0.05 -0.03 0  0.07 -0.02 -0.02  0.06 0.04 -0.01  -0.04 0.03 0.01  0 0 0.08  0.01 0.01 -0.05
      0 0 0"/>
  </asset>
  <worldbody>
    <body name="base" pos="0 0 1">
      <freejoint/> <inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>
      {legs}
    </body>
  </worldbody>
</mujoco>
"""
LEG = """
<body name="shin{index}" pos="{x} 0 0">
  <joint name="knee{index}" axis="0 1 0"/> <inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>
  <site name="foot{index}" pos="0.02 0.01 -0.2" quat="0.6 0.1 -0.5 0.3"/>
  {geoms}
</body>
"""
FEET = {
    "box": '<geom name="{n}0" type="box" size="0.06 0.03 0.01" pos="0.03 0 -0.21" quat="0.9 0.2 0.1 0.4"/>',
    "capsule": '<geom name="{n}0" type="capsule" size="0.02 0.04" pos="0 0 -0.2" euler="10 80 20"/>'
    '<geom name="{n}1" size="0.03" pos="-0.08 0 -0.2"/>',
    "cylinder": '<geom name="{n}0" type="cylinder" size="0.03 0.05" pos="0.1 0 -0.1" euler="70 10 0"/>',
    "ellipsoid": '<geom name="{n}0" type="ellipsoid" size="0.06 0.02 0.01" pos="0 0.1 -0.2" euler="10 -20 0"/>'
    '<geom name="{n}1" type="cylinder" size="0.01 0.03" pos="0 0 -0.2"/><geom name="{n}2" size="0.02" pos="0.01 0 -0.22"/>',
    "mesh": '<geom name="{n}0" type="mesh" mesh="hoof" pos="0 0 -0.2" euler="20 0 10"/>',
    "sole": '<body name="sole" pos="0 0.02 -0.2" euler="0 30 0"><inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>'
    '<geom name="{n}0" type="box" size="0.05 0.05 0.01" pos="0.02 0 0"/></body>',
}
COUNTS = {"box": 1, "capsule": 2, "cylinder": 1, "ellipsoid": 3, "mesh": 1, "sole": 1}


def _scene(
    folder: Path,
    kinds: list[str],
    geoms: list[str] | None = None,
    counts: list[int] | None = None,
    needs: Iterable[str] = ("foot_frames",),
) -> Scene:
    geoms = geoms or [FEET[kind] for kind in kinds]
    counts = counts or [COUNTS[kind] for kind in kinds]
    legs = [LEG.format(index=i, x=0.3 * i, geoms=geom.format(n=f"g{i}_")) for i, geom in enumerate(geoms)]
    (folder / "robot.xml").write_text(ROBOT.format(legs="".join(legs)))
    joints = "".join(f"  knee{i}: {{default: 0.1, stiffness: 1.0, damping: 1.0, effort_limit: 1.0}}\n" for i in range(len(kinds)))
    feet = "".join(
        f"  {kind}: {{geoms: [{', '.join(f'g{i}_{k}' for k in range(count))}], site: foot{i}}}\n"
        for i, (kind, count) in enumerate(zip(kinds, counts, strict=True))
    )
    height = 0.16 if kinds == ["cylinder"] else 0.24  # the lowest foot about on the ground
    page = f"name: robot\nmodel: robot.xml\nbase: base\nbase_height: {height}\njoints:\n{joints}feet:\n{feet}"
    (folder / "robot.yaml").write_text(page)
    robot = load_robot(str(folder))
    return build_scene(robot, collisions="feet", physics=PhysicsSettings(), needs=needs)


def _undersides(scene: Scene, qpos: np.ndarray) -> np.ndarray:
    """By the engine's frames and the scene's feet, (N, F)."""
    physics = NativePhysics(scene, len(qpos), 1, 1)
    physics.frame_quat.fill_(torch.inf)
    physics.write(torch.ones(len(qpos), dtype=torch.bool), qpos=torch.tensor(qpos, dtype=torch.float32))
    physics.refresh()
    return scene.feet(torch.device("cpu")).undersides(physics.frame_pos, physics.frame_quat).numpy()


def _expected(scene: Scene, qpos: np.ndarray) -> np.ndarray:
    model, data = scene.model, mujoco.MjData(scene.model)
    ground = model.geom("ground").id  # its distance is negative below it
    lowest = np.zeros((len(qpos), len(scene.robot.feet)))
    for row, position in enumerate(qpos.astype(np.float32)):
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        for index, foot in enumerate(scene.robot.feet):
            ids = [model.geom(name).id for name in foot.geoms]
            lowest[row, index] = min(mujoco.mj_geomDistance(model, data, ground, geom, 100.0, None) for geom in ids)
    return lowest


def _poses(scene: Scene, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    qpos = rng.uniform(-2.0, 2.0, (count, scene.model.nq))
    qpos[:, 3:7] = rng.normal(size=(count, 4))
    qpos[0, 3:7], qpos[1, 3:7], qpos[2, 3:7] = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


@pytest.mark.parametrize("kinds", [list(FEET), *([kind] for kind in FEET), ["cylinder", "mesh"]], ids=" ".join)
def test_the_lowest_point_of_any_shape(tmp_path: Path, kinds: list[str]) -> None:
    scene = _scene(tmp_path, kinds)
    assert scene.frame_orientation and scene.feet(torch.device("cpu")).needs_orientation
    assert [frame.name for frame in scene.frames] == kinds
    qpos = _poses(scene, 200)
    np.testing.assert_allclose(_undersides(scene, qpos), _expected(scene, qpos), rtol=0, atol=1e-5)


def test_a_mesh_is_its_hull(tmp_path: Path) -> None:
    feet = _scene(tmp_path, ["mesh"]).feet(torch.device("cpu"))
    assert feet._points is not None and feet._points.shape == (1, 6, 4)  # the seventh vertex is inside


@pytest.mark.parametrize("name", ["go2", "go1", "a1", "anymal_c"])
def test_spheres_about_their_sites_need_no_orientation_and_keep_their_bits(name: str) -> None:
    scene = build_scene(load_robot(name), collisions="feet", physics=PhysicsSettings(), needs={"foot_frames"})
    feet = scene.feet(torch.device("cpu"))
    assert not scene.frame_orientation and not feet.needs_orientation
    radius = float(scene.model.geom_size[scene.foot_geoms[0], 0])
    places = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(feet.undersides(places), places[..., 2] - radius)
    qpos = _poses(scene, 100)
    np.testing.assert_allclose(_undersides(scene, qpos), _expected(scene, qpos), rtol=0, atol=1e-5)


def test_spheres_of_two_sizes(tmp_path: Path) -> None:
    geoms = [f'<geom name="{{n}}0" size="{size}" pos="0.02 0.01 -0.2"/>' for size in (0.02, 0.03)]
    scene = _scene(tmp_path, ["small", "large"], geoms, [1, 1])
    assert not scene.frame_orientation
    qpos = _poses(scene, 100)
    np.testing.assert_allclose(_undersides(scene, qpos), _expected(scene, qpos), rtol=0, atol=1e-5)


def test_orientation_is_kept_where_it_is_needed_alone(tmp_path: Path) -> None:
    ball = ['<geom name="{n}0" size="0.02" pos="0.02 0.01 -0.2"/>']
    for needs, feet, turning in (((), 0, False), ({"foot_frames"}, 1, False), ({"foot_orientation"}, 1, True)):
        scene = _scene(tmp_path, ["ball"], ball, [1], needs=needs)
        assert (len(scene.frames), scene.frame_orientation) == (feet, turning)
        physics = NativePhysics(scene, 3, 1, 1)
        assert physics.frame_quat.shape == (3, feet * turning, 4)
    assert not _scene(tmp_path, ["box"], needs=()).frame_orientation


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            '<geom name="geom" type="plane" size="1 1 1"/>',
            "robot.yaml: feet.odd: geom 'geom': a foot's geom is no plane; "
            "allowed: sphere, capsule, cylinder, ellipsoid, box, mesh",
        ),
        (
            '<body><joint axis="1 0 0"/><geom name="geom" size="0.1"/></body>',
            "robot.yaml: feet.odd: geom 'geom' moves against site 'site'; take a site of the geom's body",
        ),
    ],
)
def test_a_foot_without_a_lowest_point_is_one_line(body: str, message: str) -> None:
    model = mujoco.MjModel.from_xml_string(f'<mujoco><worldbody><site name="site"/>{body}</worldbody></mujoco>')
    robot: Any = SimpleNamespace(folder=Path("robot"), feet=(Foot("odd", ("geom",), "site"),))
    with pytest.raises(UserError) as caught:
        Feet(model, robot, torch.device("cpu"))
    assert str(caught.value) == f"robot/{message}"


def test_a_robot_without_feet() -> None:
    model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
    robot: Any = SimpleNamespace(folder=Path("robot"), feet=())
    feet = Feet(model, robot, torch.device("cpu"))
    assert not feet.needs_orientation and feet.undersides(torch.zeros(3, 0, 3)).shape == (3, 0)
