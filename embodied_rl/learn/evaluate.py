"""Does it walk?  The evaluation protocol of velocity tasks.

256 episodes of 20 s with the mean action; observation noise and foot friction (0.5 to 1.25) random, pushes off; commands vx in
+-1.0 m/s, vy in +-0.5 m/s, wz in +-1.0 rad/s, resampled every 5 s, a tenth of them standing, which is scored too.  The first
second after each resampling is not scored.  Velocities are those of the base's origin, in its yaw frame; a fall is any
termination but time_out, and a fallen episode counts up to the fall.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.policy import Player
from embodied_rl.mdp.part import PartState

#: Seeds of evaluations; training refuses seeds from FIRST_SEED up, so that no policy has met them.
FIRST_SEED = 2**31
SEEDS = (FIRST_SEED + 1, FIRST_SEED + 2, FIRST_SEED + 3)
EPISODES = 256
_UNSCORED_S = 1.0
_GRAVITY = 9.81

#: What `walks` asks for, in training physics and in reference physics.
LIMITS = {"fall_rate": 0.01, "lin_vel_error": 0.15, "ang_vel_error": 0.20}
REFERENCE_LIMITS = {"fall_rate": 0.05, "lin_vel_error": 0.20}


def evaluation_page(page: Page, seed: int, *, reference: bool = False) -> Page:
    """Change the page to how it is evaluated.

    Args:
        page: the page that was trained.
        seed: one of `SEEDS`.
        reference: in reference physics: MuJoCo in C, full collisions, Newton with 100 iterations, dt 2 ms, the same control rate.

    Raises:
        UserError: the page has no velocity command.
    """
    name = next((name for name, entry in page.commands.items() if entry.term == "velocity"), None)
    if name is None:
        raise UserError(f"{page.name}: only pages with a velocity command have an evaluation protocol")
    command = f"commands.{name}"
    friction = next((event for event, entry in page.events.items() if entry.term == "randomize_friction"), "randomize_friction")
    changes = [
        f"env.num_envs={EPISODES}",
        "env.episode_s=20.0",
        "env.random_episode_phase=false",
        f"env.seed={seed}",
        f"{command}.lin_vel_x=[-1.0, 1.0]",
        f"{command}.lin_vel_y=[-0.5, 0.5]",
        f"{command}.ang_vel_z=[-1.0, 1.0]",
        f"{command}.resample_s=[5.0, 5.0]",
        f"{command}.standing=0.1",
        f"{command}.standing_hold=1.0",
        f"{command}.heading=false",
        f"events.{friction}.range=[0.5, 1.25]",
        "curriculum=null",
        *(f"events.{event}=null" for event, entry in page.events.items() if entry.term == "push"),
    ]
    if reference:
        changes += [
            "physics.engine=native",
            "physics.device=auto",
            "scene.collisions=full",
            "physics.solver=newton",
            "physics.iterations=100",
            "physics.ls_iterations=50",
        ]
        decimation = round(page.control_dt / 0.002)
        changes += [
            f"physics.dt={page.control_dt / decimation}",
            f"physics.decimation={decimation}",
            "physics.tolerance=1e-8",
        ]
    return override(page, changes)


@torch.inference_mode()
@one_thread()
def evaluate(env: Env, policy: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, float]:
    """Run one episode in every environment.

    Args:
        env: built from an `evaluation_page`.
        policy: mean actions (N, A) of the observations.

    Returns:
        episodes, fall_rate, lin_vel_error [m/s], ang_vel_error [rad/s], mean_reward, mean_episode_s, cost_of_transport, and
        `reward/<term>`: each term's mean per second.
    """
    (command,) = env.terms.commands.values()
    time_left = env.buffers[f"{command.name}.time_left"]
    wait = round(_UNSCORED_S / env.step_dt)
    since = torch.zeros(env.num_envs, device=env.device)
    going = torch.ones_like(since, dtype=torch.bool)
    fell = torch.zeros_like(going)
    steps, rewards = torch.zeros_like(since), torch.zeros(env.buffers["reward_terms"].shape[1], device=env.device)
    scored = lin_error = ang_error = energy = distance = torch.zeros((), dtype=torch.float64, device=env.device)
    for _ in range(env.max_episode_length):
        asked, before = env.buffers[f"{command.name}.command"].clone(), time_left.clone()
        result = env.step(policy(env.obs))
        done = result.terminated | result.truncated
        if isinstance(policy, Player):
            policy.forget(done)
        steps += going
        rewards += (env.buffers["reward_terms"] * going[:, None]).sum(0)
        since += 1
        fell |= going & result.terminated
        going &= ~done
        # rows that are done stand in their next episode already, and are not looked at again
        state = PartState(env.robot, env.physics)
        counted = going & (since > wait)
        lin = (state.lin_vel_yaw - asked[:, :2]).norm(dim=-1)
        ang = (state.yaw_rate - asked[:, 2]).abs()
        scored = scored + counted.sum()
        lin_error = lin_error + (lin * counted).sum()
        ang_error = ang_error + (ang * counted).sum()
        power = (state.joint_torque * state.joint_vel).abs().sum(-1)
        energy = energy + (power * going).sum() * env.step_dt
        distance = distance + (state.base_lin_vel_w[:, :2].norm(dim=-1) * going).sum() * env.step_dt
        since = torch.where(time_left > before, 0.0, since)
    names = [*(f"reward/{term.name}" for term in env.terms.rewards), "reward/total"]
    seconds = float(steps.sum()) * env.step_dt
    return {
        "episodes": env.num_envs,
        "fall_rate": float(fell.float().mean()),
        "lin_vel_error": float(lin_error / scored.clamp(min=1.0)),
        "ang_vel_error": float(ang_error / scored.clamp(min=1.0)),
        "mean_reward": float(rewards[-1]) / env.num_envs,
        "mean_episode_s": seconds / env.num_envs,
        "cost_of_transport": float(energy / (env.robot.mass * _GRAVITY * distance.clamp(min=1e-6))),
        **{name: float(value) / seconds for name, value in zip(names, rewards, strict=True)},
    }


def walks(result: dict[str, float], limits: dict[str, float] = LIMITS) -> bool:
    """Whether every figure is within its limit."""
    return all(result[name] <= limit for name, limit in limits.items())
