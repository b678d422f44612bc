"""Play a policy back: on a few robots, told what to do, filmed or not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.mdp.demo import Demo, demo_of
from embodied_rl.mdp.score import failures_of
from embodied_rl.scene import Scene
from embodied_rl.vector_env import Step
from embodied_rl.view.film import Film
from embodied_rl.waiting import Waiting

log = logging.getLogger("embodied_rl")

Policy = Callable[[dict[str, Tensor]], Tensor]
"""From observations of each group, (N, O), to actions, (N, A)."""

_SPACING = 3.0
"""Distance of the robots that are filmed side by side, in multiples of the base's height."""


def playback_page(page: Page, *, num_envs: int = 1, seconds: float = 20.0) -> Page:
    """Change the page to how it is played: nothing pushes, episodes last for the whole of it, and robots start side by side.

    What only a learner sees is left out, the critic's observations and the rewards: half of a step's operations.
    """
    changes = [f"env.num_envs={num_envs}", f"env.episode_s={seconds + 1.0}", "env.random_episode_phase=false"]
    changes += ["env.compile=false", "env.final_obs_groups=[]"]  # compiling takes longer than playing
    changes += [f"observations.{group}=null" for group in page.observations if group != "actor"]
    changes += [f"rewards.{name}=null" for name in page.rewards]
    changes += [f"events.{name}=null" for name, entry in page.events.items() if entry.term == "push"]
    starts = [name for name, entry in page.events.items() if entry.term == "reset_base"]
    changes += [f"events.{name}.{key}=0.0" for name in starts for key in ("position", "yaw")]
    return override(page, changes)


def agent(env: Env, name: str) -> Policy:
    """Make a policy that needs no training: `zero` stands in the default pose, `random` draws actions in [-1, 1)."""
    if name == "zero":
        return lambda obs: torch.zeros(env.num_envs, env.num_actions, device=env.device)
    key = random.stream_key(env.page.env.seed, "agent", env.device)
    return lambda obs: 2.0 * random.uniform(key, env.env_ids, env.buffers["age"], env.num_actions) - 1.0


def hold_command(env: Env, values: Sequence[float]) -> None:
    """Tell every robot this and nothing else from now on.

    Args:
        env: its page has a command.
        values: one for each of the command's numbers.

    Raises:
        UserError: the page has no command, or one of another size, or a value is not finite; one line.
    """
    name, command = next(iter(env.terms.commands.items()), (None, None))
    if command is None:
        raise UserError(f"--command: the page {env.page.name} has no command to hold; leave the option out")
    if len(values) != command.size:
        listed = ", ".join(command.names)
        raise UserError(f"--command: {name} takes {command.size} numbers ({listed}), {len(values)} were given")
    if wrong := [f"{name} is {value:g}" for name, value in zip(command.names, values, strict=True) if not math.isfinite(value)]:
        raise UserError(f"--command: {', '.join(wrong)}; a finite number is needed")
    command.hold(values)


def warn_outside(env: Env, values: Sequence[float]) -> None:
    """Warn of the numbers of a held command that training never asked for, where the page's command says its ranges."""
    command = next(iter(env.terms.commands.values()))
    for name, value, (low, high) in zip(command.names, values, _ranges(env), strict=False):
        if not low <= value <= high:
            log.warning("--command: %s %g is outside of %g to %g, which the policy was trained in", name, value, low, high)


def rest_of(env: Env) -> list[float]:
    """Give the command nearest to zeros that training asked for."""
    command = next(iter(env.terms.commands.values()))
    rest = [0.0] * command.size
    for index, (low, high) in enumerate(_ranges(env)):
        rest[index] = min(max(0.0, low), high)
    return rest


def _ranges(env: Env) -> list[list[float]]:
    """List the least and greatest of each number of the page's command in training; empty where it does not say."""
    command = next(iter(env.terms.commands.values()))
    told = command.contract() if hasattr(command, "contract") else {}
    return [torch.as_tensor(bounds).tolist() for bounds in told.get("ranges", ())]


