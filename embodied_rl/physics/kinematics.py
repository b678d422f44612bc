"""Forward kinematics of a few named points on torch: what `refresh()` runs where the engine's own costs too much.

MuJoCo's position and velocity stages also compute collisions, inertias and the rest: 12 % of a control step on the CPU.
The feet's positions and velocities need a dozen small products instead.  The tree is walked by depth, so that the four legs
of a quadruped are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

#: A vector or a matrix by components, each (N, L) or (L,); None is a component that is zero for every link.
Vector = tuple["Tensor | None", ...]
Matrix = tuple[Vector, Vector, Vector]


@dataclass(frozen=True, eq=False)
class Frame:
    """A point with axes, fixed to a body."""

    name: str
    body: int
    """Id of the body."""
    position: np.ndarray
    """Where it is in the body's frame [m], (3,)."""
    quat: np.ndarray
    """How it is turned in the body's frame, wxyz, (4,)."""


@dataclass
class _Level:
    """Links of one depth, each with at most one hinge or slide joint."""

    parent: Tensor | slice  # which link of the previous level each hangs on
    offset: Vector  # joint anchor in the parent's frame
    anchor: Vector  # joint anchor in the link's own frame
    rotation: tuple[Matrix, Matrix, Matrix]  # R0, R0 K, R0 K^2: R(q) = R0 + sin q R0 K + (1 - cos q) R0 K^2
    axis: Vector  # joint axis in the link's frame
    qpos: Tensor  # (L,) address in qpos
    qvel: Tensor  # (L,) address in qvel
    rest: Tensor  # (L,) qpos where the joint is not displaced: its `ref` in the model file
    hinge: Tensor  # (L,) 1 for a hinge, 0 else
    slide: Tensor | None  # (L,) 1 for a slide, None where there is none


