"""The only place that names engines: from a page to an environment, from a run to its policy."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rsl_rl.models import MLPModel
from torch import Tensor

from embodied_rl.config import Page, load as load_page, override
from embodied_rl.env import Env
from embodied_rl.learn import checkpoint
from embodied_rl.learn.models import Obs, build_actor
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run, RunError, find_run
from embodied_rl.learn.train import Trainer
from embodied_rl.mdp.bind import Terms, needed
from embodied_rl.physics.native import NativePhysics
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene

log = logging.getLogger("embodied_rl")


def make(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Env:
    """An environment of a page; see `embodied_rl.make`."""
    page = resolve(config, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)
    robot = load_robot(page.robot)
    scene = build_scene(robot, collisions=page.scene.collisions, physics=page.physics, needs=needed(page))
    physics = NativePhysics(scene, page.env.num_envs, page.physics.decimation, page.physics.num_threads)
    terms = Terms(page, scene, physics.device)
    env_ids = torch.arange(page.env.num_envs, device=physics.device)
    with torch.no_grad():
        return Env(page, scene, physics, terms, env_ids, compiler(page))


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
        ValueError: there is no such device.
    """
    if device not in (None, "cpu"):
        raise ValueError(f"--device {device}: this version runs on the CPU (MuJoCo on all cores); leave the option out")
    settings = {"env.num_envs": num_envs, "physics.engine": engine, "env.seed": seed}
    given = [*overrides, *(f"{path}={value}" for path, value in settings.items() if value is not None)]
    return override(config, given) if isinstance(config, Page) else load_page(str(config), given)


def compiler(page: Page) -> Callable:
    """What wraps the halves of the step: torch.compile where the page wants it and a C++ compiler is there."""
    if page.env.compile is False:
        return lambda function: function
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        if page.env.compile is True:
            raise ValueError("env.compile: true needs a C++ compiler, and none is here; install g++, or set it to auto or false")
        log.warning("no C++ compiler: the step runs without torch.compile, some 10 %% slower; `embodied-rl doctor` says more")
        return lambda function: function
    return lambda function: torch.compile(function, fullgraph=True, dynamic=False)


def make_trainer(page: Page, run: Run) -> Trainer:
    """Everything that trains the page."""
    env = make(page)
    collector = LocalCollector(env, page.ppo.num_steps_per_env, page.env.seed)
    torch.manual_seed(page.env.seed)
    learner = PPO(env.obs, env.num_actions, page.ppo, collector.mirrors, page.env.seed, env.device)
    return Trainer(page, collector, learner, run)


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
        with torch.inference_mode():
            return self.actor.mlp(self.actor.obs_normalizer(group))


def load(run: str | Path, *, device: str = "cpu") -> LoadedRun:
    """A run's policy; see `embodied_rl.load`.  A damaged newest checkpoint is passed over with a warning."""
    found, named = find_run(run)
    candidates = [named] if named else found.newest_checkpoints()
    if not candidates:
        raise RunError(f"{found.path}: no checkpoint yet")
    for path in candidates:
        try:
            state = checkpoint.read(path, device)
            break
        except checkpoint.CheckpointError as error:
            if path == candidates[-1]:
                raise
            log.warning("%s", error)
    page = found.page
    # the networks' sizes stand in the checkpoint itself: no environment is needed to load a policy
    inputs = state["actor_state_dict"]["mlp.0.weight"].shape[1]
    outputs = [value for name, value in state["actor_state_dict"].items() if name.startswith("mlp.")][-1].shape[0]
    actor = build_actor({"actor": torch.zeros(1, inputs)}, outputs, page.ppo).to(device)
    actor.load_state_dict(state["actor_state_dict"])
    actor.eval()
    steps = int((state.get("infos") or {}).get("env_steps", 0))
    return LoadedRun(page, found, path, actor, int(state["iter"]), steps)
