"""The step as one CUDA graph: how it is captured, with CUDA played; and on a GPU, that it is the same step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.cuda_graph import CudaGraph
from embodied_rl.env import Env
from embodied_rl.errors import UserError

ROWS = 64


class FakeGraph:
    """Stands for torch's: it knows whether it was captured and how often it was launched."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def replay(self) -> None:
        self._events.append("replay")


class FakePhysics:
    """An engine that notes when it joins a capture."""

    device = torch.device("cuda", 1)

    def __init__(self, events: list[str]) -> None:
        self._events = events

    @contextmanager
    def capture(self, stream: Any) -> Iterator[None]:
        self._events.append(f"engine joins {stream}")
        try:
            yield
        finally:
            self._events.append("engine leaves")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plays torch's side of CUDA, and notes what happens."""
    noted: list[str] = []

    @contextmanager
    def graph(graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert pool == (0, 7)
        noted.append(f"capture of {stream}, {capture_error_mode}")
        failed = True
        try:
            yield
            failed = False
        finally:
            noted.append("end of capture")
            if failed:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    @contextmanager
    def device(device: torch.device) -> Iterator[None]:
        noted.append(f"on {device}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(noted))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: noted.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(device_index=1))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: noted.append(f"back on a stream of cuda:{stream.device_index}"))
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda index, pool, name=name: noted.append(f"{name} {index} {pool}"), raising=False)
    return noted


def test_torch_owns_the_capture_and_the_engine_joins_it(events: list[str]) -> None:
    collecting = []

    def step() -> None:
        collecting.append(gc.isenabled())
        events.append("step")

    physics: Any = FakePhysics(events)
    graph = CudaGraph(step, physics.device, physics)
    assert events == [
        "synchronize cuda:1",
        "on cuda:1",
        "capture of stream of cuda:1, thread_local",
        "engine joins stream of cuda:1",
        "step",
        "engine leaves",
        "end of capture",
    ]
    assert collecting == [False] and gc.isenabled()  # a collection may free memory, which a capture forbids
    events.clear()
    graph()
    graph()
    assert events == ["replay", "replay"]  # and the function is not called again


def fail() -> None:
    raise ValueError("cannot copy from the host during a capture\nand much more")


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(events: list[str], enabled: bool) -> None:
    physics: Any = FakePhysics(events)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        CudaGraph(lambda: None, physics.device, physics)
        assert gc.isenabled() is enabled
        with pytest.raises(UserError):
            CudaGraph(fail, physics.device, physics)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_a_capture_that_fails_says_what_went_wrong_first(events: list[str]) -> None:
    physics: Any = FakePhysics(events)
    with pytest.raises(UserError) as caught:
        CudaGraph(fail, physics.device, physics)
    said = "the step cannot be captured here: cannot copy from the host during a capture; set physics.graph=false"
    assert str(caught.value) == f"physics.graph: {said}"


def test_a_capture_that_fails_leaves_torch_as_it_was(events: list[str]) -> None:
    physics: Any = FakePhysics(events)
    with pytest.raises(UserError):
        CudaGraph(fail, physics.device, physics)
    assert events[-3:] == ["back on a stream of cuda:1", "_cuda_endAllocateToPool 1 (0, 7)", "_cuda_releasePool 1 (0, 7)"]


def test_a_step_that_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    small = ["env.compile=false", "physics.num_threads=1"]

    def graph(function: Any, device: Any, physics: Any, *, what: str) -> Any:
        raise UserError("physics.graph: the step cannot be captured here: why; set physics.graph=false")

    with torch.no_grad():
        env, reference = (make_env.make("go2_flat", small, num_envs=3, device="cpu") for _ in range(2))
        monkeypatch.setattr(env.physics, "capturable", True)
        monkeypatch.setattr(type(env), "captured", property(lambda self: self.physics.capturable))
        monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
        for step in range(3):
            given = 0.8 * torch.randn(3, 12, generator=torch.Generator().manual_seed(step))
            assert torch.equal(env.step(given).obs["actor"], reference.step(given).obs["actor"])
    assert len(caplog.messages) == 1 and "cannot be captured here: why" in caplog.messages[0]
    assert not env.captured
    env.close()
    reference.close()


def test_whatever_a_graph_reads_lives_as_long_as_it_does(events: list[str]) -> None:
    physics: Any = FakePhysics(events)
    alive = []

    class Owner:
        def __del__(self) -> None:
            alive.append(False)

    owner = Owner()
    graph = CudaGraph(lambda owner=owner: None, physics.device, physics)
    del owner
    gc.collect()
    assert alive == []
    del graph
    gc.collect()
    assert alive == [False]


@pytest.mark.parametrize("engine", ["native", pytest.param("warp", marks=pytest.mark.slow)])
def test_the_steps_before_a_capture_are_taken_back(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only see to it that everything is compiled; whatever they meet happens again, and then it counts."""
    pytest.importorskip({"native": "mujoco", "warp": "mujoco_warp"}[engine])
    small = ["env.compile=false", "env.episode_s=0.1", "physics.num_threads=1"]
    launched = []

    def graph(function: Any, device: Any, physics: Any, *, what: str) -> Any:
        return lambda: (launched.append(True), function())

    with torch.no_grad():
        env = make_env.make("go2_flat", small, num_envs=6, engine=engine, device="cpu")
        reference = make_env.make("go2_flat", small, num_envs=6, engine=engine, device="cpu")
        monkeypatch.setattr(Env, "captured", True)  # a CPU that stands for a GPU
        monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
        blown = torch.full_like(env.physics.qvel, torch.nan)
        for one in (env, reference):
            one.physics.write(torch.arange(6) == 2, qvel=blown)
        reference._run = lambda: reference.advance(reference._inputs)
        for step in range(12):
            given = 0.8 * torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
            found, expected = env.step(given), reference.step(given)
            for name in expected.obs:
                assert torch.equal(found.obs[name], expected.obs[name]), (step, name)
            assert torch.equal(found.rewards, expected.rewards) and torch.equal(found.valid, expected.valid)
    assert len(launched) == 12
    assert env.drain_totals() == reference.drain_totals()
    dumps, others = env.physics.drain_unstable(), reference.physics.drain_unstable()
    assert [dump["row"] for dump in dumps] == [dump["row"] for dump in others] == [2]
    env.close()
    reference.close()


# --------------------------------------------------------------------------------------------------------------- on a GPU


@contextmanager
def make(*overrides: str, page: str = "go2_flat") -> Iterator[Env]:
    with torch.no_grad():
        # uncompiled, which is sooner built and captured all the same; one test compiles
        small = ["env.compile=false", "env.episode_s=0.5"]
        env = make_env.make(page, [*small, *overrides], device="cuda", num_envs=ROWS)
        yield env
    env.close()


def actions(step: int) -> Tensor:
    return 0.8 * torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(step)).cuda()


def results(env: Env, step: int) -> dict[str, Tensor]:
    done = env.step(actions(step))
    flags = {"terminated": done.terminated, "truncated": done.truncated, "valid": done.valid}
    tensors = {**done.obs, **flags, "rewards": done.rewards, "qpos": env.physics.qpos}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "auto"])
def test_a_captured_step_is_the_eager_one(compiled: str) -> None:
    """But for the order of contacts and sums, which is any on a GPU: a few robots are at a contact's edge."""
    everyone = torch.arange(ROWS, device="cuda")
    with make("physics.graph=false") as eager, make(f"env.compile={compiled}") as captured:
        assert captured.captured and not eager.captured
        ends = off = 0
        for step in range(30):
            captured.restore(everyone, eager.snapshot(everyone))
            one, other = results(eager, step), results(captured, step)
            apart = [(other[name].float() - value.float()).abs().view(ROWS, -1).amax(1) > 1e-3 for name, value in one.items()]
            off += int(torch.stack(apart).any(0).sum())
            ends += int((one["terminated"] | one["truncated"]).sum())
        assert ends > ROWS and off <= 0.01 * 30 * ROWS


@pytest.mark.gpu
def test_capturing_takes_its_steps_back() -> None:
    with make() as env, make("physics.graph=false") as eager:
        before, obs = env.physics.qpos.clone(), env.obs["actor"].clone()
        env.capture(lambda: env.advance(env._inputs))
        assert torch.equal(env.physics.qpos, before) and torch.equal(env.obs["actor"], obs)
        assert not any(env.drain_totals().values())
        torch.testing.assert_close(results(env, 0)["qpos"], results(eager, 0)["qpos"], rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_robot_that_blows_up_recovers_inside_the_graph() -> None:
    with make() as env:
        for step in range(5):
            env.step(actions(step))
        env.drain_totals()
        bad = torch.arange(ROWS, device="cuda") == 7
        env.physics.write(bad, qvel=torch.full_like(env.physics.qvel, torch.nan))
        hit = results(env, 5)
        assert hit["valid"].tolist() == (~bad).tolist() and hit["rewards"][7] == 0.0
        assert all(value.isfinite().all() for value in hit.values())
        for step in range(6, 12):
            assert all(value.isfinite().all() for value in results(env, step).values())
        assert env.drain_totals()["unstable"] == 1.0
        (dump,) = env.physics.drain_unstable()
        assert dump["row"] == 7


@pytest.mark.gpu
def test_two_environments_are_captured_side_by_side() -> None:
    """Each graph has a stream and a pool of its own, and one that goes takes nothing of the other's with it."""
    with make() as one:
        one.step(actions(0))
        with make() as other:
            other.step(actions(0))
        del other
        gc.collect()
        for step in range(1, 10):
            assert results(one, step)["qpos"].isfinite().all()


@pytest.mark.gpu
def test_a_replay_allocates_nothing() -> None:
    with make() as env:
        given = actions(0)
        env.step(given)
        torch.cuda.synchronize()
        gc.collect()  # else another test's tensors may go meanwhile
        before = torch.cuda.memory_allocated()
        for _ in range(20):
            env.step(given)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_contacts_that_find_no_room_are_counted_inside_the_graph() -> None:
    with make("physics.njmax=8", "physics.nconmax=8", "env.random_episode_phase=false") as env:
        for _ in range(20):
            env.step(torch.zeros(ROWS, 12, device="cuda"))
        assert env.drain_totals()["overflow/physics.njmax"] == ROWS
