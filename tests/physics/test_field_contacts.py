"""Balls on height fields: as on planes where the ground is one, and at the nearest points of the surface everywhere."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl import machine, make_env
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.mdp.ground import make_ground
from embodied_rl.physics import field_contacts
from embodied_rl.scene.terrain import HeightField

RADIUS = 0.02


@pytest.fixture(autouse=True)
def smooth() -> None:
    field_contacts.smooth_fields()


def world(ground: HeightField | None, places: np.ndarray, *, turn=(1.0, 0.0, 0.0, 0.0), plane=(1.0, 0.0, 0.0, 0.0), friction=0.6):
    """Balls over the ground, or over a plane that is turned; the field may be, and they with it, about its frame."""
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.005
    contact = {"friction": [friction, 0.02, 0.01], "contype": 1, "conaffinity": 0, "condim": 3}
    pivot = np.zeros(3)
    if ground is None:
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.0, 0.0, 1.0], quat=plane, **contact)
    else:
        ground.add_to(spec)
        geom = spec.geom("ground")
        geom.friction, geom.contype, geom.quat = contact["friction"], 1, turn
        pivot = np.array(geom.pos)
    for place in places:
        moved = np.zeros(3)
        mujoco.mju_rotVecQuat(moved, place - pivot, np.asarray(turn, dtype=float))
        body = spec.worldbody.add_body(pos=moved + pivot)
        body.add_freejoint()
        ball = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": [RADIUS, 0.0, 0.0], "mass": 1.0}
        body.add_geom(**ball, friction=contact["friction"], contype=0, conaffinity=1)
    return spec.compile()


def contacts_of(model: mujoco.MjModel) -> dict[int, list[tuple[float, np.ndarray, np.ndarray]]]:
    """Distance, normal and position of each ball's contacts."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    found: dict[int, list] = {ball: [] for ball in range(model.nbody - 1)}
    for one in data.contact:
        found[int(one.geom[1]) - 1].append((float(one.dist), one.frame[:3].copy(), one.pos.copy()))
    return found


def height_of(ground: HeightField, xy: np.ndarray) -> np.ndarray:
    return ground.height(torch.tensor(xy)).numpy()


