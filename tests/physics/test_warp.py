"""What only MuJoCo Warp has: its memory, its room for contacts, its kernels, its part in a capture."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl import machine, make_env
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics import capacity
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

if TYPE_CHECKING:
    from embodied_rl.physics.warp import WarpPhysics

warp, mujoco_warp = pytest.importorskip("warp"), pytest.importorskip("mujoco_warp")
engine = pytest.importorskip("embodied_rl.physics.warp")

CPU = torch.device("cpu")
NEEDS = {"foot_contact", "foot_frames", "joint_torque"}


def make_scene(robot: str = "go2", collisions: str = "feet") -> Scene:
    settings = PhysicsSettings(engine="warp")
    return build_scene(load_robot(robot), collisions=collisions, physics=settings, needs=NEEDS, dry_friction=False)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene()


def start(scene: Scene, rows: int, **settings: Any) -> WarpPhysics:
    return engine.WarpPhysics(scene, rows, PhysicsSettings(engine="warp", **settings), CPU)


def standing(scene: Scene, rows: int) -> tuple[Tensor, Tensor]:
    """Qpos of robots whose feet are a little in the ground, and the controls that hold them."""
    robot = scene.robot
    qpos = torch.tensor(scene.model.qpos0, dtype=torch.float32).repeat(rows, 1)
    default = torch.tensor(robot.default_joint_pos)
    qpos[:, list(scene.qpos_address)] = default
    data = mujoco.MjData(scene.model)
    data.qpos[:] = qpos[0]
    mujoco.mj_kinematics(scene.model, data)
    lowest = min(data.geom_xpos[geom][2] - scene.model.geom_size[geom][0] for geom in scene.foot_geoms)
    qpos[:, 2] -= lowest + 0.002
    return qpos, default.repeat(rows, 1)


def everyone(physics: WarpPhysics) -> Tensor:
    return torch.ones(physics.num_envs, dtype=torch.bool)


def stand(physics: WarpPhysics, scene: Scene) -> Tensor:
    qpos, ctrl = standing(scene, physics.num_envs)
    physics.write(everyone(physics), qpos=qpos, qvel=torch.zeros_like(physics.qvel))
    return ctrl


def test_its_memory_is_handed_out(scene: Scene) -> None:
    physics: Any = start(scene, 3)
    for name in ("qpos", "qvel"):
        assert getattr(physics, name).data_ptr() == getattr(physics._data, name).ptr
    assert physics._expanded("geom_friction").data_ptr() == physics._model.geom_friction.ptr


def test_friction_of_the_feet_is_the_friction_of_the_contact(scene: Scene) -> None:
    """A robot slides on stiff legs: it must slow down as its feet's friction says, not as the ground's does."""
    frictions = (0.2, 0.4, 0.6)
    physics = start(scene, len(frictions), iterations=10)
    ctrl, feet = stand(physics, scene), list(scene.foot_geoms)
    friction = physics.expand("geom_friction")
    friction[:, feet, 0] = torch.tensor(frictions)[:, None]
    gain, bias, force = (physics.expand(f"actuator_{name}") for name in ("gainprm", "biasprm", "forcerange"))
    gain[..., 0], bias[..., 1], bias[..., 2] = 500.0, -500.0, -10.0  # legs that do not fold
    force[:] = torch.tensor((-1e4, 1e4))
    physics.write(
        everyone(physics), geom_friction=friction, actuator_gainprm=gain, actuator_biasprm=bias, actuator_forcerange=force
    )
    for _ in range(20):  # settle
        physics.step(ctrl)
    push = physics.qvel.clone()
    push[:, 1] = 2.0  # sideways, where the stance does not tip over
    physics.write(everyone(physics), qvel=push)
    for _ in range(5):
        physics.step(ctrl)
    slowdown = (2.0 - physics.qvel[:, 1].numpy()) / (9.81 * 5 * 4 * scene.model.opt.timestep)
    np.testing.assert_allclose(slowdown, frictions, rtol=0.15)


# ------------------------------------------------------------------------------------------------------ room for contacts


def test_a_robot_that_runs_out_of_room_is_counted_by_the_setting_that_makes_more(scene: Scene) -> None:
    for settings, short in (({"njmax": 8, "nconmax": 8}, "physics.njmax"), ({"njmax": 40, "nconmax": 1}, "physics.nconmax")):
        physics = start(scene, 4, **settings)
        ctrl = stand(physics, scene)
        air = physics.qpos.clone()
        air[:, 2] += 1.0
        in_the_air = torch.tensor([False, True, True, True])
        physics.write(in_the_air, qpos=air)
        physics.step(ctrl)
        if short == "physics.njmax":  # four feet have sixteen rows, and one robot touches the ground
            assert physics.drain_overflow() == {"physics.njmax": 1, "physics.nconmax": 0}
        else:  # the room for contacts is shared by all: four of one robot fit into that of four robots
            assert physics.drain_overflow() == {"physics.njmax": 0, "physics.nconmax": 0}
            stand(physics, scene)
            physics.step(ctrl)
            found = physics.drain_overflow()
            assert found["physics.nconmax"] >= 3 and found["physics.njmax"] == 0
        assert set(physics.drain_overflow().values()) == {0}


def test_an_overflow_reaches_the_metrics_of_the_iteration() -> None:
    small = ["env.compile=false", "physics.njmax=8", "physics.nconmax=8", "env.random_episode_phase=false"]
    env = make_env.make("go2_flat", small, engine="warp", device="cpu", num_envs=3)
    for _ in range(20):  # from above the ground onto it
        env.step(torch.zeros(3, 12))
    totals = env.drain_totals()
    assert totals["overflow/physics.njmax"] == 3.0 and totals["overflow/physics.nconmax"] == 0.0
    env.close()


@pytest.mark.parametrize(("robot", "collisions"), [("go2", "feet"), ("go2", "full"), ("go1", "full")])
def test_measured_room_has_head_room_over_what_is_seen(robot: str, collisions: str) -> None:
    scene = make_scene(robot, collisions)
    model, rng = scene.model, np.random.default_rng(7)
    pairs = pairs_of(model)
    nconmax, njmax = capacity.measure(model, pairs)
    contacts = rows = 0
    data = mujoco.MjData(model)
    for _ in range(40):  # falls that the measurement did not see, with stronger controls
        mujoco.mj_resetData(model, data)
        capacity._scatter(model, data, rng)
        for step in range(150):
            if step % 10 == 0:
                data.ctrl[:] += rng.normal(0.0, 1.0, model.nu)
            mujoco.mj_step(model, data)
            contacts, rows = max(contacts, data.ncon), max(rows, data.nefc)
    assert 0 < contacts <= nconmax / 1.2 and 0 < rows <= njmax / 1.2
    assert capacity.measure(model, pairs) == (nconmax, njmax)


def pairs_of(model: mujoco.MjModel) -> np.ndarray:
    return mujoco_warp.put_model(model_without_autoreset(model)).nxn_geom_pair_filtered.numpy()


def model_without_autoreset(model: mujoco.MjModel) -> mujoco.MjModel:
    model = copy.deepcopy(model)
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model


def test_the_broad_phase_lets_no_more_pairs_through_than_are_counted() -> None:
    """The pairs that pass it need room like contacts do, and C has no such number to ask."""
    scene = make_scene("go2", "full")
    model, rng, data = scene.model, np.random.default_rng(3), mujoco.MjData(scene.model)
    pairs = pairs_of(model)
    physics: Any = start(scene, 1)
    most = 0
    for _ in range(30):
        mujoco.mj_resetData(model, data)
        capacity._scatter(model, data, rng)
        data.qpos[2] = rng.uniform(0.0, 0.4)
        physics.write(everyone(physics), qpos=torch.tensor(data.qpos[None], dtype=torch.float32))
        mujoco_warp.fwd_position(physics._model, physics._data)
        mujoco.mj_kinematics(model, data)
        passed = int(physics._data.ncollision.numpy()[0])
        assert passed <= capacity._near(model, data, pairs)
        most = max(most, passed)
    assert most > 4


# ---------------------------------------------------------------------------------------------------------- memory, features


class Counting:
    """Warp's allocator of host memory, counting."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._sizes, self._live, self.peak = inner, {}, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def allocate(self, size: int) -> int:
        address = self._inner.allocate(size)
        self._sizes[address] = size
        self._live += size
        self.peak = max(self.peak, self._live)
        return address

    def deallocate(self, address: int, size: int) -> None:
        self._live -= self._sizes.pop(address, 0)
        self._inner.deallocate(address, size)


