"""MuJoCo Warp with nothing around it: the steps `engine`, `sweep` and `allocator` of gpu_steps.py."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import mujoco
import torch
from gpu_measure import gpu_work, host_microseconds, milliseconds, wait
from gpu_report import attempt, say, short
from torch import Tensor

#: Steps after which robots that were let fall stand on the ground.
LANDED = 25
NUMBERS_OF_ROBOTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
SOLVER_ITERATIONS = (1, 4, 8, 10)


def physics_alone(options: Namespace, num_envs: int, *overrides: str) -> tuple[Any, Tensor]:
    """The page's engine on its own, robots standing, and controls around that."""
    from embodied_rl.make_env import resolve
    from embodied_rl.mdp.bind import needed
    from embodied_rl.physics.warp import WarpPhysics
    from embodied_rl.robot import load_robot
    from embodied_rl.scene import build_scene

    given = [*options.overrides, *overrides]
    page = resolve(options.page, given, num_envs=num_envs, device=options.device, engine="warp")
    robot = load_robot(page.robot)
    scene = build_scene(robot, physics=page.physics, needs=needed(page), **page.scene.model_dump())
    physics = WarpPhysics(scene, num_envs, page.physics, torch.device(options.device))
    default = torch.tensor(robot.default_joint_pos, device=physics.device)
    qpos = physics.qpos.clone()
    if scene.root:
        qpos[:, scene.root.qpos + 2] = robot.base_height
    qpos[:, list(scene.qpos_address)] = default
    everyone = torch.ones(num_envs, dtype=torch.bool, device=physics.device)
    physics.write(everyone, qpos=qpos, qvel=torch.zeros_like(physics.qvel))
    noise = 0.2 * torch.randn(num_envs, len(default), generator=torch.Generator().manual_seed(0))
    return physics, default + noise.to(physics.device)


@torch.no_grad()
def engine(options: Namespace, figures: dict[str, Any]) -> None:
    """Step eagerly, as a graph that torch owns, as a graph of Warp's own: are they the same, how fast are they."""
    import warp

    from embodied_rl import machine
    from embodied_rl.cuda_graph import CudaGraph

    cuda = options.device != "cpu"
    figures["driver"], figures["warp_version"] = warp.get_cuda_driver_version(), warp.config.version
    if cuda:
        figures["graph_error"] = machine.graph_error(torch.device(options.device))
        figures["triton_error"] = machine.triton_error()
        device = warp.get_device(options.device)
        figures["warp"] = {"arch": device.arch, "output": device.get_cuda_output_format(), "mempool": device.is_mempool_enabled}
    started = time.perf_counter()
    physics, ctrl = physics_alone(options, options.num_envs)
    physics.step(ctrl)
    wait()
    figures["make_and_first_step_s"] = time.perf_counter() - started
    for _ in range(10):
        physics.step(ctrl)
    figures["finite"] = bool(physics.qpos.isfinite().all())
    figures["overflow"] = physics.drain_overflow()
    say(short(figures))
    attempt(figures, "eager_ms", lambda: milliseconds(lambda: physics.step(ctrl)))
    if not cuda:
        say("graphs: skipped, they need a GPU")
        return
    rows = torch.arange(options.num_envs, device=physics.device)
    state = physics.snapshot(rows)
    physics.step(ctrl)
    wanted = physics.qpos.clone(), physics.qvel.clone()
    physics.restore(rows, state)

    def graph_of_torch() -> dict[str, Any]:
        before, started = torch.cuda.mem_get_info()[0], time.perf_counter()
        graph = CudaGraph(lambda: physics.step(ctrl), physics.device, physics)
        took = time.perf_counter() - started
        physics.restore(rows, state)
        graph()
        wait()
        off = [float((a - b).abs().max()) for a, b in zip((physics.qpos, physics.qvel), wanted, strict=True)]
        figures_ = {"capture_s": took, "off_by": off, "ms": milliseconds(graph), "host_us": host_microseconds(graph)}
        return figures_ | {"MiB": (before - torch.cuda.mem_get_info()[0]) / 2**20, **gpu_work(graph, 5)}

    def graph_of_warp() -> dict[str, Any]:
        with warp.ScopedDevice(physics._warp_device):
            with warp.ScopedCapture() as captured:
                physics._advance(physics._decimation)
            assert captured.graph
            return {"ms": milliseconds(lambda graph=captured.graph: warp.capture_launch(graph)), "what": "substeps alone"}

    attempt(figures, "graph_of_torch", graph_of_torch)
    attempt(figures, "graph_of_warp", graph_of_warp)
    figures["finite_after"] = bool(physics.qpos.isfinite().all())


