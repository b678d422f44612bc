"""Forward kinematics of a few named points on torch: what `refresh()` runs where the engine's own costs too much.

MuJoCo's position and velocity stages also compute collisions, inertias and the rest: 12 % of a control step on the CPU.
The feet's positions and velocities need a dozen small products instead.  The tree is walked by depth, so that the four legs
of a quadruped are one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor


@dataclass
class _Level:
    """Links of one depth, each with at most one hinge or slide joint; constants are (L, ...)."""

    parent: Tensor  # (L,) index into the previous level
    offset: Tensor  # (L, 3) joint anchor in the parent's frame
    anchor: Tensor | None  # (L, 3) joint anchor in the link's own frame, None where all are zero
    rotation: tuple[Tensor, Tensor, Tensor]  # R0, R0 K, R0 K^2: R(q) = R0 + sin q R0 K + (1 - cos q) R0 K^2
    axis: Tensor  # (L, 3) joint axis in the link's frame
    qpos: Tensor  # (L,) address in qpos
    qvel: Tensor  # (L,) address in qvel
    rest: Tensor  # (L, 1) qpos where the joint is not displaced: its `ref` in the model file
    hinge: Tensor  # (L, 1) 1 for a hinge, 0 else
    slide: Tensor | None  # (L, 1) 1 for a slide, None where there is none


class Kinematics:
    """World positions and velocities of points fixed to bodies.

    Args:
        model: the model; its bodies may have hinge and slide joints, and a free joint at the root.
        points: (body id, position in the body's frame) of each of the K points.
        device: where the constants live.

    Raises:
        ValueError: a body on the way to a point has a ball joint.
    """

    def __init__(self, model: mujoco.MjModel, points: list[tuple[int, np.ndarray]], device: torch.device) -> None:
        self._model, self._device = model, device
        self._root, self._levels, places = self._plan([body for body, _ in points])
        self._places = places  # per level: (indices into the level, indices into the points)
        self._local = self._tensor(np.array([position for _, position in points]).reshape(-1, 3))
        order = np.concatenate([np.array(p, dtype=int) for _, p in places]) if places else np.zeros(0, int)
        self._order = torch.as_tensor(np.argsort(order), device=device)
        self._sorted_local = self._local[torch.as_tensor(order, device=device)]
        self._picks = [torch.as_tensor(links, device=device) for links, _ in places]

    def __call__(self, qpos: Tensor, qvel: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities in the world, each (N, K, 3), of qpos (N, nq) and qvel (N, nv)."""
        position, rotation, linear, angular = self._root_state(qpos, qvel)
        found = []
        for depth in range(len(self._levels) + 1):
            if depth > 0:
                position, rotation, linear, angular = _descend(
                    self._levels[depth - 1], qpos, qvel, position, rotation, linear, angular
                )
            pick = self._picks[depth]
            if len(pick):
                found.append(tuple(x[:, pick] for x in (position, rotation, linear, angular)))
        position, rotation, linear, angular = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        arm = (rotation @ self._sorted_local[..., None])[..., 0]
        position, linear = position + arm, linear + torch.linalg.cross(angular, arm)
        return position[:, self._order], linear[:, self._order]

    def _root_state(self, qpos: Tensor, qvel: Tensor) -> tuple[Tensor, ...]:
        count = len(qpos)
        if self._root is None:
            zero = qpos.new_zeros(count, 1, 3)
            return zero, torch.eye(3, device=self._device).expand(count, 1, 3, 3), zero, zero
        q, v = self._root
        rotation = _matrix(qpos[:, q + 3 : q + 7])
        angular = (rotation @ qvel[:, v + 3 : v + 6, None])[..., 0]
        return qpos[:, None, q : q + 3], rotation[:, None], qvel[:, None, v : v + 3], angular[:, None]

    def _plan(self, bodies: list[int]) -> tuple[tuple[int, int] | None, list[_Level], list[tuple[list[int], list[int]]]]:
        model = self._model
        wanted = {0}
        for body in bodies:
            while body not in wanted:
                wanted.add(body)
                body = int(model.body_parentid[body])
        root = next((b for b in sorted(wanted) if _joints(model, b) and model.jnt_type[_joints(model, b)[0]] == 0), None)
        # Links: (body, joint or None, is the body's first).  Level 0 is the floating base, or the world without one.
        level = [(root if root is not None else 0, None)]
        levels, layers = [], [[b for b, _ in level]]
        while True:
            following: list[tuple[int, int, int | None, bool]] = []  # parent link, body, joint, first link of the body
            for index, (body, joint) in enumerate(level):
                own = _joints(model, body)
                if joint is not None and joint != own[-1]:
                    following.append((index, body, own[own.index(joint) + 1], False))
                    continue
                for child in sorted(wanted):
                    if child in (0, root) or model.body_parentid[child] != body:
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
        address = None
        if root is not None:
            joint = _joints(model, root)[0]
            address = (int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint]))
        return address, levels, places

    def _level(self, links: list[tuple[int, int, int | None, bool]]) -> _Level:
        model = self._model
        parents, offsets, anchors, axes, rotations, qpos, qvel, rest, hinge, slide = ([] for _ in range(10))
        for parent, body, joint, first in links:
            if joint is not None and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_BALL:
                raise ValueError(f"body {model.body(body).name!r}: ball joints have no torch kinematics")
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
            rest.append([model.qpos0[qpos[-1]]])
            hinge.append([float(kind == mujoco.mjtJoint.mjJNT_HINGE)])
            slide.append([float(kind == mujoco.mjtJoint.mjJNT_SLIDE)])
        index = lambda values: torch.as_tensor(np.array(values, dtype=np.int64), device=self._device)  # noqa: E731
        tensor = self._tensor
        return _Level(
            parent=index(parents),
            offset=tensor(np.array(offsets)),
            anchor=tensor(np.array(anchors)) if np.any(anchors) else None,
            rotation=tuple(tensor(np.array([r[i] for r in rotations])) for i in range(3)),  # pyright: ignore
            axis=tensor(np.array(axes)),
            qpos=index(qpos),
            qvel=index(qvel),
            rest=tensor(np.array(rest)),
            hinge=tensor(np.array(hinge)),
            slide=tensor(np.array(slide)) if np.any(slide) else None,
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self._device)


