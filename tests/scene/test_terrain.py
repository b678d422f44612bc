from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config import load
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.mdp.ground import make_ground
from embodied_rl.physics.field_contacts import smooth_fields
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene
from embodied_rl.scene.terrain import FlatTerrain, HeightField

KINDS = ("flat", "random_rough", "slope", "slope_down", "stairs", "stairs_down", "discrete", "waves", "stepping_stones", "gaps")


def rays(ground: HeightField, xy: np.ndarray) -> np.ndarray:
    """Heights that MuJoCo's rays find from above, (P,)."""
    spec = mujoco.MjSpec()
    ground.add_to(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    down, geom = np.array([0.0, 0.0, -1.0]), np.zeros(1, dtype=np.int32)
    return np.array([10.0 - mujoco.mj_ray(model, data, np.array([*point, 10.0]), down, None, 1, -1, geom) for point in xy])


def compare(ground: HeightField, xy: np.ndarray) -> None:
    want = rays(ground, xy)
    cpu = torch.device("cpu")
    exact = ground.on(cpu, torch.float64).height(torch.tensor(xy)).numpy()
    np.testing.assert_allclose(exact, want, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(ground.height(torch.tensor(xy, dtype=torch.float32)), want, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_height_is_where_rays_end(kind: str) -> None:
    """At 1000 points of each kind, those within a cell of a riser left out, as one of float32 there may lie on either side."""
    ground = make_ground(load("go2_flat", ["terrain={rows: 3, size: 6.0, border: 0.5}", f"patches.{kind}={{}}"]))
    assert isinstance(ground, HeightField)
    rng = np.random.default_rng(3)
    xy = rng.uniform(-1.0, 1.0, (4000, 2)) * np.array(ground.half) * 0.999
    around = np.array([ground.height(torch.tensor(xy + step)) for step in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05))])
    smooth = np.ptp(around, axis=0) < 0.08
    xy = xy[smooth][:1000]
    assert len(xy) == 1000
    compare(ground, xy)


def test_triangles_are_mujocos() -> None:
    """A field whose cells bend across either diagonal, of other lengths along x than along y."""
    rng = np.random.default_rng(0)
    ground = HeightField(rng.uniform(-0.05, 0.05, (31, 44)), 0.05, np.zeros((1, 1, 3)))
    xy = rng.uniform(-1.0, 1.0, (1000, 2)) * np.array(ground.half) * 0.999
    compare(ground, xy)
    step = 1e-4
    inside = torch.tensor(xy)
    exact = ground.on(torch.device("cpu"), torch.float64)
    slopes = [(exact.height(inside + torch.tensor(d)) - exact.height(inside)) / step for d in ((step, 0.0), (0.0, step))]
    normal = exact.normal(inside)
    alike = torch.stack([(-normal[:, k] / normal[:, 2] - slopes[k]).abs() for k in (0, 1)]).amax(0) < 1e-6
    assert alike.float().mean() > 0.98  # the others step over an edge
    np.testing.assert_allclose(normal.norm(dim=-1), 1.0, rtol=1e-12)


def test_what_touches_the_field_touches_it_where_the_height_is() -> None:
    """Small balls laid into single triangles: contacts are with the plane through it."""
    smooth_fields()
    rng = np.random.default_rng(1)
    ground = HeightField(rng.uniform(-0.05, 0.05, (21, 21)), 0.2, np.zeros((1, 1, 3)))
    exact = ground.on(torch.device("cpu"), torch.float64)
    cells = rng.integers(0, 20, (40, 2))
    xy = (cells + np.where(rng.random(40)[:, None] < 0.5, [0.7, 0.3], [0.3, 0.7])) * 0.2 - 2.0
    normals, radius, deep = exact.normal(torch.tensor(xy)).numpy(), 0.02, 0.002
    spec = mujoco.MjSpec()
    ground.add_to(spec)
    spec.geom("ground").contype = 1
    for place, z, normal in zip(xy, exact.height(torch.tensor(xy)).numpy(), normals, strict=True):
        body = spec.worldbody.add_body(pos=np.array([*place, z]) + (radius - deep) * normal)
        body.add_freejoint()
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[radius, 0, 0], conaffinity=1, contype=0)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    touched = {int(contact.geom[1]): contact for contact in data.contact}
    assert len(touched) == 40
    for index, normal in enumerate(normals):
        contact = touched[index + 1]
        assert contact.dist == pytest.approx(-deep, abs=1e-6)
        np.testing.assert_allclose(contact.frame[:3], normal, atol=1e-5)


