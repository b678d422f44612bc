"""The only place that names engines: from a page to an environment, from a run to its policy."""

from __future__ import annotations

import importlib
import logging
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rsl_rl.algorithms
import torch
from rsl_rl.models import MLPModel
from torch import Tensor

from embodied_rl import doctor
from embodied_rl.config import Page, override
from embodied_rl.config import load as load_page
from embodied_rl.env import ActionSpace, Env
from embodied_rl.errors import UserError
from embodied_rl.export import export
from embodied_rl.learn import checkpoint
from embodied_rl.learn.evaluate import FIRST_SEED, SEEDS, evaluate, evaluation_page
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.policy import Obs, Player
from embodied_rl.learn.rollout import Collector, LocalCollector
from embodied_rl.learn.run import Run, RunError, find_run
from embodied_rl.learn.train import Learner, Trainer
from embodied_rl.mdp.bind import Terms, needed
from embodied_rl.physics.native import NativePhysics
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

log = logging.getLogger("embodied_rl")

#: Iterations from which on compiling the update pays: it takes ten seconds and saves a fifth.
_LONG = 600


def make(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
    measure: Iterable[str] = (),
) -> Env:
    """An environment of a page; see `embodied_rl.make`.  `measure` adds to what the page's terms need (`joint_torque`)."""
    page = resolve(config, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)
    robot = load_robot(page.robot)
    needs = needed(page) | set(measure)
    scene = build_scene(robot, collisions=page.scene.collisions, physics=page.physics, needs=needs)
    device_ = device_of(page)
    compile_ = compiler(page, device_)
    physics = _engine(page, scene, device_, compile_)
    terms = Terms(page, scene, physics.device)
    env_ids = torch.arange(page.env.num_envs, device=physics.device)
    with torch.no_grad():
        return Env(page, scene, physics, terms, env_ids, compile_)


def device_of(page: Page) -> torch.device:
    """Where the page's robots live.

    Raises:
        UserError: there is no such device.
    """
    name, count = page.physics.device, torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count and page.physics.engine != "native" else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"this machine has {count}" if count else doctor.cuda_error()
        raise UserError(f"physics.device: {name}: {found}; take --device cpu")
    return device


def _engine(page: Page, scene: Scene, device: torch.device, compile_: Callable) -> Physics:
    """The page's engine; an extra is imported when it is asked for."""
    settings, num_envs = page.physics, page.env.num_envs
    if settings.engine == "native":
        return NativePhysics(scene, num_envs, settings.decimation, settings.num_threads, compile_)
    try:
        if settings.engine == "warp":
            from embodied_rl.physics.warp import WarpPhysics

            return WarpPhysics(scene, num_envs, settings, device, compile_)
        from embodied_rl.physics.mjx import MjxPhysics

        return MjxPhysics(scene, num_envs, settings.decimation, device, compile_)
    except ImportError as error:
        extra = {"warp": "cuda"}.get(settings.engine, settings.engine)
        raise UserError(
            f'physics.engine: {settings.engine}: {error}; pip install "embodied-rl[{extra}]", or take engine: native'
        ) from None


