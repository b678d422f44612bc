"""The only place that names engines: from a page to an environment, from a run to its policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rsl_rl.models import MLPModel
from torch import Tensor

from embodied_rl import doctor
from embodied_rl.config import Page, override
from embodied_rl.config import load as load_page
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.export import export
from embodied_rl.learn import checkpoint
from embodied_rl.learn.evaluate import FIRST_SEED, SEEDS, evaluate, evaluation_page
from embodied_rl.learn.models import Obs, build_actor
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run, RunError, find_run
from embodied_rl.learn.train import Trainer
from embodied_rl.mdp.bind import Terms, needed
from embodied_rl.physics.native import NativePhysics
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

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
        return lambda function: function
    error = doctor.cpp_error() if device.type == "cpu" else doctor.triton_error()
    if error:
        if page.env.compile is True:
            raise UserError(f"env.compile: true: {error}; install one (g++), or set env.compile to auto or false")
        log.warning("%s: the step runs without torch.compile, a little slower; `embodied-rl doctor` says more", error)
        return lambda function: function
    return lambda function: torch.compile(function, fullgraph=True, dynamic=False)


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
    collector = LocalCollector(env, page.ppo.num_steps_per_env, page.env.seed, symmetry=symmetry)
    torch.manual_seed(page.env.seed)
    learner = PPO(env.obs, env.num_actions, page.ppo, collector.mirrors, page.env.seed, env.device)
    if learner.critic_group not in env.final_obs:
        env.close()
        given = f"[{', '.join(page.env.final_obs_groups)}]"
        raise UserError(
            f"env.final_obs_groups: {given}: training bootstraps time-outs from the last observation of "
            f"{learner.critic_group!r}; add it, or leave the key out"
        )
    return Trainer(page, collector, learner, run)


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
    iteration: int
    env_steps: int

    def policy(self, obs: Obs | Tensor) -> Tensor:
        """Mean actions, (N, A), of the observations of the group `actor`, (N, O), or of a dict of groups."""
        group = obs["actor"] if isinstance(obs, dict) else obs
        self.actor.to(group.device)  # an environment may live elsewhere than the checkpoint was read
        with torch.inference_mode():
            return self.actor.mlp(self.actor.obs_normalizer(group))


def load(run: str | Path, *, device: str = "cpu") -> LoadedRun:
    """A run's policy; see `embodied_rl.load`.  A damaged newest checkpoint is passed over with a warning."""
    found, named = find_run(run)
    path, state = _newest(found, named, device)
    page = found.page
    weights = state["actor_state_dict"]
    try:
        # the networks' sizes stand in the checkpoint itself: no environment is needed to load a policy
        inputs = weights["mlp.0.weight"].shape[1]
        outputs = [value for name, value in weights.items() if name.startswith("mlp.")][-1].shape[0]
        actor = build_actor({"actor": torch.zeros(1, inputs)}, outputs, page.ppo).to(device)
        actor.load_state_dict(weights)
    except (KeyError, RuntimeError):
        raise checkpoint.CheckpointError(f"{path}: its actor is not the one that {found.path}/config.yaml describes") from None
    actor.eval()
    steps = int((state.get("infos") or {}).get("env_steps", 0))
    return LoadedRun(page, found, path, actor, int(state["iter"]), steps)


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
