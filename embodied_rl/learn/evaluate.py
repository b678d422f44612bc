"""The evaluation loop: held-out seeds, one episode of every robot, and the figures that every task has.

256 episodes with the mean action and observation noise.  What else they meet, and what is measured and asked for, is said by the
score of the page's task family (`embodied_rl.mdp.score`).  An episode that ends other than by time counts up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.policy import Player
from embodied_rl.mdp.score import Score, figures_of, score_of
from embodied_rl.waiting import Waiting

#: Seeds of evaluations; training refuses seeds from FIRST_SEED up, so that no policy has met them.
FIRST_SEED = 2**31
SEEDS = (FIRST_SEED + 1, FIRST_SEED + 2, FIRST_SEED + 3)
EPISODES = 256
#: Steps between two looks at whether any robot is still going: a GPU must be waited for.
_LOOK_EVERY = {"cpu": 1, "cuda": 50}


def evaluation_page(page: Page, seed: int, *, reference: bool = False, changes: Iterable[str] = ()) -> Page:
    """Change the page to how it is evaluated.

    Args:
        page: the page that was trained.
        seed: one of `SEEDS`.
        reference: in reference physics: MuJoCo in C, full collisions, the robot's dry friction, Newton with 100 iterations, dt
            2 ms, the same control rate.
        changes: to what is judged, as of one of a score's stresses.

    Raises:
        UserError: the page has no task to be judged by, or is none of its family.
    """
    judged = [
        f"env.num_envs={EPISODES}",
        "env.random_episode_phase=false",
        f"env.seed={seed}",
        "curriculum=null",
        *score_of(page).overrides(page, reference),
        *changes,
    ]
    if reference:
        judged += [
            "physics.engine=native",
            "physics.device=auto",
            "scene.collisions=full",
            "scene.dry_friction=true",
            "physics.solver=newton",
            "physics.iterations=100",
            "physics.ls_iterations=50",
        ]
        decimation = round(page.control_dt / 0.002)
        judged += [
            f"physics.dt={page.control_dt / decimation}",
            f"physics.decimation={decimation}",
            "physics.tolerance=1e-8",
        ]
    return override(page, judged)


@torch.inference_mode()
@one_thread()
def evaluate(
    env: Env, policy: Callable[[dict[str, Tensor]], Tensor], score: Score, waiting: Waiting | None = None
) -> dict[str, float]:
    """Run one episode in every environment; over when the last one is.

    Args:
        env: built from an `evaluation_page`, measuring what the score needs.
        policy: mean actions (N, A) of the observations.
        score: a new one of the page's family.
        waiting: is told how far it is.

    Returns:
        episodes, the share of them that ended other than by time (`fall_rate`, if the family's word is `fall`), the score's
        figures, mean_reward, mean_episode_s, and `reward/<term>`: each term's mean per second.
    """
    steps = torch.zeros(env.num_envs, device=env.device)
    going = torch.ones_like(steps, dtype=torch.bool)
    failed = torch.zeros_like(going)
    rewards = torch.zeros(env.buffers["reward_terms"].shape[1], device=env.device)
    look_every = _LOOK_EVERY[going.device.type]
    if isinstance(policy, Player):
        policy = Player(policy.policy)  # what it remembers is of other episodes
    score.begin(env)
    for step in range(1, env.max_episode_length + 1):
        if waiting:
            waiting.far = f"{step * env.step_dt:.0f} of {env.max_episode_length * env.step_dt:.0f} s"
        result = env.step(policy(env.obs))
        done = result.terminated | result.truncated
        if isinstance(policy, Player):
            policy.forget(done)
        steps += going
        rewards += (env.buffers["reward_terms"] * going[:, None]).sum(0)
        failed |= going & result.terminated
        going &= ~done
        score.step(env, going)
        if step % look_every == 0 and not going.any():
            break
    names = [*(f"reward/{term.name}" for term in env.terms.rewards), "reward/total"]
    seconds = float(steps.sum()) * env.step_dt
    return {
        "episodes": env.num_envs,
        f"{score.failure}_rate": float(failed.float().mean()),
        **figures_of(score),
        "mean_reward": float(rewards[-1]) / env.num_envs,
        "mean_episode_s": seconds / env.num_envs,
        **{name: float(value) / seconds for name, value in zip(names, rewards, strict=True)},
    }