def commands(demo: Demo, env: Env) -> bool:
    """Whether a demo speaks of the page's command: it has as many numbers as the demo has columns."""
    command = next(iter(env.terms.commands.values()), None)
    return command is not None and command.size == len(demo.COLUMNS)


def forget(policy: Policy, result: Step) -> None:
    """Tell a policy that remembers which episodes have ended."""
    if hasattr(policy, "forget"):
        policy.forget(result.terminated | result.truncated)


@torch.inference_mode()
@one_thread()
def play(
    env: Env,
    policy: Policy,
    *,
    seconds: float = 20.0,
    command: Sequence[float] | None = None,
    video: str | Path | None = None,
    report: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Run the policy from a fresh start; the page's family says what is asked of it, and draws that and what it does.

    Args:
        env: of a `playback_page`; all its robots are filmed, side by side, the camera on the first.
        policy: what acts.
        seconds: how long, in simulated time; a film runs in real time.
        command: held throughout; by default the commands of the family's script one after the other.
        video: the film to write, .mp4, .mkv or .mov.
        report: takes the lines that say how it went.

    Returns:
        `seconds`, `terminated`, `unstable`, the mean of each of the commands' errors, and `video`.

    Raises:
        UserError: the command does not suit the page.
        FilmError: there is no GL to film with.
    """
    demo = demo_of(env.page)
    script = [command] if command is not None else demo.script(env) if demo and commands(demo, env) else []
    steps = max(1, round(seconds / env.step_dt))
    if script:
        hold_command(env, script[0])
    if command is not None:
        warn_outside(env, command)
    with ExitStack() as stack:
        waiting = stack.enter_context(Waiting("filming" if video else "playing"))
        film = stack.enter_context(Film(video, *filmed(env.scene), env.page.video, demo)) if video else None
        env.reset()
        env.drain_totals()
        for step in range(steps):
            waiting.far = f"{step * env.step_dt:.1f} of {seconds:.1f} s"
            if script and step and step * len(script) % steps < len(script):
                hold_command(env, script[step * len(script) // steps])
            forget(policy, env.step(policy(env.obs)))
            while film and film.frames < (step + 1) * env.step_dt * film.fps - 1e-6:
                _shoot(env, film, demo)
    return _summary(env, steps, video, report)


def filmed(scene: Scene) -> tuple[mujoco.MjModel, str, float]:
    """Give what a film needs of a scene: the model, the body to follow and its height [m]."""
    return scene.render_model, scene.robot.base, scene.robot.base_height


def poses(env: Env) -> list[np.ndarray]:
    """Give the qpos of each robot, side by side: every one has a world of its own, and in the picture they share one."""
    found = []
    for row in range(env.num_envs):
        _, qpos, _ = env.render_state(row)
        if env.robot.floating:
            side = (row + 1) // 2 * (1 if row % 2 else -1)
            qpos[1] += _SPACING * env.scene.robot.base_height * side
        found.append(qpos)
    return found


def _shoot(env: Env, film: Film, demo: Demo | None) -> None:
    command = None
    if demo and commands(demo, env):
        command = next(iter(env.terms.commands.values())).command[0].tolist()
    film.shoot(poses(env), demo.measured(env) if demo else (), command)


def _summary(env: Env, steps: int, video: str | Path | None, report: Callable[[str], Any]) -> dict[str, Any]:
    totals = env.drain_totals()
    seconds = steps * env.step_dt
    errors = {name.removeprefix("error/"): total / totals["steps"] for name, total in totals.items() if name.startswith("error/")}
    stats = {"seconds": seconds, "terminated": round(totals["terminated"]), "unstable": round(totals["unstable"]), **errors}
    robots = f"{env.num_envs} robot{'s' if env.num_envs > 1 else ''}"
    ended = f"{stats['terminated']} {failures_of(env.page)}"
    report(f"{robots}, {seconds:.1f} s: {ended}" + "".join(f", {n} {v:.3f}" for n, v in errors.items()))
    if video:
        report(f"filmed: {video}")
    return stats | {"video": str(video) if video else None}
