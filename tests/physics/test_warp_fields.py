"""Balls on height fields in MuJoCo Warp: the contacts that field_contacts.cpp finds in C, in float32."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from embodied_rl.physics import field_contacts
from embodied_rl.scene.terrain import HeightField

warp, mujoco_warp = pytest.importorskip("warp"), pytest.importorskip("mujoco_warp")
warp_fields = pytest.importorskip("embodied_rl.physics.warp_fields")

COUNT, SIDE = 120, 41


@pytest.fixture(scope="module", autouse=True)
def smooth() -> None:
    field_contacts.smooth_fields()
    assert warp_fields.smooth_fields()


def world(
    heights: np.ndarray, cell: float, places: np.ndarray, radius: float, *, turn: np.ndarray | None = None, margin: float = 0.0
) -> mujoco.MjModel:
    """Balls where they are put in the field's frame, which may be turned."""
    spec = mujoco.MjSpec()
    HeightField(heights, cell, np.zeros((1, 1, 3))).add_to(spec)
    geom, quat = spec.geom("ground"), np.array([1.0, 0.0, 0.0, 0.0]) if turn is None else turn
    geom.contype, geom.condim, geom.quat = 1, 3, quat
    for place in places:
        moved = np.zeros(3)
        mujoco.mju_rotVecQuat(moved, place - geom.pos, quat)
        body = spec.worldbody.add_body(pos=moved + geom.pos)
        body.add_freejoint()
        ball = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": [radius, 0.0, 0.0], "mass": 1.0, "margin": margin}
        body.add_geom(**ball, contype=0, conaffinity=1)
    return spec.compile()


def in_c(model: mujoco.MjModel, data: mujoco.MjData) -> dict[int, np.ndarray]:
    """Contacts of each ball: distance, normal, position, (C, 7)."""
    mujoco.mj_forward(model, data)
    return gather([(int(one.geom[1]), [one.dist, *one.frame[:3], *one.pos]) for one in data.contact])


def in_warp(model: mujoco.MjModel, data: mujoco.MjData) -> dict[int, np.ndarray]:
    there, state = mujoco_warp.put_model(model), mujoco_warp.make_data(model, nconmax=20 * COUNT, njmax=100)
    state.qpos.assign(np.asarray(data.qpos, dtype=np.float32)[None])
    mujoco_warp.kinematics(there, state)
    mujoco_warp.collision(there, state)
    count = int(state.nacon.numpy()[0])
    parts = [getattr(state.contact, name).numpy()[:count] for name in ("geom", "dist", "frame", "pos")]
    return gather([(int(geom[1]), [dist, *frame[0], *pos]) for geom, dist, frame, pos in zip(*parts, strict=True)])


def gather(contacts: list[tuple[int, list[float]]]) -> dict[int, np.ndarray]:
    return {ball: np.array([numbers for one, numbers in contacts if one == ball]) for ball in {ball for ball, _ in contacts}}


def check(model: mujoco.MjModel, *, least: int, tolerance: float = 2e-5) -> None:
    """All balls have as many contacts in both, and each of them is the other's."""
    data = mujoco.MjData(model)
    wanted, found = in_c(model, data), in_warp(model, data)
    assert {ball: len(numbers) for ball, numbers in found.items()} == {ball: len(numbers) for ball, numbers in wanted.items()}
    assert sum(map(len, wanted.values())) >= least
    for ball, numbers in wanted.items():
        apart = np.abs(numbers[:, None] - found[ball][None]).max(-1)
        assert apart.min(1).max() < tolerance and len(set(apart.argmin(1))) == len(numbers)


RNG = np.random.default_rng(5)
STEPS = np.floor(np.arange(SIDE) / 8) * 0.1
GROUNDS = {
    "level": np.zeros((SIDE, SIDE)),
    "random": RNG.uniform(-0.03, 0.03, (SIDE, SIDE)),
    "stairs": np.tile(STEPS, (SIDE, 1)),
    "ridge": np.tile(-0.3 * np.abs(np.arange(SIDE) - 20.0) * 0.05, (SIDE, 1)),
    "pits": np.where((np.arange(SIDE)[:, None] % 5 < 2) & (np.arange(SIDE)[None] % 7 < 3), -0.3, 0.0),
}


def over(heights: np.ndarray, cell: float, low: float, high: float) -> np.ndarray:
    """Places at random, so far above the corner of their cell."""
    half = 0.5 * cell * (SIDE - 1)
    across = RNG.uniform(-0.98 * half, 0.98 * half, (COUNT, 2))
    column, row = ((across + half) / cell).astype(int).T
    return np.column_stack((across, heights[column, row] + RNG.uniform(low, high, COUNT)))


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("radius", [0.005, 0.022])
def test_contacts_are_those_in_c(ground: str, radius: float) -> None:
    """From above, from beside steps, and with the centre in the ground, where Warp's own find depths of metres."""
    heights = GROUNDS[ground]
    check(world(heights, 0.05, over(heights, 0.05, -0.03, 1.5 * radius), radius), least=COUNT // 2)


def test_a_ball_that_is_large_beside_the_cells() -> None:
    heights = GROUNDS["random"]
    check(world(heights, 0.02, over(heights, 0.02, 0.02, 0.1), 0.08), least=COUNT)


def test_a_field_that_is_turned_and_a_margin() -> None:
    heights, turn = GROUNDS["random"], np.array([0.8, 0.2, -0.4, 0.4])
    places = over(heights, 0.05, -0.01, 0.03)
    check(world(heights, 0.05, places, 0.02, turn=turn / np.linalg.norm(turn), margin=0.005), least=COUNT // 2)


def test_far_from_the_middle_of_a_large_field() -> None:
    """Float32 has 4 micrometres there, in which a ball stands; how deep it is in the ground is not less exact."""
    heights = np.zeros((1921, 1601))
    heights[:60, :60] = RNG.uniform(-0.03, 0.03, (60, 60))
    across = np.column_stack((RNG.uniform(-47.9, -45.2, COUNT), RNG.uniform(-39.9, -37.2, COUNT)))
    places = np.column_stack((across, RNG.uniform(-0.01, 0.05, COUNT)))
    check(world(heights, 0.05, places, 0.022), least=COUNT // 2, tolerance=5e-4)


def test_another_version_keeps_its_own_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    theirs = warp_fields.collision_convex.ccd_hfield_kernel_builder

    def builder(*_: int) -> SimpleNamespace:
        return SimpleNamespace(func=lambda geom_type: None)

    monkeypatch.setattr(warp_fields.collision_convex, "ccd_hfield_kernel_builder", builder)
    with caplog.at_level(logging.WARNING):
        assert not warp_fields.smooth_fields.__wrapped__()
    assert warp_fields.collision_convex.ccd_hfield_kernel_builder is builder
    assert "takes height fields otherwise" in caplog.text and theirs is not builder