def resolve(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Page:
    """The page with what the command line says about it.

    Raises:
        ConfigError: the page or an override is wrong, one line for each error.
    """
    if device is not None and device.startswith("cuda") and engine is None:
        engine = "warp"  # C runs on the CPU
    if device is None and engine is not None:
        device = "auto"  # what a page says of another engine's device does not hold for this one
    settings = {"env.num_envs": num_envs, "physics.engine": engine, "physics.device": device, "env.seed": seed}
    given = [*overrides, *(f"{path}={value}" for path, value in settings.items() if value is not None)]
    return override(config, given) if isinstance(config, Page) else load_page(str(config), given)


def compiler(page: Page, device: torch.device) -> Callable:
    """What wraps the parts of the step: torch.compile where the page wants it and a compiler is there."""
    if page.env.compile is False:
        return _as_it_is
    error = doctor.cpp_error() if device.type == "cpu" else doctor.triton_error()
    if error:
        if page.env.compile is True:
            raise UserError(f"env.compile: true: {error}; install one (g++), or set env.compile to auto or false")
        log.warning("%s: the step runs without torch.compile, a little slower; `embodied-rl doctor` says more", error)
        return _as_it_is
    return lambda function: torch.compile(_copied(function), fullgraph=True, dynamic=False)


def _copied(function: Callable) -> Callable:
    """A function or bound method with code of its own: torch.compile counts variants by code, and gives up at the ninth.

    Each environment compiles variants for its own shapes, so that a few of them in one process would be too many.
    """
    if isinstance(function, types.MethodType):
        return types.MethodType(_copied(function.__func__), function.__self__)
    if not isinstance(function, types.FunctionType):
        return function
    copied = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    copied.__defaults__, copied.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copied


def _as_it_is(function: Callable) -> Callable:
    return function


def start(page: Page, path: Path | None = None) -> Trainer:
    """A trainer in a fresh run directory, which is written before anything is built.

    Raises:
        UserError: the seed is one of evaluation's, there is no such device, or the directory holds a run already.
    """
    _check_seed(page)
    device_of(page)
    return make_trainer(page, Run.create(page, path))


def resume(
    name: str,
    config: str,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Trainer:
    """A trainer that goes on where a run stopped: on the run's own page, with what the command line changes.

    The changed page is the run's from then on.

    A damaged newest checkpoint is passed over with a warning.

    Raises:
        UserError: there is no such run, it is of another page, or no checkpoint of it can be read.
    """
    run, named = find_run(name)
    before = page = run.page
    if load_page(config).name != page.name:
        raise UserError(f"--resume {run.path}: that run is of the page {page.name}, not of {config}")
    page = resolve(page, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)
    _check_seed(page)
    path, state = _newest(run, named, "cpu")
    trainer = make_trainer(page, run)
    trainer.resume(path, state)
    if page != before:
        run.change(page)
    return trainer


def _check_seed(page: Page) -> None:
    if page.env.seed >= FIRST_SEED:
        raise UserError(f"env.seed: {page.env.seed}: seeds from {FIRST_SEED} up are evaluation's; take a smaller one")


def make_trainer(page: Page, run: Run) -> Trainer:
    """Everything that trains the page."""
    env = make(page)
    symmetry = page.ppo.symmetry != "none"
    wrap = compiler(page, env.device)
    collector = LocalCollector(env, page.ppo.num_steps_per_env, page.env.seed, symmetry=symmetry, compiler=wrap)
    learner = make_learner(page, collector, env.device)
    if learner.critic_group not in env.final_obs:
        env.close()
        given = f"[{', '.join(page.env.final_obs_groups)}]"
        raise UserError(
            f"env.final_obs_groups: {given}: training bootstraps time-outs from the last observation of "
            f"{learner.critic_group!r}; add it, or leave the key out"
        )
    return Trainer(page, collector, learner, run)


def make_learner(page: Page, collector: Collector, device: torch.device | str = "cpu") -> Learner:
    """The page's learner, for what the collector gives.

    Raises:
        UserError: `ppo.class_name` is none, or cannot learn the page.
    """
    settings, obs = page.ppo, collector.observe()
    torch.manual_seed(page.env.seed)
    learner = _class(settings.class_name)
    if issubclass(learner, rsl_rl.algorithms.PPO):
        from embodied_rl.learn.rsl_rl_ppo import RslRlPPO

        return RslRlPPO(learner, obs, collector.action_space, settings, collector.mirrors, collector.num_steps, device)
    long = settings.compile is True or (settings.compile == "auto" and settings.max_iterations >= _LONG)
    wrap = compiler(page, torch.device(device)) if long else _as_it_is
    return learner(obs, collector.action_space, settings, collector.mirrors, page.env.seed, device, compiler=wrap)


def _class(name: str) -> Any:
    """The class that `module:Class` names."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"ppo.class_name: {name}: {error}; write module:Class, like rsl_rl.algorithms:PPO") from None


def evaluate_policy(page: Page, policy: Callable[[Obs], Tensor], *, seed: int = SEEDS[0], reference: bool = False) -> dict:
    """The figures of `embodied_rl.learn.evaluate.evaluate` for a policy trained on a page."""
    # one episode of a small batch: compiling the step would take longer than it saves
    settings = override(evaluation_page(page, seed, reference=reference), ["env.compile=false"])
    env = make(settings, measure=("joint_torque",))
    try:
        return evaluate(env, policy)
    finally:
        env.close()


def export_run(run: str | Path, output: Path | None = None) -> Path:
    """Write a run's policy as ONNX with its contract; where it was written.

    Raises:
        UserError: there is no such run, or the exported network does not agree with torch.
    """
    loaded = load(run)
    env = make(loaded.page, ["env.compile=false"], num_envs=1)
    path = output or loaded.run.path / "exported" / "policy.onnx"
    try:
        return export(loaded.actor, env, path, git_commit=loaded.run.git_commit)
    finally:
        env.close()


@dataclass
class LoadedRun:
    """A trained policy and the page it was trained on."""

    page: Page
    run: Run
    checkpoint: Path
    actor: MLPModel
    policy: Player
    """Mean actions, (N, A), of the observations of the group `actor`, (N, O), or of a dict of groups."""
    iteration: int
    env_steps: int


def load(run: str | Path, *, device: str = "cpu") -> LoadedRun:
    """A run's policy; see `embodied_rl.load`.  A damaged newest checkpoint is passed over with a warning."""
    found, named = find_run(run)
    path, state = _newest(found, named, device)
    page = found.page
    weights = state["actor_state_dict"]
    try:
        # the networks' sizes stand in the checkpoint itself: no environment is needed to load a policy
        first = "mlp.0.weight" if page.ppo.rnn_type == "none" else "rnn.rnn.weight_ih_l0"
        outputs = [value for name, value in weights.items() if name.startswith("mlp.")][-1].shape[0]
        space = ActionSpace(outputs, discrete=not any(name.startswith("distribution.") for name in weights))
        actor = build_actor({"actor": torch.zeros(1, weights[first].shape[1])}, space, page.ppo).to(device)
        actor.load_state_dict(weights)
    except (KeyError, RuntimeError):
        raise checkpoint.CheckpointError(f"{path}: its actor is not the one that {found.path}/config.yaml describes") from None
    actor.eval()
    steps = int((state.get("infos") or {}).get("env_steps", 0))
    return LoadedRun(page, found, path, actor, Player(policy_of(actor)), int(state["iter"]), steps)


def _newest(run: Run, named: Path | None, device: str) -> tuple[Path, dict]:
    """The checkpoint that was named, or the newest one that can be read."""
    candidates = [named] if named else run.newest_checkpoints()
    if not candidates:
        raise RunError(f"{run.path}: no checkpoint yet")
    for path in candidates:
        try:
            return path, checkpoint.read(path, device)
        except checkpoint.CheckpointError as error:
            if path == candidates[-1]:
                raise
            log.warning("%s", error)
    raise AssertionError("unreachable")
