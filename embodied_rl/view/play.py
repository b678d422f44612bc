"""Play a policy back: on a few robots, told where to go, filmed or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import PartState
from embodied_rl.vector_env import Step
from embodied_rl.view.film import Film

Policy = Callable[[dict[str, Tensor]], Tensor]
"""From observations of each group, (N, O), to actions, (N, A)."""

DEMO = ((0.8, 0.0, 0.0), (0.6, 0.0, 0.7), (0.0, 0.8, 0.0), (-0.5, 0.0, 0.0), (0.0, 0.0, -0.7), (0.0, 0.0, 0.0))
"""Forward, along a curve, to the left, backward, on the spot to the right, standing: shares of the page's ranges."""

_SPACING = 3.0
"""Distance of the robots that are filmed side by side, in multiples of the base's height."""


def playback_page(page: Page, *, num_envs: int = 1, seconds: float = 20.0) -> Page:
    """Change the page to how it is played: nothing pushes, episodes last for the whole of it, and robots start side by side."""
    changes = [f"env.num_envs={num_envs}", f"env.episode_s={seconds + 1.0}", "env.random_episode_phase=false"]
    changes += ["env.compile=false"]  # compiling takes longer than playing
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
    """From now on every robot is told this and nothing else; later resamplings draw it too.

    Args:
        env: its page has a command with ranges, like `velocity`.
        values: one for each of the ranges, for `velocity` (vx, vy, wz) [m/s, rad/s].

    Raises:
        UserError: the page has no command, or one of another size; one line.
    """
    command = next(iter(env.terms.commands.values()), None)
    if command is None:
        raise UserError(f"--command: the page {env.page.name} has no command to hold; leave the option out")
    if len(values) != len(command.ranges):
        raise UserError(f"--command: {command.name} takes {len(command.ranges)} numbers, {len(values)} were given")
    for bounds, value in zip(command.ranges, values, strict=True):
        bounds.fill_(value)
    command.standing.fill_(0.0)
    current = env.buffers[f"{command.name}.command"]
    current.copy_(torch.tensor(values, dtype=current.dtype, device=env.device).expand_as(current))


def forget(policy: Policy, result: Step) -> None:
    """Tell a policy that remembers which episodes have ended."""
    if hasattr(policy, "forget"):
        policy.forget(result.terminated | result.truncated)


@torch.no_grad()
def play(
    env: Env,
    policy: Policy,
    *,
    seconds: float = 20.0,
    command: Sequence[float] | None = None,
    video: str | Path | None = None,
    report: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Run the policy from a fresh start.

    Args:
        env: of a `playback_page`; all its robots are filmed, side by side, the camera on the first.
        policy: what acts.
        seconds: how long, in simulated time; a film runs in real time.
        command: held throughout; by default the commands of `DEMO` one after the other.
        video: the mp4 to write.
        report: takes the lines that say how it went.

    Returns:
        `seconds`, `falls`, `unstable`, the mean of each of the commands' errors, and `video`.

    Raises:
        UserError: the command does not suit the page.
        FilmError: there is no GL to film with.
    """
    script = [command] if command is not None else _demo(env)
    steps = max(1, round(seconds / env.step_dt))
    with ExitStack() as stack:
        film = stack.enter_context(Film(video, env.scene, env.page.video)) if video else None
        if script:
            hold_command(env, script[0])
        env.reset()
        env.drain_totals()
        for step in range(steps):
            if script and step and step * len(script) % steps < len(script):
                hold_command(env, script[step * len(script) // steps])
            forget(policy, env.step(policy(env.obs)))
            while film and film.frames < (step + 1) * env.step_dt * film.fps - 1e-6:
                _shoot(env, film)
    return _summary(env, steps, video, report)


def _demo(env: Env) -> list[list[float]]:
    """Scale DEMO to the page's own units; empty where the page has no command of this kind."""
    command = next(iter(env.terms.commands.values()), None)
    if command is None or len(command.ranges) != len(DEMO[0]):
        return []
    bounds = [bound.tolist() for bound in command.ranges]
    return [
        [share * high if share > 0 else -share * low for share, (low, high) in zip(shares, bounds, strict=True)]
        for shares in DEMO
    ]


def _shoot(env: Env, film: Film) -> None:
    robot = PartState(env.robot, env.physics)
    velocity = [*robot.lin_vel_yaw[0].tolist(), float(robot.yaw_rate[0])]
    name = next(iter(env.terms.commands), None)
    command = env.buffers[f"{name}.command"][0].tolist() if name else None
    poses = []
    for row in range(env.num_envs):
        _, qpos, _ = env.render_state(row)
        if env.robot.floating:  # every robot has a world of its own; in the picture they share one
            side = (row + 1) // 2 * (1 if row % 2 else -1)
            qpos[1] += _SPACING * env.scene.robot.base_height * side
        poses.append(qpos)
    film.shoot(poses, velocity, command)


def _summary(env: Env, steps: int, video: str | Path | None, report: Callable[[str], Any]) -> dict[str, Any]:
    totals = env.drain_totals()
    seconds = steps * env.step_dt
    errors = {name.removeprefix("error/"): total / totals["steps"] for name, total in totals.items() if name.startswith("error/")}
    stats = {"seconds": seconds, "falls": round(totals["falls"]), "unstable": round(totals["unstable"]), **errors}
    robots = f"{env.num_envs} robot{'s' if env.num_envs > 1 else ''}"
    report(f"{robots}, {seconds:.1f} s: {stats['falls']} falls" + "".join(f", {n} {v:.3f}" for n, v in errors.items()))
    if video:
        report(f"filmed: {video}")
    return stats | {"video": str(video) if video else None}
