"""From a page to an environment: the only place that names engines and sources.

It imports no learner, so that a simulator far away can build its environments with it.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.blocks import BLOCK, Rowwise, in_blocks
from embodied_rl.config import Page, override
from embodied_rl.config import load as load_page
from embodied_rl.env import Env
from embodied_rl.errors import UserError, install_hint
from embodied_rl.mdp.bind import Terms, driven, needed
from embodied_rl.mdp.ground import make_ground
from embodied_rl.physics.native import NativePhysics
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, SceneError, build_scene
from embodied_rl.sources.env import make_source
from embodied_rl.vector_env import VectorEnv
from embodied_rl.waiting import Waiting

log = logging.getLogger("embodied_rl")


def make(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
    measure: Iterable[str] = (),
    env_ids: Tensor | None = None,
) -> Env:
    """Make an environment of a page; see `embodied_rl.make`.

    Args:
        config: the page, its name or its path.
        overrides: see `embodied_rl.make`.
        num_envs: see `embodied_rl.make`.
        device: see `embodied_rl.make`.
        engine: see `embodied_rl.make`.
        seed: see `embodied_rl.make`.
        measure: what to measure beside what the page's terms need (`joint_torque`).
        env_ids: global ids of the environments to build, int64 (N,), where they are a part of the page's.
    """
    if env_ids is not None:
        num_envs = len(env_ids)
    page = resolve(config, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)
    scene = make_scene(page, measure)
    device_ = device_of(page)
    compile_ = compiler(page, device_)
    env_ids = torch.arange(page.env.num_envs) if env_ids is None else env_ids
    making = Waiting(f"{page.name}: making {page.env.num_envs} robots on the engine {page.physics.engine}")
    with making, torch.no_grad():  # from the first call on: a compiled function has a variant for each
        physics = _engine(page, scene, device_, compile_)
        terms = Terms(page, scene, physics.device)
        return Env(page, scene, physics, terms, env_ids.to(physics.device), compile_)


def make_scene(page: Page, measure: Iterable[str] = ()) -> Scene:
    """Build what a page simulates.

    Args:
        page: the page.
        measure: what to measure beside what its terms need, where the robot has it.

    Raises:
        UserError: the page has no robot, or one that its terms do not fit.
    """
    if page.env.source:
        raise UserError(
            f"{page.name}: env.source: {page.env.source}: make builds pages with a robot; embodied-rl train takes this one"
        )
    robot = load_robot(page.robot)
    readers = needed(page)
    beside = {need for need in measure if robot.feet or not need.startswith("foot_")}
    needs, controls = readers.keys() | beside, driven(page, robot)
    try:
        return build_scene(
            robot, physics=page.physics, needs=needs, controls=controls, terrain=make_ground(page), **page.scene.model_dump()
        )
    except SceneError as error:
        if error.need not in readers:
            raise
        raise SceneError(f"{readers[error.need]}: {str(error).removeprefix('a term ')}") from None


def make_vector(page: Page, env_ids: Tensor) -> VectorEnv:
    """Make a page's environments of these global ids, whoever's they are.

    Raises:
        UserError: they cannot be made here.
    """
    return make_source(page, env_ids) if page.env.source else make(page, env_ids=env_ids)


def device_of(page: Page) -> torch.device:
    """Where the page's robots live.

    Raises:
        UserError: there is no such device.
    """
    if page.physics.device == "auto":
        return torch.device("cuda" if page.physics.engine != "native" and torch.cuda.device_count() else "cpu")
    return _found(page.physics.device, "physics.device", "--device cpu")


def learner_device(page: Page) -> torch.device:
    """Where the page's learner computes: anywhere, if the robots live on the CPU or in a pool; else where they are.

    Raises:
        UserError: there is no such device, or robots on a GPU have their learner elsewhere.
    """
    robots, name = device_of(page), page.train.device
    if name == "auto":
        return torch.device("cuda") if page.pool.has_processes and torch.cuda.device_count() else robots
    device = _found(name, "train.device", "cpu")
    if robots.type == "cpu":
        return device
    if device.type == "cpu" or device.index not in (None, robots.index or 0):
        raise UserError(
            f"train.device: {name}: the robots are on {robots}, and robots on a GPU have their learner there; leave the key out, "
            "or take physics.engine: native, whose robots are on the CPU"
        )
    return robots


def _found(name: str, key: str, other: str) -> torch.device:
    """Make a device of its name, which stands under a key of the page."""
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"this machine has {count}" if count else machine.cuda_error()
        raise UserError(f"{key}: {name}: {found}; take {other}")
    return device


def _engine(page: Page, scene: Scene, device: torch.device, compile_: Callable) -> Physics:
    """Make the page's engine; an extra is imported when it is asked for."""
    settings, num_envs = page.physics, page.env.num_envs
    if settings.engine == "native":
        return NativePhysics(scene, num_envs, settings.decimation, settings.num_threads, compile_)
    try:
        if settings.engine == "warp":
            from embodied_rl.physics.warp import WarpPhysics

            return WarpPhysics(scene, num_envs, settings, device, compile_)
        if settings.engine == "isaacgym":
            from embodied_rl.physics.isaacgym import IsaacGymPhysics

            return IsaacGymPhysics(scene, num_envs, settings, device, compile_)
        from embodied_rl.physics.mjx import MjxPhysics

        return MjxPhysics(scene, num_envs, settings.decimation, device, compile_)
    except ImportError as error:
        extra = {"warp": "cuda"}.get(settings.engine, settings.engine)
        raise UserError(f"physics.engine: {settings.engine}: {error}; {install_hint(extra)}, or take engine: native") from None