@contextmanager
def counted() -> Iterator[Counting]:
    device: Any = warp.get_device("cpu")
    device.default_allocator = counting = Counting(device.default_allocator)
    try:
        yield counting
    finally:
        device.default_allocator = counting._inner


def fits(monkeypatch: pytest.MonkeyPatch, scene: Scene, rows: int, free: int) -> str:
    """What is said of so many robots on a GPU with so much free memory; nothing is allocated there."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    try:
        engine._check_memory(scene.model, rows, 8, 40, torch.device("cuda:0"))
    except UserError as error:
        return str(error)
    return ""


def test_too_little_gpu_memory_is_said_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    free = 2**30
    said = fits(monkeypatch, scene, 10**6, free)
    assert said.startswith("env.num_envs: 1000000 robots need about ") and "\n" not in said
    assert " GiB of cuda:0, which has 1.0 GiB free; at most " in said
    most = int(said.rpartition("at most ")[2].removesuffix(" fit").replace(",", ""))
    assert most > 1000
    assert fits(monkeypatch, scene, most, free) == "" and fits(monkeypatch, scene, most + 1, free) != ""


def test_the_estimate_covers_what_is_allocated(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    rows = 64
    with counted() as data:
        physics: Any = start(scene, rows, nconmax=8, njmax=40)
    physics.step(torch.zeros(rows, 12))
    with counted() as scratch:
        mujoco_warp.step(physics._model, physics._data)
    assert scratch.peak > 0
    own = sum(t.numel() * t.element_size() for t in vars(physics).values() if isinstance(t, Tensor))
    needed = data.peak + scratch.peak + own
    assert fits(monkeypatch, scene, rows, needed) != ""  # so much is not enough,
    assert fits(monkeypatch, scene, rows, 2 * needed) == ""  # and twice as much is


SIMPLE = """
<mujoco>
  <option {option}><flag {flag}="enable"/></option>
  <worldbody>
    <geom type="plane" size="0 0 1"/> <body pos="0 0 1"><freejoint/> <geom type="box" size="0.1 0.1 0.1"/></body>
  </worldbody>
