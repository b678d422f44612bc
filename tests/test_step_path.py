"""The way of a step has fixed shapes and reads nothing on the host: what lets a CUDA graph hold it.

Three guards.  One walks a step of every page, on the engine that is captured, under a dispatch mode that fails on whatever waits
for the device or depends on data; one runs it on the device `meta`, whose tensors have no data at all, and where a constant that
was left on the CPU does not go unseen; where there is a GPU, CUDA itself is told to fail on a synchronization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embodied_rl import make_env, training
from embodied_rl.config import config_names, load
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.env import Env
from embodied_rl.learn.run import Run
from embodied_rl.mdp.quarantine import Quarantine
from embodied_rl.mdp.randomize import randomize
from embodied_rl.physics.tensors import TensorPhysics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

warp = pytest.importorskip("warp")

ROWS = 8
#: Eager, for compiled code is seen by no guard; episodes that end within a few steps.
SMALL = ["env.compile=false", f"env.num_envs={ROWS}", "env.episode_s=0.1", "physics.njmax=64", "physics.nconmax=16"]
#: What the pages do not use: every other term, past and delayed observations, latency, a floor of rewards or none.
EVERYTHING = [
    "observations.actor.foot_height={}",
    "observations.actor.foot_air_time={}",
    "observations.actor.joint_torque={history: 3, delay: [0, 2]}",
    "observations.actor.joint_pos={noise: 0.01, clip: [-1.0, 1.0], history: 2}",
    "actions.joint_position.latency=[0, 3]",
    "commands.velocity.heading=true",
    *(f"rewards.{name}={{weight: -0.01}}" for name in ("energy", "foot_slip", "joint_acceleration", "torques")),
    "rewards.alive={weight: 0.1}",
    "rewards.base_height={weight: -1.0, target: 0.3}",
    "rewards.feet_air_time={weight: 0.1}",
    "terminations.out_of_bounds={distance: 5.0}",
    "events.stiffness={term: randomize, quantity: stiffness, operation: scale, range: [0.9, 1.1], per: element, when: reset}",
    "events.payload={term: randomize, quantity: mass, of: base, operation: add, range: [-1.0, 2.0]}",
    "events.loss={term: randomize, quantity: friction_loss, operation: add, range: [0.0, 0.1], when: interval, interval_s: 0.1}",
    "env.reward_floor=null",
]
#: The pages whose robots this process simulates itself.
OURS = [name for name in sorted(config_names()) if (page := load(name)).env.source is None and page.pool.workers is None]
#: What other robots have beside go2, go1_flat shows; what full collisions are, the page with everything else.
REPEATED = ("a1_flat", "anymal_c_flat", "go1_flat_full", "go2_flat_full")
PAGES = [
    *(pytest.param((name, []), marks=[pytest.mark.slow] if name in REPEATED else []) for name in OURS),
    ("go2_flat_full", EVERYTHING),
]


class HostReadError(AssertionError):
    """Something on the way of a step waited for the device, or its shape depends on data."""


class Guard(TorchDispatchMode):
    """Fails on operations that synchronize with the host, or whose shapes depend on data."""

    #: By the name of the operation; overloads alike.
    FORBIDDEN = frozenset(
        [
            *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
            *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique", "unique2", "_unique2", "unique_dim"),
            *("unique_consecutive", "bincount", "histc", "repeat_interleave"),
            # a tensor of Python numbers or of NumPy's: on a GPU, a copy from the host
            *("lift_fresh", "lift"),
        ]
    )
    INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise HostReadError(name)
        if name in self.INDEXING:
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    raise HostReadError(f"{name} with a mask")
        if name in ("_to_copy", "copy_", "_copy_from"):
            devices = {one.device for one in args if isinstance(one, Tensor)} | {(kwargs or {}).get("device")}
            if len(devices - {None}) > 1:
                raise HostReadError(f"{name} between devices")
        return func(*args, **(kwargs or {}))


def _reads(what: str) -> Callable:
    def method(*_: Any, **__: Any) -> Any:
        raise HostReadError(what)

    return method


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Whatever waits for the device fails, also where on the CPU it is no operation of torch."""
    names = ("numpy", "tolist", "cpu", "__array__", "__bool__", "item")
    with pytest.MonkeyPatch.context() as patch, Guard():
        for name in names:
            patch.setattr(Tensor, name, _reads(f"Tensor.{name}"))
        patch.setattr(torch, "from_numpy", _reads("torch.from_numpy"))
        patch.setattr(warp.array, "numpy", _reads("warp.array.numpy"))
        for name in ("synchronize", "synchronize_device", "synchronize_stream", "synchronize_event"):
            patch.setattr(warp, name, _reads(f"warp.{name}"))
        yield


def numbers() -> Tensor:
    return torch.arange(6.0)


