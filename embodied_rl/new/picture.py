"""A picture of a robot as it stands, with its joints, feet and mirror partners marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import build_scene
from embodied_rl.view.film import use_gl

_SIZE = (1280, 960)
_LEFT, _RIGHT, _MIDDLE, _FOOT = (0.1, 0.45, 0.95, 1.0), (0.95, 0.45, 0.1, 1.0), (0.5, 0.5, 0.5, 1.0), (0.1, 0.7, 0.3, 0.9)


def draw(robot: RobotSpec, file: Path) -> None:
    """Draw a robot in its default pose: an arrow along each joint's axis, left in blue and right in orange, feet in green.

    A foot's label is its name and when it steps; thin lines join mirror partners.

    Raises:
        UserError: nothing renders here; one line.
    """
    from PIL import Image

    use_gl()
    scene = build_scene(robot, collisions="full", physics=PhysicsSettings())
    model, data = scene.render_model, mujoco.MjData(scene.render_model)
    data.qpos[:] = scene.default_qpos()
    mujoco.mj_forward(model, data)
    width, height = _SIZE
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    camera, option = mujoco.MjvCamera(), mujoco.MjvOption()
    own = np.flatnonzero((model.geom_bodyid != 0) & (model.geom_group < 4))
    places, radii = data.geom_xpos[own], np.minimum(model.geom_rbound[own], robot.base_height)[:, None]
    low, high = (places - radii).min(axis=0), (places + radii).max(axis=0)
    camera.lookat[:] = (low + high) / 2.0
    size = 0.5 * float(np.linalg.norm(high - low))
    camera.distance, camera.azimuth, camera.elevation = 3.1 * size, 125.0, -18.0
    for geom in (model.geom(name).id for foot in robot.feet for name in foot.geoms):
        model.geom_rgba[geom], model.geom_matid[geom] = _FOOT, -1
    seen = model.geom_group[model.geom_bodyid != 0]
    option.geomgroup[3] = not np.isin(seen, (0, 1, 2)).any() or bool((seen == 3).any())
    with mujoco.Renderer(model, height, width) as renderer:
        renderer.update_scene(data, camera, option)
        _mark(renderer.scene, robot, data, size)
        picture = renderer.render()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


def _mark(scene: mujoco.MjvScene, robot: RobotSpec, data: mujoco.MjData, size: float) -> None:
    partners = {name: robot.mirrored_name(name) for name in robot.joint_names} if robot.mirror else {}
    for name in robot.joint_names:
        place, axis = data.joint(name).xanchor, data.joint(name).xaxis
        side = place[1] - data.body(robot.base).xpos[1]
        colour = _MIDDLE if partners.get(name, name) == name else _LEFT if side > 0.0 else _RIGHT
        _between(scene, mujoco.mjtGeom.mjGEOM_ARROW, 0.015 * size, place, place + 0.2 * size * axis, colour)
        partner = partners.get(name, name)
        if robot.joint_names.index(partner) > robot.joint_names.index(name):
            _between(scene, mujoco.mjtGeom.mjGEOM_LINE, 1.0, place, data.joint(partner).xanchor, _MIDDLE)
    for foot in robot.feet:
        geom = _add(scene, mujoco.mjtGeom.mjGEOM_SPHERE, [0.01 * size] * 3, data.site(foot.site).xpos, _FOOT)
        geom.label = f"{foot.name} {foot.gait_offset:g}"


def _add(scene: mujoco.MjvScene, kind: mujoco.mjtGeom, size: list[float], place: np.ndarray, colour: tuple[float, ...]) -> Any:
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(geom, kind, np.array(size), np.array(place), np.eye(3).ravel(), np.array(colour, np.float32))
    scene.ngeom += 1
    return geom


def _between(
    scene: mujoco.MjvScene, kind: mujoco.mjtGeom, width: float, start: np.ndarray, end: np.ndarray, colour: tuple[float, ...]
) -> None:
    geom = _add(scene, kind, [width] * 3, start, colour)
    mujoco.mjv_connector(geom, kind, width, np.array(start), np.array(end))