</mujoco>
"""
PLAIN = {"option": "", "flag": "energy"}


def simple(**changes: str) -> Any:
    model = mujoco.MjModel.from_xml_string(SIMPLE.format(**PLAIN | changes))
    return SimpleNamespace(model=model, frames=(), frame_orientation=False, sensors={}, joint_torque=False, foot_touchdown=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"option": 'solver="PGS"'},
        {"option": 'integrator="discrete" noslip_iterations="3"'},
        {"flag": "fwdinv"},
        {"flag": "override"},
    ],
    ids=str,
)
def test_what_warp_lacks_is_said_in_one_line(changes: dict[str, str]) -> None:
    start(simple(), 1, nconmax=8, njmax=32)
    with pytest.raises(UserError) as caught:
        start(simple(**changes), 1, nconmax=8, njmax=32)
    said = str(caught.value)
    assert said.startswith("physics.engine: warp cannot run this model: ") and said.endswith("; use native")
    assert "\n" not in said and ".;" not in said


def test_settings_reach_the_engine(scene: Scene) -> None:
    option: Any = start(scene, 1)._model.opt
    # neither waits for the host nor prints from the device
    assert not option.graph_conditional and not option.warn_overflow
    given: Any = start(scene, 2, nconmax=40, njmax=50)
    assert given.capacity == {"physics.nconmax": 40, "physics.njmax": 50}
    assert (given._data.naconmax, given._data.njmax) == (80, 50)
    # raising the setting that an overflow names makes room for the sensors' matches too
    assert given._model.opt.contact_sensor_maxmatch == 40


def test_sensors_are_those_of_the_last_substep(scene: Scene) -> None:
    """Those of the others are not computed: they have no influence on anything."""
    physics, reference = start(scene, 3), start(scene, 3)
    held = stand(physics, scene)
    stand(reference, scene)
    for step in range(4):
        ctrl = held + 0.2 * torch.randn(3, held.shape[-1], generator=torch.Generator().manual_seed(step))
        physics.step(ctrl)
        reference._ctrl.copy_(ctrl)
        for _ in range(reference._decimation):  # with all sensors
            reference._advance(1)
        reference._finish()
        assert torch.equal(physics.qpos, reference.qpos) and torch.equal(physics.qvel, reference.qvel)
        assert all(torch.equal(value, reference.sensors[name]) for name, value in physics.sensors.items())
    assert all(value.any() for value in physics.sensors.values())


def test_loading_the_kernels_is_announced_and_timed(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PROGRESS", 0.0)
    caplog.set_level(logging.INFO, "embodied_rl")
    physics = start(scene, 5, njmax=24)  # other sizes than any other test's, so that some kernel is loaded here
    qpos = physics.qpos.clone()
    stand(physics, scene)
    physics._build()
    first, *progress, last = caplog.messages
    assert first.startswith("building the physics kernels; the first time that takes a minute, then they are kept in ")
    assert last.startswith("built in ") and " compiled, " in last and last.endswith(" from the cache")
    assert progress and all("modules of kernels after " in line for line in progress)
    # the step that built them is taken back
    assert not torch.equal(physics.qpos, qpos) and torch.equal(physics.qpos, standing(scene, 5)[0])
    caplog.clear()
    physics.step(torch.zeros(5, 12))
    assert caplog.messages == []


# --------------------------------------------------------------------------------------------------------------- capture


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stands for Warp's side of a capture, and notes what is asked of it."""
    calls: list[tuple] = []

    @contextmanager
    def scoped(stream: Any, sync_enter: bool = True) -> Iterator[Any]:
        calls.append(("scope", stream, sync_enter))
        yield stream
        calls.append(("leave", stream))

    monkeypatch.setattr(engine, "_WRAPPERS", {})
    monkeypatch.setattr(warp, "stream_from_torch", lambda stream: SimpleNamespace(of=stream.cuda_stream))
    monkeypatch.setattr(warp, "ScopedStream", scoped)
    monkeypatch.setattr(warp, "capture_begin", lambda stream, external: calls.append(("begin", stream, external)))
    monkeypatch.setattr(warp, "capture_end", lambda stream: calls.append(("end", stream)) or ("kept", len(calls)))
    return calls