@torch.no_grad()
def sweep(options: Namespace, figures: dict[str, Any]) -> None:
    """Step many numbers of robots, with more and fewer iterations of the solver, with a loop that ends early."""
    from embodied_rl.cuda_graph import CudaGraph

    cuda = options.device != "cpu"

    def measure(num_envs: int, *overrides: str, tweak: Callable[[Any], None] = lambda physics: None) -> dict[str, Any]:
        free = torch.cuda.mem_get_info()[0] if cuda else 0
        physics, ctrl = physics_alone(options, num_envs, *overrides)
        tweak(physics)
        for _ in range(3):
            physics.step(ctrl)
        step = CudaGraph(lambda: physics.step(ctrl), physics.device, physics) if cuda else lambda: physics.step(ctrl)
        for _ in range(LANDED):
            step()
        ms = milliseconds(step)
        mib = (free - torch.cuda.mem_get_info()[0]) / 2**20 if cuda else 0
        return {"ms": ms, "env_steps_per_s": 1000.0 * num_envs / ms, "MiB": mib, "finite": bool(physics.qpos.isfinite().all())}

    for num_envs in NUMBERS_OF_ROBOTS if cuda else (options.num_envs, 2 * options.num_envs):
        attempt(figures, f"{num_envs} robots", lambda num_envs=num_envs: measure(num_envs))
    if not cuda:
        say("solver iterations and conditional graphs: skipped, they need a GPU")
        return
    for iterations in SOLVER_ITERATIONS:
        given = f"physics.iterations={iterations}"
        attempt(figures, given, lambda given=given: measure(options.num_envs, given))
    tweaks = {
        "conditional": (early,),
        "10 iterations, conditional": (early, "physics.iterations=10"),
        "no smooth acceleration": (no_smooth_acceleration,),
        "no sensors": (no_sensors,),
        "as it is": (lambda physics: None,),
    }
    for name, (tweak, *overrides) in tweaks.items():
        attempt(figures, name, lambda tweak=tweak, given=overrides: measure(options.num_envs, *given, tweak=tweak))
    attempt(figures, "full collisions", lambda: measure(options.num_envs, "scene.collisions=full"))


def early(physics: Any) -> None:
    """Let the solver's loop end when all robots have converged."""
    physics._model.opt.graph_conditional = True


def no_smooth_acceleration(physics: Any) -> None:
    """Start the solver from the step before, without the unconstrained acceleration."""
    physics._model.opt.run_qacc_smooth = False


def no_sensors(physics: Any) -> None:
    """Leave the sensors out: what they cost."""
    physics._model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)


class TorchAllocator:
    """Warp's temporaries from torch's caching allocator, which during a capture is the graph's own pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size_in_bytes: int) -> int:
        return torch.cuda.caching_allocator_alloc(size_in_bytes, self._device, torch.cuda.current_stream(self._device))

    def deallocate(self, ptr: int, size_in_bytes: int) -> None:
        torch.cuda.caching_allocator_delete(ptr)


@torch.no_grad()
def allocator(options: Namespace, figures: dict[str, Any]) -> None:
    """Capture with the engine's temporaries as allocation nodes of the graph, and with those of torch's pool."""
    import warp

    from embodied_rl.cuda_graph import CudaGraph

    if options.device == "cpu":
        figures["skipped"] = "it needs a GPU"
        say("allocator: skipped, it needs a GPU")
        return

    def measure(pool: bool) -> dict[str, Any]:
        physics, ctrl = physics_alone(options, options.num_envs)
        for _ in range(3):
            physics.step(ctrl)
        with warp.ScopedAllocator(physics._warp_device, TorchAllocator(physics.device)) if pool else nullcontext():
            graph = CudaGraph(lambda: physics.step(ctrl), physics.device, physics)
        for _ in range(LANDED):
            graph()
        result = {"ms": milliseconds(graph), "host_us": host_microseconds(graph), **gpu_work(graph, 5)}
        return result | {"finite": bool(physics.qpos.isfinite().all())}

    for name in ("allocation nodes", "torch's pool", "allocation nodes again", "torch's pool again"):
        attempt(figures, name, lambda name=name: measure(name.startswith("torch")))
