"""Feet of any shape: how high the lowest point of each is, from the geoms themselves.

A geom is the sum of what supports it: points with a radius (spheres, the ends of capsules, the corners of boxes, the vertices of
meshes), and ellipsoids of any radii (ellipsoids, and the discs that close a cylinder).  All of them lie still in the frame of
their foot's site, so that the lowest is a minimum over the vertical's direction in that frame.

Legend of the shapes: N envs, F feet, P points of a foot, E ellipsoids of a foot.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.robot import RobotSpec

#: Share of a foot's length and width that stands on the ground: on a slope the rim of a ball is far above it.
_SOLE = 0.7
#: How far a sphere's centre may be from its site and still be called centred on it [m].
_CENTRED = 1e-9
_SHAPES = "sphere, capsule, cylinder, ellipsoid, box, mesh"


class Feet:
    """The feet of a robot, as tensors on the device.

    Args:
        model: the compiled model, which has all geoms of the feet.
        robot: which geoms and which site each foot has.
        device: where `undersides` is asked for.

    Raises:
        UserError: a geom has no lowest point, or does not lie still beside its foot's site; one line.
    """

    def __init__(self, model: mujoco.MjModel, robot: RobotSpec, device: torch.device) -> None:
        self._points: Tensor | None = None
        self._ellipsoids: Tensor | None = None
        self._radii: float | Tensor = 0.0
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        page = robot.folder / "robot.yaml"
        shapes = [_shapes(model, data, foot.site, foot.geoms, f"{page}: feet.{foot.name}") for foot in robot.feet]
        points, ellipsoids = [points for points, _ in shapes], [ellipsoids for _, ellipsoids in shapes]
        self.needs_orientation = not all(
            len(foot) == 1 and not len(other) and np.linalg.norm(foot[0, :3]) < _CENTRED
            for foot, other in zip(points, ellipsoids, strict=True)
        )
        """Whether the undersides depend on how the feet are turned; not where each foot is one sphere centred on its site."""
        if not self.needs_orientation:
            radii = [float(foot[0, 3]) for foot in points]
            alike = len(set(radii)) < 2
            self._radii = (radii or [0.0])[0] if alike else torch.tensor(radii, dtype=torch.float32, device=device)
            return
        tensor = lambda values: torch.tensor(values, dtype=torch.float32, device=device)  # noqa: E731
        if any(len(foot) for foot in points):
            # what has none gets the centre of an ellipsoid, which is never its lowest point
            centres = [np.hstack((foot[:, :3], np.zeros((len(foot), 1)))) for foot in ellipsoids]
            self._points = tensor(_padded(points, centres))  # (F, P, 4)
        if any(len(foot) for foot in ellipsoids):
            spheres = [np.hstack((foot[:, :3], foot[:, 3:] * np.eye(3).reshape(1, 9))) for foot in points]
            self._ellipsoids = tensor(_padded(ellipsoids, spheres))  # (F, E, 12)

    def undersides(self, frame_pos: Tensor, frame_quat: Tensor | None = None) -> Tensor:
        """Height of the lowest point of each foot [m, world z], (N, F).

        Args:
            frame_pos: positions of the feet's sites in the world, (N, F, 3).
            frame_quat: their orientations, wxyz, (N, F, 4); read where `needs_orientation`.
        """
        height = frame_pos[..., 2]
        if not self.needs_orientation:
            return height - self._radii
        assert frame_quat is not None, "feet that are no spheres about their sites: frame_quat is missing"
        w, x, y, z = frame_quat[..., None].unbind(-2)  # (N, F, 1)
        # the world's vertical in the site's frame
        up = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
        lowest = None
        if self._points is not None:
            px, py, pz, radius = self._points.unbind(-1)  # (F, P)
            lowest = (up[0] * px + up[1] * py + up[2] * pz - radius).amin(-1)
        if self._ellipsoids is not None:
            centre, *axes = self._ellipsoids.view(*self._ellipsoids.shape[:2], 4, 3).unbind(-2)
            along = [up[0] * a[..., 0] + up[1] * a[..., 1] + up[2] * a[..., 2] for a in (centre, *axes)]  # (N, F, E)
            reach = (along[1] * along[1] + along[2] * along[2] + along[3] * along[3]).sqrt()
            other = (along[0] - reach).amin(-1)
            lowest = other if lowest is None else torch.minimum(lowest, other)
        assert lowest is not None
        return height + lowest


def footprint(model: mujoco.MjModel, qpos: np.ndarray, base: int, feet: Sequence[Sequence[str]]) -> np.ndarray:
    """Find the ground that a robot stands on in a pose.

    Args:
        model: its model.
        qpos: the pose, (nq,).
        base: its base's body.
        feet: the geoms of each foot.

    Returns:
        Corners and middle of a rectangle about each foot, along the base's heading, from the base [m], (P, 2); the base's own
        place where there are no feet.
    """
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    forward = data.xmat[base].reshape(3, 3)[:2, 0]
    forward = forward / np.linalg.norm(forward) if np.linalg.norm(forward) > 1e-6 else np.array([1.0, 0.0])
    axes = np.array([forward, (-forward[1], forward[0])])  # along the heading, and to its left
    found = [np.zeros((1, 2))] if not feet else []
    for geoms in feet:
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for name in geoms:
            geom = model.geom(name).id
            turned, aabb = data.geom_xmat[geom].reshape(3, 3), model.geom_aabb[geom]
            middle = data.geom_xpos[geom] + turned @ aabb[:3]
            reach = np.abs(axes @ turned[:2]) @ aabb[3:]
            at = axes @ (middle - data.xpos[base])[:2]
            low, high = np.minimum(low, at - reach), np.maximum(high, at + reach)
        middle, reach = 0.5 * (low + high), 0.5 * _SOLE * (high - low)
        found.append(middle + reach * np.array([*itertools.product((-1, 1), (-1, 1)), (0, 0)]))
    return np.concatenate(found)


def _shapes(
    model: mujoco.MjModel, data: mujoco.MjData, site: str, geoms: tuple[str, ...], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 4) with their radius, and ellipsoids (E, 12), centre and half-axes, of a foot in the frame of its site."""
    body, there = int(model.site(site).bodyid[0]), data.site(site)
    axes = there.xmat.reshape(3, 3)
    points, ellipsoids = [np.zeros((0, 4))], [np.zeros((0, 12))]
    for name in geoms:
        geom, here = model.geom(name).id, data.geom(name)
        if model.body_weldid[model.geom_bodyid[geom]] != model.body_weldid[body]:
            raise UserError(f"{where}: geom {name!r} moves against site {site!r}; take a site of the geom's body")
        centre, turned = axes.T @ (here.xpos - there.xpos), axes.T @ here.xmat.reshape(3, 3)
        if model.geom_bodyid[geom] == body and np.array_equal(model.geom_pos[geom], model.site(site).pos):
            centre = np.zeros(3)  # exactly
        own_points, own_ellipsoids = supports(model, geom, f"{where}: geom {name!r}")
        own_points = np.hstack((centre + own_points[:, :3] @ turned.T, own_points[:, 3:]))
        own_ellipsoids = own_ellipsoids.reshape(-1, 4, 3) @ turned.T
        own_ellipsoids[:, 0] += centre
        points.append(own_points)
        ellipsoids.append(own_ellipsoids.reshape(-1, 12))
    return np.concatenate(points), np.concatenate(ellipsoids)