def made(scene: Scene, calls: list[tuple]) -> Any:
    """An engine; what was asked of Warp to make it is forgotten."""
    physics = start(scene, 1)
    calls.clear()
    return physics


def test_a_capture_joins_torchs_own(scene: Scene, fake_cuda: list[tuple]) -> None:
    physics, stream = made(scene, fake_cuda), SimpleNamespace(cuda_stream=77)
    with physics.capture(stream):
        fake_cuda.append(("body",))
    names = [call[0] for call in fake_cuda]
    assert names == ["scope", "begin", "body", "end", "leave"]
    wrappers = {id(call[1]) for call in fake_cuda if len(call) > 1}
    assert len(wrappers) == 1  # Warp finds a capture by the wrapper's identity
    assert fake_cuda[0][2] is False and fake_cuda[1][2] is True
    assert physics._captures == [("kept", 4)]
    with physics.capture(SimpleNamespace(cuda_stream=77)), physics.capture(SimpleNamespace(cuda_stream=78)):
        pass
    wrappers = {id(call[1]): call[1].of for call in fake_cuda if len(call) > 1}
    assert sorted(wrappers.values()) == [77, 78]  # one wrapper for each stream, whoever asks
    with pytest.raises(RuntimeError, match="geom_friction is expanded after a capture"):
        physics.expand("geom_friction")


def test_a_capture_that_fails_is_ended(scene: Scene, fake_cuda: list[tuple]) -> None:
    physics = made(scene, fake_cuda)
    with pytest.raises(ZeroDivisionError), physics.capture(SimpleNamespace(cuda_stream=1)):
        raise ZeroDivisionError
    assert [call[0] for call in fake_cuda] == ["scope", "begin", "end"]


@pytest.mark.parametrize(
    ("driver", "pool", "verify", "said"),
    [
        ((12, 4), True, False, None),
        ((13, 0), True, False, None),
        ((12, 2), True, False, "the NVIDIA driver is one for CUDA 12.2, and capturing needs one for 12.4"),
        (None, True, False, "there is no NVIDIA driver, and capturing needs one for 12.4"),
        ((12, 8), False, False, "cuda:0 has no memory pool (cudaMallocAsync), where kernels find their memory during a capture"),
        ((12, 8), True, True, "warp.config.verify_cuda is set, which synchronizes after every kernel"),
    ],
)
def test_where_capture_is_impossible_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] | None, pool: bool, verify: bool, said: str | None
) -> None:
    monkeypatch.setattr(warp, "get_cuda_driver_version", lambda: driver)
    monkeypatch.setattr(warp, "is_mempool_enabled", lambda device: pool)
    monkeypatch.setattr(warp.config, "verify_cuda", verify)
    assert machine.graph_error(torch.device("cuda:0")) == said


def test_the_step_then_runs_without_a_graph(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine is asked for `cuda`, which stands for the CPU here: nothing but the decision is looked at."""
    made: dict[str, WarpPhysics] = {}
    monkeypatch.setattr(engine, "_check_memory", lambda *_: None)
    get_device: Callable = warp.get_device
    monkeypatch.setattr(warp, "get_device", lambda name=None: get_device("cpu" if name else None))
    for graph, reason in ((True, None), (True, "an old driver"), (False, "an old driver")):
        monkeypatch.setattr(machine, "graph_error", lambda device, reason=reason: reason)
        settings = PhysicsSettings(engine="warp", graph=graph)
        made[f"{graph} {reason}"] = engine.WarpPhysics(scene, 1, settings, torch.device("cuda"))
    assert [physics.capturable for physics in made.values()] == [True, False, True]
    assert caplog.messages == ["physics.graph: an old driver; the step runs without a graph, several times slower"]
