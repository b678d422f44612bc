"""Rotations against MuJoCo's own at random inputs."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl import rotations

COUNT = 200


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _quats(rng: np.random.Generator) -> np.ndarray:
    values = rng.normal(size=(COUNT, 4))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _each(function, *arrays: np.ndarray, size: int) -> torch.Tensor:
    """A `mju_*` function, which writes its first argument, row by row."""
    results = np.zeros((COUNT, size))
    for result, *arguments in zip(results, *arrays, strict=True):
        function(result, *arguments)
    return _tensor(results)


def _assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-6)


def _assert_same_rotation(found: torch.Tensor, expected: torch.Tensor) -> None:
    _assert_close((found * expected).sum(-1).abs(), torch.ones(len(found)))


def test_quat_mul(rng):
    a, b = _quats(rng), _quats(rng)
    _assert_close(rotations.quat_mul(_tensor(a), _tensor(b)), _each(mujoco.mju_mulQuat, a, b, size=4))


def test_rotate(rng):
    vectors, quats = rng.normal(size=(COUNT, 3)), _quats(rng)
    expected = _each(mujoco.mju_rotVecQuat, vectors, quats, size=3)
    _assert_close(rotations.rotate(_tensor(quats), _tensor(vectors)), expected)


def test_rotate_inverse(rng):
    vectors, quats = rng.normal(size=(COUNT, 3)), _quats(rng)
    inverse = quats * (1.0, -1.0, -1.0, -1.0)
    expected = _each(mujoco.mju_rotVecQuat, vectors, inverse, size=3)
    _assert_close(rotations.rotate_inverse(_tensor(quats), _tensor(vectors)), expected)


def test_quat_from_euler(rng):
    angles = rng.uniform(-math.pi, math.pi, size=(COUNT, 3))
    # MuJoCo: capital letters turn about fixed axes
    expected = _each(lambda result, angle: mujoco.mju_euler2Quat(result, angle, "XYZ"), angles, size=4)
    _assert_same_rotation(rotations.quat_from_euler(*_tensor(angles).unbind(-1)), expected)


def test_yaw_of_is_where_the_x_axis_points(rng):
    quats = _quats(rng)
    forward = _each(mujoco.mju_rotVecQuat, np.tile((1.0, 0.0, 0.0), (COUNT, 1)), quats, size=3)
    error = rotations.yaw_of(_tensor(quats)) - torch.atan2(forward[:, 1], forward[:, 0])
    _assert_close(torch.sin(0.5 * error), torch.zeros(COUNT))


def test_wrap_angle(rng):
    angles = _tensor(np.concatenate((rng.uniform(-30.0, 30.0, COUNT), [0.0, math.pi, -math.pi, 3.5 * math.pi])))
    wrapped = rotations.wrap_angle(angles)
    assert wrapped.min() >= -math.pi - 1e-6 and wrapped.max() <= math.pi + 1e-6
    turns = (angles - wrapped) / (2.0 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0.0, atol=2e-6)


def test_leading_dimensions_broadcast(rng):
    quats, vectors = _tensor(_quats(rng)), _tensor(rng.normal(size=(5, 1, 3)))
    assert rotations.rotate(quats, vectors).shape == rotations.rotate_inverse(quats, vectors).shape == (5, COUNT, 3)
    torch.testing.assert_close(rotations.rotate(quats, vectors)[2, 7], rotations.rotate(quats[7], vectors[2, 0]))
    assert rotations.quat_mul(quats[:, None], quats[None, :3]).shape == (COUNT, 3, 4)
    torch.testing.assert_close(
        rotations.rotate_inverse(quats, rotations.rotate(quats, vectors)),
        vectors.expand(5, COUNT, 3),
        rtol=0,
        atol=5e-6,
    )


def test_a_heading_is_that_of_atan2_and_does_not_depend_on_the_number_of_rows() -> None:
    angles = torch.cat((torch.linspace(-3.14, 3.14, 95), torch.tensor([math.pi / 2, -math.pi / 2, math.pi, -math.pi, 0.0])))
    quat = torch.stack((torch.cos(angles / 2), torch.zeros(100), torch.zeros(100), torch.sin(angles / 2)), dim=-1)
    yaw = rotations.yaw_of(quat)
    apart = rotations.wrap_angle(yaw - angles)
    assert torch.minimum(apart.abs(), (apart.abs() - 2 * math.pi).abs()).max() < 1e-5
    for size in (1, 3, 16, 24):
        parts = [rotations.yaw_of(quat[first : first + size]) for first in range(0, 100, size)]
        assert torch.equal(torch.cat(parts), yaw)