def check_interpreter(page: Page) -> None:
    """Refuse a page whose engine runs in another Python that is not there, before anything is made.

    Raises:
        UserError: it is not; one line.
    """
    if page.physics.engine == "isaacgym":
        from embodied_rl.physics.isaacgym_process import interpreter

        interpreter()


def left_out(page: Page, env: Env) -> list[str]:
    """Tell what the page's engine leaves out of an environment that another engine runs, a line each.

    Raises:
        UserError: it cannot simulate that; one line.
    """
    if page.physics.engine != "isaacgym":  # the others refuse or warn when they are made, here as anywhere
        return []
    from embodied_rl.physics.isaacgym_model import inspect_scene

    return inspect_scene(env.scene, env.terms.drawn)


def resolve(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Page:
    """Change a page as the command line says.

    Raises:
        ConfigError: the page or an override is wrong, one line for each error.
    """
    if device is not None and device.startswith("cuda") and engine is None:
        engine = "warp"  # C runs on the CPU
    if device is None and engine is not None:
        device = "auto"  # what a page says of another engine's device does not hold for this one
    settings = {"env.num_envs": num_envs, "physics.engine": engine, "physics.device": device, "env.seed": seed}
    given = [*overrides, *(f"{path}={value}" for path, value in settings.items() if value is not None)]
    if isinstance(config, Page):
        return override(config, given) if given else config
    return load_page(str(config), given)


def compiler(page: Page, device: torch.device) -> Callable:
    """Choose what wraps the parts of the step: torch.compile where the page wants it and a compiler is there."""
    if page.env.compile is False:
        return identity
    error = machine.cpp_error() if device.type == "cpu" else machine.triton_error()
    if error:
        if page.env.compile is True:
            raise UserError(f"env.compile: true: {error}; install one (g++), or set env.compile to auto or false")
        log.warning("%s: the step runs without torch.compile, a little slower; `embodied-rl doctor` says more", error)
        return identity
    torch._dynamo.config.allow_rnn = True  # else it refuses GRUs and LSTMs, for fear of how long it takes to unroll them in time
    return lambda function: _compiled(function, page, device)


def _compiled(function: Callable, page: Page, device: torch.device) -> Callable:
    """Wrap a function in torch.compile; the first call, which compiles, says so.

    One of rows is compiled for a block of them on the CPU, any other for the shapes of this page alone.
    """
    work = function if isinstance(function, Rowwise) else None
    if work is not None:
        function = work.function
    blocks = work is not None and device.type == "cpu"
    compiled: Callable | None = None
    owner, _, name = getattr(function, "__qualname__", type(function).__name__).rpartition(".")
    part = owner.lower() if name.startswith("__") else name.strip("_").replace("_", " ")
    robots = f"for {page.env.num_envs} robots"
    kept = f"for any {BLOCK} robots or more" if blocks and page.env.num_envs >= BLOCK else "for as many robots"

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal compiled
        if compiled is not None:
            return compiled(*arguments, **named)
        hint = f"kept on the disk {kept}; env.compile=false starts at once, and steps slower"
        with Waiting(f"{page.name}: compiling {part} {robots}", hint):
            if work is not None and blocks:
                compiled = in_blocks(Rowwise(_copied(work.function), work.rows))
            if compiled is None:
                compiled = torch.compile(_copied(function), fullgraph=True, dynamic=False)
            return compiled(*arguments, **named)

    return call


def _copied(function: Callable) -> Callable:
    """Give a function or bound method code of its own: torch.compile counts variants by code, and gives up at the ninth.

    Each environment compiles variants for its own shapes, so that a few of them in one process would be too many.
    """
    if isinstance(function, types.MethodType):
        return types.MethodType(_copied(function.__func__), function.__self__)
    if not isinstance(function, types.FunctionType):
        return function
    copied = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    copied.__defaults__, copied.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copied


def identity(function: Callable) -> Callable:
    """Return the function uncompiled."""
    return function