READS = [
    *("x.sum().item()", "float(x.sum())", "int(x.sum())", "1 if x.any() else 0", "bool((x > 2).all())", "x[:x.sum().long()]"),
    *("range(5)[x.sum().long()]", "x.tolist()", "x.numpy()", "np.asarray(x)", "x.cpu()", "torch.equal(x, x)"),
    *("x.nonzero()", "torch.where(x > 2)", "torch.argwhere(x > 2)", "x[x > 2]", "x.__setitem__(x > 2, 0.0)", "x.unique()"),
    *(
        "x.index_put_((x > 2,), torch.zeros(()))",
        "x.masked_select(x > 2)",
        "x.long().bincount()",
        "x.repeat_interleave(x.long())",
    ),
    *("x + torch.tensor([1.0] * 6)", "x + torch.as_tensor([1.0] * 6)", "torch.from_numpy(np.ones(6))", "torch.allclose(x, x)"),
    *("x.to('meta')", "x.copy_(torch.empty(6, device='meta'))"),
    *("warp.zeros(3, device='cpu').numpy()", "warp.synchronize()", "warp.synchronize_device('cpu')"),
]


@pytest.mark.parametrize("read", READS)
def test_the_guard_sees(read: str) -> None:
    x = numbers()
    with no_host_reads(), pytest.raises(HostReadError):
        eval(read, {"x": x, "torch": torch, "np": np, "warp": warp})


def test_the_guard_lets_through_what_a_step_may_do() -> None:
    x, mask, places = numbers(), numbers() > 2, torch.tensor([3, 1])
    with no_host_reads():
        y = torch.where(mask, 0.0, x) + x[places].sum() + torch.zeros(6) + torch.arange(6)
        y.copy_(x.masked_fill(mask, 1.0))
        y.index_copy_(0, places, x[:2])
        x[places] = y[places] * mask.float().mean()
        assert len(y.clamp(min=0.0).double().float()) == 6
    assert x.isfinite().all()


@pytest.fixture
def env(request: pytest.FixtureRequest) -> Iterator[Env]:
    pytest.importorskip("mujoco_warp")
    name, overrides = request.param
    with torch.no_grad():
        env = make_env.make(name, [*SMALL, *overrides], engine="warp", device="cpu")
        env.step(torch.zeros(ROWS, env.num_actions))
        yield env
    env.close()


@pytest.mark.parametrize("env", PAGES, indirect=True, ids=lambda page: page[0] + (" and more" if page[1] else ""))
def test_a_step_reads_nothing_on_the_host(env: Env) -> None:
    blown = torch.full_like(env.physics.qvel, torch.nan)
    everyone, one = torch.ones(ROWS, dtype=torch.bool), torch.arange(ROWS) == 2
    for step in range(8):
        actions = 0.8 * torch.randn(ROWS, env.num_actions, generator=torch.Generator().manual_seed(step))
        with no_host_reads():
            if step == 3:
                env.physics.write(one, qvel=blown)
            env.step(actions)
    with no_host_reads():  # what a page may ask of its engine that these do not
        env.physics.step(torch.zeros(ROWS, env.page.physics.decimation, env.physics.model.nu))
        env.physics.step(
            torch.zeros(ROWS, env.physics.model.nu),
            lambda physics, substep: physics.qpos[:, -physics.model.nu :] * (1.0 + substep),
        )
        env.physics.reset(everyone)
    totals = env.drain_totals()
    assert totals["unstable"] == 1.0 and totals["episodes"] >= ROWS  # quarantine and resets were on the way


def test_a_collected_step_reads_nothing_on_the_host(tmp_path: Path) -> None:
    """The policy, the step and the writing of both into the rollout: what is captured together."""
    pytest.importorskip("mujoco_warp")
    small = [*SMALL, "train.steps=4", "ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"]
    page = make_env.resolve("go2_flat", small, engine="warp", device="cpu")
    trainer = training.make_trainer(page, Run.create(page, tmp_path / "run"))
    next(trainer.train(1))
    collector: Any = trainer.collector
    before = collector._rollout.rewards.clone()
    collector._slot.zero_()
    with torch.no_grad(), no_host_reads():
        for _ in range(4):
            collector._step()
    assert not torch.equal(collector._rollout.rewards, before)


def _box_foot(hopper: Callable[[Path, str], None], folder: Path) -> Scene:
    """A robot whose foot's underside depends on how it is turned."""
    hopper(folder, "/")
    model = folder / "hopper.xml"
    model.write_text(model.read_text().replace('type="sphere" size="0.02"', 'type="box" size="0.05 0.03 0.01"'))
    return build_scene(load_robot(str(folder)), collisions="feet", physics=PhysicsSettings(), needs={"foot_frames"})


def _columns_and_undersides(physics: TensorPhysics, scene: Scene) -> Callable[[], Tensor]:
    """Prepare what a step may do beside what the pages do."""
    feet, device = scene.feet(physics.device), physics.device
    mask, columns = torch.ones(ROWS, dtype=torch.bool, device=device), torch.tensor([2, 0], device=device)
    values = torch.ones(ROWS, 2, device=device)
    fields = ("geom_friction", "opt.gravity")
    for field in fields:
        physics.expand(field)

    def act() -> Tensor:
        for field in fields:
            physics.write_model(mask, field, columns, values)
        physics.refresh()
        return feet.undersides(physics.frame_pos, physics.frame_quat)

    return act