def field(height, cells: int = 40, cell: float = 0.05) -> HeightField:
    """A field of 2 x 2 m over whose points a function of x and y is."""
    along = cell * (np.arange(cells + 1) - cells // 2)
    x, y = np.meshgrid(along, along, indexing="ij")
    return HeightField(np.broadcast_to(height(x, y), x.shape).astype(float), cell, np.zeros((1, 1, 3)))


@pytest.mark.parametrize("friction", [0.0, 0.6])
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_thrown_balls_do_on_a_field_what_they_do_on_a_plane(slope: float, friction: float) -> None:
    """MuJoCo's own contacts take up to half of its speed from a ball without friction that lands on level ground."""
    rng = np.random.default_rng(0)
    angle = np.arctan(slope)
    places = np.column_stack((rng.uniform(-0.5, 0.5, (60, 2)), np.zeros(60)))
    places[:, 2] = slope * places[:, 0] + 0.03
    ends, start = [], rng.uniform(-1.0, 1.0, (60, 6)) * [1.5, 1.5, 0.0, 9.0, 9.0, 9.0] - [0.0, 0.0, 1.5, 0.0, 0.0, 0.0]
    for ground in (None, field(lambda x, y: slope * x)):
        model = world(ground, places, plane=(np.cos(angle / 2), 0.0, -np.sin(angle / 2), 0.0), friction=friction)
        data = mujoco.MjData(model)
        data.qvel[:] = start.ravel()
        mujoco.mj_step(model, data, 30)
        assert data.ncon
        ends.append(data.qvel.copy())
    # a pyramid of friction has an orientation, which MuJoCo chooses from the normal: alike for both, but for rounding
    np.testing.assert_allclose(ends[1], ends[0], rtol=0.0, atol=5e-3)


def test_a_corner_is_two_contacts_and_a_ridge_is_one() -> None:
    slope, deep = 0.5, 0.002
    up = np.array([-slope, 0.0, 1.0]) / np.hypot(slope, 1.0)
    high = (RADIUS - deep) / up[2]  # over a valley's bottom both sides are this near
    valley = contacts_of(world(field(lambda x, y: slope * np.abs(x)), np.array([[0.0, 0.013, high]])))[0]
    assert sorted(one[1][0] for one in valley) == pytest.approx([up[0], -up[0]], abs=1e-6)
    assert [one[0] for one in valley] == pytest.approx([-deep, -deep], abs=1e-6)
    leaning = np.array([0.2, 0.0, 1.0]) / np.hypot(0.2, 1.0)  # between the normals of the sides
    place = (RADIUS - deep) * leaning + [0.0, 0.013, 0.0]
    ridge = contacts_of(world(field(lambda x, y: -slope * np.abs(x)), place[None]))[0]
    assert len(ridge) == 1 and ridge[0][0] == pytest.approx(-deep, abs=1e-6)
    np.testing.assert_allclose(ridge[0][1], leaning, atol=1e-5)


def test_contacts_are_where_the_ground_has_its_nearest_points() -> None:
    """Against a search over points 0.25 mm apart, of a ground that bends at every edge."""
    rng = np.random.default_rng(2)
    heights = rng.uniform(-0.03, 0.03, (41, 41))
    ground = field(lambda x, y: heights)
    places = np.column_stack((rng.uniform(-0.9, 0.9, (150, 2)), np.zeros(150)))
    exact = ground.on(torch.device("cpu"), torch.float64)
    places[:, 2] = height_of(exact, places[:, :2]) + rng.uniform(0.2, 1.1, 150) * RADIUS
    found = contacts_of(world(ground, places))
    step = 2.5e-4
    along = np.arange(-RADIUS, RADIUS + step, step)
    x, y = np.meshgrid(along, along, indexing="ij")
    several = 0
    for ball, place in enumerate(places):
        xy = np.stack((x, y), axis=-1) + place[:2]
        away = np.sqrt(x**2 + y**2 + (height_of(exact, xy) - place[2]) ** 2)
        middle = away[1:-1, 1:-1]
        around = [away[1 + i : away.shape[0] - 1 + i, 1 + j : away.shape[1] - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        least = (middle <= np.min(around, axis=0)) & (middle < RADIUS - 1e-3)
        where = xy[1:-1, 1:-1][least]
        for dist, normal, position in found[ball]:
            nearest = position - 0.5 * dist * normal
            assert np.linalg.norm(place - nearest) == pytest.approx(RADIUS + dist, abs=1e-6)
            assert height_of(exact, nearest[:2]) == pytest.approx(nearest[2], abs=1e-6)
        points = np.array([position[:2] - 0.5 * dist * normal[:2] for dist, normal, position in found[ball]]).reshape(-1, 2)
        for point in where:
            assert np.linalg.norm(points - point, axis=1).min() < 2e-3
        if found[ball]:
            assert RADIUS + min(one[0] for one in found[ball]) == pytest.approx(away.min(), abs=2e-4)
        several += len(found[ball]) > 1
    assert 20 < several < 130


def test_a_thin_ridge_pushes_back_whoever_touches_it() -> None:
    """Not through it, as from its far side."""
    ground = field(lambda x, y: np.where(np.abs(x) < 1e-6, 0.2, 0.0))
    exact = ground.on(torch.device("cpu"), torch.float64)
    places = np.array([[x, 0.013, z] for x in np.linspace(-0.06, 0.06, 41) for z in np.linspace(0.02, 0.23, 43)])
    touching = 0
    for place, found in zip(places, contacts_of(world(ground, places)).values(), strict=True):
        if height_of(exact, place[:2]) >= place[2]:
            continue  # its centre is in the ground
        for dist, normal, position in found:
            nearest = position - 0.5 * dist * normal
            np.testing.assert_allclose(normal * (RADIUS + dist), place - nearest, atol=1e-6)
            touching += 1
    assert touching > 100


def test_beside_an_inner_edge_is_one_contact_however_near() -> None:
    """Also a few micrometres from it, where two triangles have nearest points that are all but one."""
    near = np.array([0.0, 1e-9, 1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 1e-4])
    places = np.array([[x, y, 0.9 * RADIUS] for x in near for y in (*near, 0.013)])
    for found in contacts_of(world(field(lambda x, y: 0.0 * x), places)).values():
        assert len(found) == 1 and found[0][0] == pytest.approx(-0.1 * RADIUS, abs=1e-7)


def test_a_ball_that_fits_into_a_bowl_is_pushed_to_no_side() -> None:
    along = 0.08 * (np.arange(11) - 5)
    x, y = np.meshgrid(along, along, indexing="ij")
    bowl = HeightField(0.2 - np.sqrt(np.maximum(0.2**2 - x**2 - y**2, 0.0)), 0.08, np.zeros((1, 1, 3)))
    spec = mujoco.MjSpec()
    bowl.add_to(spec)
    spec.geom("ground").contype = 1
    body = spec.worldbody.add_body(pos=[0.0, 0.0, 0.199])
    body.add_freejoint()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.2, 0.0, 0.0], conaffinity=1, contype=0)
    normals = np.array([one[1] for one in contacts_of(spec.compile())[0]])
    assert 8 < len(normals) < 50 and np.abs(normals.mean(axis=0)[:2]).max() < 0.05


def test_other_geoms_are_mujocos() -> None:
    """What a capsule, a box and a ball among fine cells meet is what they met before."""
    rng = np.random.default_rng(6)
    heights = rng.uniform(-0.02, 0.02, (201, 201))
    spec = mujoco.MjSpec()
    HeightField(heights, 0.0025, np.zeros((1, 1, 3))).add_to(spec)
    spec.geom("ground").contype = 1
    for index, (kind, size) in enumerate(
        (("CAPSULE", [0.02, 0.03, 0.0]), ("BOX", [0.02, 0.03, 0.01]), ("SPHERE", [0.05, 0.0, 0.0]))
    ):
        body = spec.worldbody.add_body(pos=[0.1 * index - 0.1, 0.0, 0.03 if kind == "SPHERE" else 0.01])
        body.add_freejoint()
        body.add_geom(type=getattr(mujoco.mjtGeom, f"mjGEOM_{kind}"), size=size, conaffinity=1, contype=0)
    model = spec.compile()
    code = "import sys, mujoco, numpy as np; m = mujoco.MjModel.from_binary_path(sys.argv[1]); d = mujoco.MjData(m); "
    code += (
        "mujoco.mj_forward(m, d); np.save(sys.argv[2], np.array([[*c.geom, c.dist, *c.frame[:3], *c.pos] for c in d.contact]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        mujoco.mj_saveModel(model, f"{folder}/model.mjb")
        subprocess.run([sys.executable, "-c", code, f"{folder}/model.mjb", f"{folder}/found.npy"], check=True)
        before = np.load(f"{folder}/found.npy")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    after = np.array([[*one.geom, one.dist, *one.frame[:3], *one.pos] for one in data.contact])
    assert set(before[:, 1]) == {1.0, 2.0, 3.0}
    np.testing.assert_array_equal(after, before)


def test_mujocos_own_are_there_for_the_thread_that_wants_them() -> None:
    model = world(field(lambda x, y: 0.0 * x), np.array([[0.0, 0.0, 0.5 * RADIUS]]))
    counts = []

    def count() -> None:
        counts.append(len(contacts_of(model)[0]))

    with field_contacts.mujocos_own():
        count()
        other = threading.Thread(target=count)
        other.start()
        other.join()
    count()
    assert counts[0] > 1 and counts[1:] == [1, 1]


def test_room_on_rough_ground_is_the_same_in_every_process() -> None:
    """Warp's contacts are as many whether or not an environment in C was made before, which has fewer."""
    ground = ["patches={stairs: {}}", "terrain={rows: 1, size: 4.0, border: 1.0}"]
    code = (
        "import sys; from embodied_rl.physics import capacity, field_contacts; import mujoco, numpy as np\n"
        "if len(sys.argv) > 2: field_contacts.smooth_fields()\n"
        "model = mujoco.MjModel.from_binary_path(sys.argv[1])\n"
        "print(capacity.measure(model, np.array([[0, geom] for geom in range(1, model.ngeom)])))"
    )
    model = make_env.make_scene(load("go2_flat", ground)).model
    with tempfile.TemporaryDirectory() as folder:
        mujoco.mj_saveModel(model, f"{folder}/model.mjb")
        runs = ([sys.executable, "-c", code, f"{folder}/model.mjb", *more] for more in ([], ["smooth"]))
        found = [subprocess.run(run, check=True, capture_output=True, text=True).stdout for run in runs]
    assert found[0] == found[1] != ""


def test_margin_is_a_planes() -> None:
    for height in (0.0199, 0.0201, 0.0299, 0.0301):
        counts = []
        for ground in (None, field(lambda x, y: 0.0 * x)):
            model = world(ground, np.array([[0.01, 0.013, height]]))
            model.geom_margin[:] = 0.005
            counts.append([one[0] for one in contacts_of(model)[0]])
        assert counts[0] == pytest.approx(counts[1], abs=1e-9)


def test_a_ball_in_the_ground_goes_out_by_the_way_of_the_triangle_above() -> None:
    slope = 0.5
    normal = np.array([-slope, 0.0, 1.0]) / np.hypot(slope, 1.0)
    place = np.array([0.01, 0.013, 0.01 * slope]) - 0.005 * normal
    (dist, found, _) = contacts_of(world(field(lambda x, y: slope * x), place[None]))[0][0]
    assert dist == pytest.approx(-0.005 - RADIUS, abs=1e-6)
    np.testing.assert_allclose(found, normal, atol=1e-6)


def test_a_field_that_is_turned_turns_its_contacts() -> None:
    rng = np.random.default_rng(3)
    heights = rng.uniform(-0.03, 0.03, (41, 41))
    ground = field(lambda x, y: heights)
    places = np.column_stack((rng.uniform(-0.5, 0.5, (20, 2)), rng.uniform(0.0, 0.03, 20)))
    turn = np.array([0.8, 0.2, -0.4, 0.4])
    turn /= np.linalg.norm(turn)
    straight, turned = contacts_of(world(ground, places)), contacts_of(world(ground, places, turn=turn))
    pivot = np.array([0.0, 0.0, heights.min()])
    for ball in straight:
        assert len(straight[ball]) == len(turned[ball])
        for one, other in zip(straight[ball], turned[ball], strict=True):
            assert other[0] == pytest.approx(one[0], abs=1e-9)
            for was, now in ((one[1], other[1]), (one[2] - pivot, other[2] - pivot)):
                moved = np.zeros(3)
                mujoco.mju_rotVecQuat(moved, was, turn)
                np.testing.assert_allclose(now, moved, atol=1e-8)


def test_beside_the_field_is_nothing_and_its_edge_is_an_edge() -> None:
    ground = field(lambda x, y: 0.0 * x)
    places = np.array([[1.0 + 0.6 * RADIUS, 0.0, 0.5 * RADIUS], [1.0 + 2 * RADIUS, 0.0, 0.5 * RADIUS], [5.0, 5.0, -0.5]])
    beside, far, away = contacts_of(world(ground, places)).values()
    assert len(beside) == 1 and beside[0][0] == pytest.approx(np.hypot(0.6, 0.5) * RADIUS - RADIUS, abs=1e-9)
    assert far == away == []


def test_every_kind_of_ground_holds_a_ball() -> None:
    """Balls let go everywhere come to rest no deeper in the ground than on a plane, or roll off."""
    kinds = ("random_rough", "slope", "stairs", "discrete", "waves")
    ground = make_ground(load("go2_flat", ["terrain={rows: 2, size: 4.0, border: 1.0}", *(f"patches.{k}={{}}" for k in kinds)]))
    assert isinstance(ground, HeightField)
    rng = np.random.default_rng(4)
    places = np.column_stack((rng.uniform(-0.95, 0.95, (80, 2)) * np.array(ground.half), np.zeros(80)))
    exact = ground.on(torch.device("cpu"), torch.float64)
    places[:, 2] = height_of(exact, places[:, :2]) + 0.1
    model = world(ground, places)
    data = mujoco.MjData(model)
    deepest = 0.0
    for _ in range(200):
        mujoco.mj_step(model, data)
        deepest = min(deepest, min((float(one.dist) for one in data.contact), default=0.0))
    assert data.warning[mujoco.mjtWarning.mjWARN_CONTACTFULL].number == 0
    position = data.qpos.reshape(-1, 7)[:, :3]
    on = np.all(np.abs(position[:, :2]) < np.array(ground.half), axis=1)
    assert np.all(position[on, 2] > height_of(exact, position[on, :2]) - 0.001) and -0.02 < deepest < 0.0


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpp_error", lambda: "there is no C++ compiler: g++ is not on the PATH")
    field_contacts.smooth_fields.cache_clear()
    with pytest.raises(UserError, match=r"^patches: there is no C\+\+ compiler: .*; MuJoCo's own contacts .* install g\+\+"):
        field_contacts.smooth_fields()


def test_a_source_that_does_not_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    broken = tmp_path / "field_contacts.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(field_contacts, "_SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    field_contacts.smooth_fields.cache_clear()
    with pytest.raises(UserError, match=r"field_contacts\.cpp does not build"):
        field_contacts.smooth_fields()
    field_contacts.smooth_fields.cache_clear()