@pytest.mark.parametrize("cell", [0.1, 0.05])
def test_a_level_field_is_a_plane(cell: float) -> None:
    """A robot stands on it as high as on a plane and is pushed nowhere."""
    smooth_fields()
    robot, places, forces = load_robot("go2"), [], []
    level = HeightField(np.zeros((41, 61)), cell, np.zeros((1, 1, 3)))
    for ground in (FlatTerrain(), level):
        scene = build_scene(robot, collisions="feet", physics=PhysicsSettings(), terrain=ground)
        data = mujoco.MjData(scene.model)
        data.qpos[:] = scene.default_qpos()
        data.qpos[:2] += 0.013
        data.ctrl[:] = robot.default_joint_pos
        mujoco.mj_step(scene.model, data, 20)
        places.append(data.qpos[:3].copy())
        force = np.zeros(6)
        forces.append(np.zeros(3))
        for index, contact in enumerate(data.contact):
            mujoco.mj_contactForce(scene.model, data, index, force)
            forces[-1] += contact.frame.reshape(3, 3).T @ force[:3]
        assert data.warning[mujoco.mjtWarning.mjWARN_CONTACTFULL].number == 0
    np.testing.assert_allclose(places[1], places[0], rtol=0.0, atol=1e-7)
    np.testing.assert_allclose(forces[1], forces[0], rtol=0.0, atol=1e-4 * 9.81 * scene.model.body_mass.sum())


def test_beside_the_field_lies_its_edge() -> None:
    ground = HeightField(np.arange(12.0).reshape(3, 4), 1.0, np.zeros((1, 1, 3)))
    assert ground.half == (1.0, 1.5)
    found = ground.height(torch.tensor([[-9.0, -9.0], [9.0, 9.0], [9.0, -1.5], [0.0, 0.5]]))
    assert found.tolist() == pytest.approx([0.0, 11.0, 8.0, 6.0], abs=1e-5)
    assert FlatTerrain().height(torch.ones(2, 3, 2)).shape == (2, 3)
    assert FlatTerrain().normal(torch.ones(2, 2)).tolist() == [[0.0, 0.0, 1.0]] * 2


def test_one_operation_gives_torchs_heights_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    field = HeightField(rng.uniform(-0.5, 0.5, (41, 33)), 0.05, np.zeros((1, 1, 3)))
    ground = field.on(torch.device("cpu"))
    place, heading = torch.tensor(rng.uniform(-1.3, 1.3, (50, 2))).float(), torch.tensor(rng.uniform(-4.0, 4.0, 50)).float()
    points = torch.tensor(rng.uniform(-0.8, 0.8, (70, 2))).float()
    place[:3], heading[:4], points[0] = torch.tensor([[1.0, 0.8], [-9.0, 9.0], [float("nan"), 0.0]]), 0.0, 0.0
    heading[4] = float("nan")
    assert ground._compiled
    found = ground.heights_around(place, heading, points)
    whole = torch.compile(ground.heights_around, fullgraph=True, dynamic=False)(place, heading, points)
    assert found.shape == (50, 70) and bool(found.isfinite().all() & whole.isfinite().all())
    torch.testing.assert_close(whole[5:], found[5:], rtol=0.0, atol=2e-5)  # it rounds sines otherwise
    c, s = torch.cos(heading)[:, None, None], torch.sin(heading)[:, None, None]
    turned = torch.cat((c * points[:, :1] - s * points[:, 1:], s * points[:, :1] + c * points[:, 1:]), dim=-1)
    torch.testing.assert_close(found[5:], ground.height(place[:, None] + turned)[5:], rtol=0.0, atol=2e-5)
    assert torch.equal(found[:4, 0], ground.height(place[:4]))
    mixed = ground.heights_around(place.double(), heading, points).float()
    torch.testing.assert_close(mixed[5:], found[5:], rtol=0.0, atol=1e-4)
    monkeypatch.setattr("embodied_rl.scene.terrain.load_function", lambda: None)
    without = field.on(torch.device("cpu"))
    assert not without._compiled and torch.equal(without.heights_around(place, heading, points), found)
    assert FlatTerrain().heights_around(place, heading, points).tolist() == torch.zeros(50, 70).tolist()