def _descend(
    level: _Level, qpos: Tensor, qvel: Tensor, position: Tensor, rotation: Tensor, linear: Tensor, angular: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level down: the children's pose and velocity from their parents', all (N, L, ...)."""
    position, rotation = position[:, level.parent], rotation[:, level.parent]
    linear, angular = linear[:, level.parent], angular[:, level.parent]
    q, speed = qpos[:, level.qpos, None] - level.rest, qvel[:, level.qvel, None]  # (N, L, 1)
    angle = (q * level.hinge)[..., None]
    still, sine, versine = level.rotation
    turned = rotation @ (still + torch.sin(angle) * sine + (1.0 - torch.cos(angle)) * versine)
    offset = (rotation @ level.offset[..., None])[..., 0]
    axis = (turned @ level.axis[..., None])[..., 0]
    position, linear = position + offset, linear + torch.linalg.cross(angular, offset)
    angular = angular + axis * (speed * level.hinge)
    if level.slide is not None:
        travel = axis * (q * level.slide)
        position, linear = (
            position + travel,
            linear + axis * (speed * level.slide) + torch.linalg.cross(angular, travel),
        )
    if level.anchor is not None:
        arm = (turned @ level.anchor[..., None])[..., 0]
        position, linear = position - arm, linear - torch.linalg.cross(angular, arm)
    return position, turned, linear, angular


def _matrix(quat: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    w, x, y, z = quat.unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), -1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), -1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, dim=-2)


def _joints(model: mujoco.MjModel, body: int) -> list[int]:
    start, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
    return list(range(start, start + count))