def test_columns_and_undersides_read_nothing_on_the_host(hopper: Callable[[Path, str], None], tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    from embodied_rl.physics.warp import WarpPhysics

    scene = _box_foot(hopper, tmp_path)
    physics = WarpPhysics(scene, ROWS, PhysicsSettings(engine="warp"), torch.device("cpu"))
    act = _columns_and_undersides(physics, scene)
    with no_host_reads():
        lowest = act()
    assert lowest.shape == (ROWS, 1) and lowest.isfinite().all()
    gravity = physics.expand("opt.gravity")
    assert torch.equal(gravity, torch.tensor([[1.0, 0.0, 1.0]]).expand(ROWS, 3))


def test_columns_and_undersides_need_no_data(hopper: Callable[[Path, str], None], tmp_path: Path) -> None:
    scene = _box_foot(hopper, tmp_path)
    act = _columns_and_undersides(MetaPhysics(scene, ROWS, 4), scene)
    assert act().is_meta


@pytest.mark.slow
def test_everything_is_compiled_before_a_capture() -> None:
    """The steps that go before it compile all that any later step needs, resets and quarantine among it."""
    pytest.importorskip("mujoco_warp")
    overrides = [one for one in SMALL if "compile" not in one]
    with torch.no_grad():
        env = make_env.make("go2_flat", ["env.compile=true", *overrides], engine="warp", device="cpu")
        for _ in range(3):
            env.advance(env._inputs)
        env.physics.qvel[2] = torch.nan
        with torch.compiler.set_stance("fail_on_recompile"):
            for step in range(12):
                env.step(0.8 * torch.randn(ROWS, env.num_actions, generator=torch.Generator().manual_seed(step)))
    totals = env.drain_totals()
    assert totals["unstable"] == 1.0 and totals["episodes"] >= ROWS
    env.close()


# ---------------------------------------------------------------------------------------------------------------- no data


class MetaPhysics(TensorPhysics):
    """An engine without data: its tensors have a shape, a type and a device of their own."""

    name = "meta"

    def __init__(self, scene: Scene, rows: int, decimation: int) -> None:
        data = mujoco.MjData(scene.model)
        names = ("qpos", "qvel", "qacc_warmstart", "xfrc_applied")
        state = {name: torch.zeros(rows, *getattr(data, name).shape, device="meta") for name in names}
        ctrl, sensed, forces = (
            torch.zeros(rows, n, device="meta") for n in (data.ctrl.size, data.sensordata.size, data.ctrl.size)
        )
        super().__init__(scene, decimation, state, ctrl, sensed, forces)

    def _advance(self, substeps: int, *, sense: bool = True) -> None:
        self.qpos.add_(0.0)

    def _expanded(self, field: str) -> Tensor:
        shape = (3,) if field == "opt.gravity" else getattr(self.model, field).shape
        return torch.zeros(self.num_envs, *shape, device="meta")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page[0] + (" and more" if page[1] else ""))
def test_a_step_needs_no_data_and_mixes_no_devices(page: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, overrides = page
    if any("height_scan" in group for group in load(shipped, overrides).observations.values()):
        pytest.skip("how many points its scan has is read on the host by design, when it is built")
    # on the host by design, when it is built
    for owner, name in ((TensorPhysics, "set_const"), (randomize, "_check"), (Quarantine, "refuse")):
        monkeypatch.setattr(owner, name, lambda *_: None)
    monkeypatch.setattr(make_env, "_engine", lambda page, scene, *_: MetaPhysics(scene, ROWS, page.physics.decimation))
    with torch.no_grad():
        env = make_env.make(shipped, [*SMALL, *overrides], engine="warp", device="cpu")
        env.reset()
        for _ in range(2):
            env.step(torch.zeros(ROWS, env.num_actions, device="meta"))
    assert env.obs["actor"].is_meta and env.result.rewards.is_meta
    with pytest.raises(RuntimeError):
        env.obs["actor"].sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        env.result.rewards[env.result.rewards > 0]
    with pytest.raises(RuntimeError):
        env.physics.qpos.add(torch.zeros(ROWS, env.physics.model.nq))


# --------------------------------------------------------------------------------------------------------------- on a GPU


@contextmanager
def no_synchronization() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page[0] + (" and more" if page[1] else ""))
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_on_the_gpu_waits_for_nothing(page: tuple[str, list[str]], graph: bool) -> None:
    name, overrides = page
    with torch.no_grad():
        env = make_env.make(name, [*SMALL, *overrides, f"physics.graph={str(graph).lower()}"], device="cuda")
        actions = torch.zeros(ROWS, env.num_actions, device="cuda")
        env.step(actions)
        torch.cuda.synchronize()
        with no_synchronization():
            for _ in range(10):
                env.step(actions)
    assert env.captured is graph
    env.close()
