"""Quaternions and rotations on torch: wxyz, as MuJoCo's, and tested against `mujoco.mju_*`.

Every function broadcasts over leading dimensions; quaternions are (..., 4), vectors (..., 3), angles in radians.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quat_mul(a: Tensor, b: Tensor) -> Tensor:
    """The product a b: first b's rotation, then a's."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def rotate(quat: Tensor, vector: Tensor) -> Tensor:
    """The vector, given in the frame that `quat` turns, in the frame that it turns from (body to world)."""
    # v + 2 w (u x v) + 2 u x (u x v), with u the quaternion's vector part
    u = quat[..., 1:]
    uv = _cross(u, vector)
    return vector + 2.0 * (quat[..., :1] * uv + _cross(u, uv))


def rotate_inverse(quat: Tensor, vector: Tensor) -> Tensor:
    """The inverse of `rotate` (world to body)."""
    u = quat[..., 1:]
    uv = _cross(u, vector)
    return vector + 2.0 * (_cross(u, uv) - quat[..., :1] * uv)


def quat_from_euler(roll: Tensor, pitch: Tensor, yaw: Tensor) -> Tensor:
    """The quaternion of the extrinsic rotations roll about x, then pitch about y, then yaw about z."""
    cr, sr = torch.cos(0.5 * roll), torch.sin(0.5 * roll)
    cp, sp = torch.cos(0.5 * pitch), torch.sin(0.5 * pitch)
    cy, sy = torch.cos(0.5 * yaw), torch.sin(0.5 * yaw)
    return torch.stack(
        (
            cy * cp * cr + sy * sp * sr,
            cy * cp * sr - sy * sp * cr,
            sy * cp * sr + cy * sp * cr,
            sy * cp * cr - cy * sp * sr,
        ),
        dim=-1,
    )


def yaw_of(quat: Tensor) -> Tensor:
    """The heading: the angle of the x axis in the horizontal plane, (...,)."""
    w, x, y, z = quat.unbind(-1)
    sine, cosine = 2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)
    # not torch.atan2: its last bit depends on how many rows there are, for the last of them take another way through the CPU
    angle = torch.atan(sine / cosine)
    return torch.where(cosine < 0.0, angle + torch.copysign(torch.full_like(sine, torch.pi), sine), angle)


def wrap_angle(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2.0 * torch.pi) - torch.pi


def _cross(a: Tensor, b: Tensor) -> Tensor:
    # torch.linalg.cross does not broadcast its last dimension's checks away; three fused products do
    ax, ay, az = a.unbind(-1)
    bx, by, bz = b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), dim=-1)