class Kinematics:
    """World positions, velocities and orientations of frames fixed to bodies.

    Args:
        model: the model; its bodies may have hinge and slide joints, and a free joint at each root.
        frames: the K frames; they may hang on different roots, wherever these stand in qpos.
        device: where the constants live.
        orientation: whether the orientations are wanted too.

    Raises:
        ValueError: a body on the way to a frame has a ball joint, or is moved by mocap.
    """

    def __init__(
        self, model: mujoco.MjModel, frames: Sequence[Frame], device: torch.device, *, orientation: bool = False
    ) -> None:
        self._model, self._device = model, device
        self._roots, self._levels, places = self._plan([frame.body for frame in frames])
        self._places = places  # per level: (indices into the level, indices into the frames)
        order = np.concatenate([np.array(p, dtype=int) for _, p in places]) if places else np.zeros(0, int)
        self._order = torch.as_tensor(np.argsort(order), device=device)
        local = np.array([frame.position for frame in frames]).reshape(-1, 3)
        self._local = self._vector(local[order])
        turned = _matrix(torch.tensor(np.array([frame.quat for frame in frames]).reshape(-1, 4)[order])).numpy()
        self._turned: Matrix = tuple(self._vector(turned[:, i]) for i in range(3))  # pyright: ignore
        self._aligned = np.array_equal(turned, np.broadcast_to(np.eye(3), turned.shape))
        self._orientation = orientation
        self._picks = [torch.as_tensor(links, device=device) for links, _ in places]

    def __call__(self, qpos: Tensor, qvel: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions and velocities in the world, each (N, K, 3), of qpos (N, nq) and qvel (N, nv); orientations (N, K, 4)."""
        moment = self._root_state(qpos, qvel)
        found = []
        for depth in range(len(self._levels) + 1):
            if depth > 0:
                moment = _descend(self._levels[depth - 1], qpos, qvel, moment)
            if len(pick := self._picks[depth]):
                found.append([_take(part, pick, len(qpos)) for part in _flat(moment)])
        position, rotation, linear, angular = _unflat([torch.cat(parts, dim=1) for parts in zip(*found, strict=True)])
        arm = _apply(rotation, self._local)
        position, linear = _plus(position, arm), _plus(linear, _cross(angular, arm))
        stack = lambda vector: torch.stack([torch.zeros_like(qpos[:, :1]) if x is None else x for x in vector], -1)  # noqa: E731
        quat = _quaternion(rotation if self._aligned else _product(rotation, self._turned)) if self._orientation else None
        return stack(position)[:, self._order], stack(linear)[:, self._order], None if quat is None else quat[:, self._order]

    def _root_state(self, qpos: Tensor, qvel: Tensor) -> tuple[Vector, Matrix, Vector, Vector]:
        moments = [self._one_root(address, qpos, qvel) for address in self._roots]
        if len(moments) == 1:
            return moments[0]
        zero = torch.zeros_like(qpos[:, :1])
        parts = zip(*(_flat(moment) for moment in moments), strict=True)
        return _unflat([torch.cat([zero if part is None else part for part in row], dim=1) for row in parts])

    @staticmethod
    def _one_root(address: tuple[int, int] | None, qpos: Tensor, qvel: Tensor) -> tuple[Vector, Matrix, Vector, Vector]:
        if address is None:  # the world
            one = torch.ones_like(qpos[:, :1])
            return (None,) * 3, ((one, None, None), (None, one, None), (None, None, one)), (None,) * 3, (None,) * 3
        q, v = address
        matrix = _matrix(qpos[:, None, q + 3 : q + 7])
        rotation: Matrix = tuple(tuple(matrix[..., i, j] for j in range(3)) for i in range(3))  # pyright: ignore
        columns = lambda values, start: tuple(values[:, start + i, None] for i in range(3))  # noqa: E731
        return columns(qpos, q), rotation, columns(qvel, v), _apply(rotation, columns(qvel, v + 3))

    def _plan(self, bodies: list[int]) -> tuple[list[tuple[int, int] | None], list[_Level], list[tuple[list[int], list[int]]]]:
        model = self._model
        wanted, roots = set(), []
        for body in bodies:
            while body not in wanted:
                wanted.add(body)
                if body == 0 or free_joint(model, body) is not None:
                    roots.append(body)
                    break
                body = int(model.body_parentid[body])
        roots = sorted(roots) or [0]
        # Links: (body, joint or None, is the body's first).  Level 0 is what floats, and the world where a frame hangs on it.
        level = [(root, None) for root in roots]
        levels, layers = [], [roots]
        while True:
            following: list[tuple[int, int, int | None, bool]] = []  # parent link, body, joint, first link of the body
            for index, (body, joint) in enumerate(level):
                own = _joints(model, body)
                if joint is not None and joint != own[-1]:
                    following.append((index, body, own[own.index(joint) + 1], False))
                    continue
                for child in sorted(wanted):
                    if child in roots or model.body_parentid[child] != body:
                        continue
                    joints = _joints(model, child)
                    following.append((index, child, joints[0] if joints else None, True))
            if not following:
                break
            levels.append(self._level(following))
            level = [(body, joint) for _, body, joint, _ in following]
            # a body stands where its last joint has turned it
            layers.append([b if j is None or j == _joints(model, b)[-1] else -1 for b, j in level])
        places = []
        for layer in layers:
            pairs = [(layer.index(b), k) for k, b in enumerate(bodies) if b in layer]
            places.append(([link for link, _ in pairs], [k for _, k in pairs]))
        return [free_joint(model, root) for root in roots], levels, places

    def _level(self, links: list[tuple[int, int, int | None, bool]]) -> _Level:
        model = self._model
        parents, offsets, anchors, axes, rotations, qpos, qvel, rest, hinge, slide = ([] for _ in range(10))
        for parent, body, joint, first in links:
            if joint is not None and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_BALL:
                raise ValueError(f"body {model.body(body).name!r}: ball joints have no torch kinematics")
            if model.body_mocapid[body] >= 0:
                raise ValueError(f"body {model.body(body).name!r}: what mocap moves has no torch kinematics")
            frame = _matrix(torch.tensor(model.body_quat[body])).numpy() if first else np.eye(3)
            anchor = model.jnt_pos[joint] if joint is not None else np.zeros(3)
            axis = model.jnt_axis[joint] if joint is not None else np.array([0.0, 0.0, 1.0])
            cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
            base = model.body_pos[body] if first else np.zeros(3)
            kind = model.jnt_type[joint] if joint is not None else -1
            parents.append(parent)
            offsets.append(base + frame @ anchor)
            anchors.append(anchor)
            axes.append(axis)
            rotations.append((frame, frame @ cross, frame @ cross @ cross))
            qpos.append(model.jnt_qposadr[joint] if joint is not None else 0)
            qvel.append(model.jnt_dofadr[joint] if joint is not None else 0)
            rest.append(model.qpos0[qpos[-1]])
            hinge.append(float(kind == mujoco.mjtJoint.mjJNT_HINGE))
            slide.append(float(kind == mujoco.mjtJoint.mjJNT_SLIDE))
        index = lambda values: torch.as_tensor(np.array(values, dtype=np.int64), device=self._device)  # noqa: E731
        tensor, vector = self._tensor, self._vector
        matrices = np.array(rotations)  # (L, 3, 3, 3)
        return _Level(
            # links that hang on the level above one by one, or all on one link, need no gather
            parent=_slice(parents) or index(parents),
            offset=vector(np.array(offsets)),
            anchor=vector(np.array(anchors)),
            rotation=tuple(tuple(vector(matrices[:, k, i]) for i in range(3)) for k in range(3)),  # pyright: ignore
            axis=vector(np.array(axes)),
            qpos=index(qpos),
            qvel=index(qvel),
            rest=tensor(np.array(rest)),
            hinge=tensor(np.array(hinge)),
            slide=tensor(np.array(slide)) if np.any(slide) else None,
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self._device)

    def _vector(self, values: np.ndarray) -> Vector:
        """Split (L, 3) into components; one that is zero for every link costs nothing."""
        return tuple(self._tensor(values[:, i]) if np.any(values[:, i]) else None for i in range(3))


def _descend(
    level: _Level, qpos: Tensor, qvel: Tensor, moment: tuple[Vector, Matrix, Vector, Vector]
) -> tuple[Vector, Matrix, Vector, Vector]:
    """One level down: the children's position, rotation, linear and angular velocity from their parents'."""
    parents = [None if part is None else part[:, level.parent] for part in _flat(moment)]
    position, rotation, linear, angular = _unflat(parents)
    q, speed = qpos[:, level.qpos] - level.rest, qvel[:, level.qvel]  # (N, L)
    angle, rate = q * level.hinge, speed * level.hinge
    sine, versine = torch.sin(angle), 1.0 - torch.cos(angle)
    turned = _product(rotation, _turn(level.rotation, sine, versine))
    offset = _apply(rotation, level.offset)
    axis = _apply(turned, level.axis)
    position, linear = _plus(position, offset), _plus(linear, _cross(angular, offset))
    angular = _plus(angular, _times(axis, rate))
    if level.slide is not None:
        travel = _times(axis, q * level.slide)
        linear = _plus(_plus(linear, _times(axis, speed * level.slide)), _cross(angular, travel))
        position = _plus(position, travel)
    arm = _apply(turned, _times(level.anchor, -torch.ones_like(level.rest)))
    return _plus(position, arm), turned, _plus(linear, _cross(angular, arm)), angular


def _turn(rotation: tuple[Matrix, Matrix, Matrix], sine: Tensor, versine: Tensor) -> Matrix:
    """Compose the joint's rotation, R0 + sin q R0 K + (1 - cos q) R0 K^2."""
    still, first, second = rotation
    return tuple(
        tuple(_add(_add(still[i][j], _mul(first[i][j], sine)), _mul(second[i][j], versine)) for j in range(3)) for i in range(3)
    )  # pyright: ignore


def _product(a: Matrix, b: Matrix) -> Matrix:
    return tuple(tuple(_dot(row, column) for column in zip(*b, strict=True)) for row in a)  # pyright: ignore


def _quaternion(rotation: Matrix) -> Tensor:
    """Quaternions (N, K, 4) of rotations whose components are (N, K), w >= 0.

    The products of a quaternion's components with its largest one are taken from the matrix, and nothing small is a divisor.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    squares = 1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz  # pyright: ignore
    wx, wy, wz, x_y, x_z, y_z = zy - yz, xz - zx, yx - xy, yx + xy, zx + xz, zy + yz  # pyright: ignore
    ww, xx, yy, zz = squares
    by_w, by_x = torch.stack((ww, wx, wy, wz), -1), torch.stack((wx, xx, x_y, x_z), -1)
    by_y, by_z = torch.stack((wy, x_y, yy, y_z), -1), torch.stack((wz, x_z, y_z, zz), -1)
    first, second = torch.where((ww >= xx)[..., None], by_w, by_x), torch.where((yy >= zz)[..., None], by_y, by_z)
    quat = torch.where((torch.maximum(ww, xx) >= torch.maximum(yy, zz))[..., None], first, second)
    return quat * (torch.where(quat[..., :1] < 0, -1.0, 1.0) / quat.norm(dim=-1, keepdim=True))


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _mul(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


def _dot(a: Vector, b: Vector) -> Tensor | None:
    total = None
    for x, y in zip(a, b, strict=True):
        total = _add(total, _mul(x, y))
    return total


def _plus(a: Vector, b: Vector) -> Vector:
    return tuple(_add(x, y) for x, y in zip(a, b, strict=True))


def _times(a: Vector, factor: Tensor) -> Vector:
    return tuple(_mul(x, factor) for x in a)


def _apply(matrix: Matrix, vector: Vector) -> Vector:
    return tuple(_dot(row, vector) for row in matrix)


def _cross(a: Vector, b: Vector) -> Vector:
    minus = lambda x: None if x is None else -x  # noqa: E731
    pairs = ((1, 2), (2, 0), (0, 1))
    return tuple(_add(_mul(a[i], b[j]), minus(_mul(a[j], b[i]))) for i, j in pairs)


def _flat(moment: tuple[Vector, Matrix, Vector, Vector]) -> list[Tensor | None]:
    position, rotation, linear, angular = moment
    return [*position, *rotation[0], *rotation[1], *rotation[2], *linear, *angular]


def _unflat(parts: list) -> tuple[Vector, Matrix, Vector, Vector]:
    rows = [tuple(parts[i : i + 3]) for i in range(0, 18, 3)]
    return rows[0], (rows[1], rows[2], rows[3]), rows[4], rows[5]


def _take(part: Tensor | None, links: Tensor, count: int) -> Tensor:
    """Take the links' component, (N, len(links))."""
    if part is None:
        return torch.zeros(count, len(links), device=links.device)
    return part.expand(count, -1)[:, links]


def _slice(parents: list[int]) -> slice | None:
    """Parents 0, 1, 2, ... or all the same, as a slice that broadcasts; None where they are neither."""
    if parents == list(range(len(parents))):
        return slice(0, len(parents))
    return slice(parents[0], parents[0] + 1) if len(set(parents)) == 1 else None


def _matrix(quat: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    w, x, y, z = quat.unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), -1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), -1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, dim=-2)


def free_joint(model: mujoco.MjModel, body: int) -> tuple[int, int] | None:
    """Addresses in qpos and qvel of a body's free joint; None where it has none."""
    joints = _joints(model, body)
    if not joints or model.jnt_type[joints[0]] != mujoco.mjtJoint.mjJNT_FREE:
        return None
    return int(model.jnt_qposadr[joints[0]]), int(model.jnt_dofadr[joints[0]])


def free_body(model: mujoco.MjModel, body: int) -> int | None:
    """Find the body with the free joint on which a body hangs, itself perhaps; None where nothing moves freely."""
    while body and free_joint(model, body) is None:
        body = int(model.body_parentid[body])
    return body or None


def _joints(model: mujoco.MjModel, body: int) -> list[int]:
    start, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
    return list(range(start, start + count))