def supports(model: mujoco.MjModel, geom: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Give points (P, 4) with their radius, and ellipsoids (E, 12), centre and half-axes, of a geom in its own frame."""
    kind, (a, b, c) = mujoco.mjtGeom(int(model.geom_type[geom])), model.geom_size[geom]
    points, ellipsoids = np.zeros((0, 4)), np.zeros((0, 12))
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        points = np.array([[0.0, 0.0, 0.0, a]])
    elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        points = np.array([[0.0, 0.0, -b, a], [0.0, 0.0, b, a]])
    elif kind == mujoco.mjtGeom.mjGEOM_BOX:
        points = np.array([[*corner, 0.0] for corner in itertools.product((-a, a), (-b, b), (-c, c))])
    elif kind == mujoco.mjtGeom.mjGEOM_MESH:
        vertices = _hull(model, int(model.geom_dataid[geom]))
        points = np.hstack((vertices, np.zeros((len(vertices), 1))))
    elif kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        ellipsoids = np.concatenate((np.zeros((1, 3)), np.diag((a, b, c)))).reshape(1, 12)
    elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        discs = [np.concatenate(([[0.0, 0.0, end]], np.diag((a, a, 0.0)))) for end in (-b, b)]
        ellipsoids = np.reshape(discs, (2, 12))
    else:
        shape = kind.name.removeprefix("mjGEOM_").lower()
        raise UserError(f"{where}: a foot's geom is no {shape}; allowed: {_SHAPES}")
    return points, ellipsoids


def _hull(model: mujoco.MjModel, mesh: int) -> np.ndarray:
    """Vertices of a mesh's convex hull, (V, 3); all of the mesh's where MuJoCo made no hull."""
    start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    vertices = model.mesh_vert[start : start + count].astype(float)
    graph = int(model.mesh_graphadr[mesh])
    if graph < 0:
        return vertices
    # numvert, numface, an edge's address of each vertex, then the vertices' ids in the mesh (mjModel.mesh_graph)
    size = int(model.mesh_graph[graph])
    return vertices[model.mesh_graph[graph + 2 + size : graph + 2 + 2 * size]]


def _padded(rows: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    """Stack rows of unequal length, (F, longest, ...): to repeat one changes no minimum, nor do `others` where there is none."""
    longest = max(len(row) for row in rows)
    full = [row if len(row) else other[:1] for row, other in zip(rows, others, strict=True)]
    return np.stack([np.concatenate((row, np.repeat(row[-1:], longest - len(row), axis=0))) for row in full])
