"""What a page's learner takes of memory and arithmetic, estimated before anything is made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from embodied_rl.config.page import Page
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.config.rollout_size import rollout_envs
from embodied_rl.config.sac import SACSettings
from embodied_rl.learn.replay import replay_bytes

#: Bytes of a number.
FLOAT = 4


def memory_of(page: Page, widths: Mapping[str, int], actions: int) -> dict[str, float]:
    """Estimate what rollout, replay, networks and a minibatch take [bytes].

    Args:
        page: the task.
        widths: size of each observation group.
        actions: numbers of an action.
    """
    samples = rollout_envs(page.pool, page.env.num_envs) * page.train.steps
    row = sum(widths.values()) + sum(widths.get(name, 0) for name in page.env.final_obs_groups) + 4 * actions + 8
    networks = sum(_parameters(page, widths, actions).values())
    mirrored = 2 if page.symmetry != "none" and page.train.learner != "sac" else 1
    found = {
        "rollout": float(FLOAT * samples * row * mirrored),
        "networks": float(4 * FLOAT * networks),  # numbers, gradients and Adam's two moments
    }
    if page.train.learner == "sac":
        sizes = {name: widths[name] for name in ("actor", "critic") if name in widths}
        count = replay_bytes(
            sizes, actions, num_envs=page.env.num_envs, size=page.sac.replay_size, prioritized=page.sac.prioritized
        )
        hidden = sum(page.sac.actor_hidden_dims) + 2 * sum(page.sac.critic_hidden_dims)
        return found | {"replay": float(count), "a minibatch": float(2 * FLOAT * hidden * page.sac.batch_size)}
    ppo = page.ppo
    hidden = sum(ppo.actor_hidden_dims) + sum(ppo.critic_hidden_dims) + 8 * ppo.rnn_hidden_dim * (ppo.rnn_type != "none")
    return found | {"a minibatch": float(2 * FLOAT * mirrored * hidden * math.ceil(samples / ppo.num_mini_batches))}


def operations(page: Page, widths: Mapping[str, int], actions: int) -> float:
    """Estimate the multiplications and additions of an iteration's update; arguments as `memory_of`'s."""
    numbers = _parameters(page, widths, actions)
    samples = rollout_envs(page.pool, page.env.num_envs) * page.train.steps
    if page.train.learner == "sac":
        drawn = page.train.steps * page.sac.updates * page.sac.batch_size
        # forward is 2 a number, backward 4: the critics learn, their targets answer, and the actor learns through them
        of_actor = (6 * numbers["actor"] + 4 * numbers["critic"]) / page.sac.actor_interval
        return 2.0 * samples * numbers["actor"] + drawn * (2 * numbers["actor"] + 8 * numbers["critic"] + of_actor)
    passes = 2 + 6 * page.ppo.num_learning_epochs * (2 if page.ppo.symmetry != "none" else 1)
    return float(samples * sum(numbers.values()) * passes)


def _parameters(page: Page, widths: Mapping[str, int], actions: int) -> dict[str, int]:
    """Count the numbers of actor and critics."""
    seen, critic = widths.get("actor", 0), widths.get("critic", widths.get("actor", 0))
    if page.train.learner == "sac":
        return _of_sac(page.sac, seen, critic, actions)
    ppo, recurrent = page.ppo, _recurrent(page.ppo, seen)
    seen = seen if ppo.rnn_type == "none" else ppo.rnn_hidden_dim
    return {
        "actor": recurrent + _perceptron(seen, *ppo.actor_hidden_dims, actions),
        "critic": _perceptron(critic, *ppo.critic_hidden_dims, 1),
    }


def _of_sac(sac: SACSettings, seen: int, critic: int, actions: int) -> dict[str, int]:
    outputs = sac.atoms if sac.critic == "distributional" else 1
    return {
        "actor": _perceptron(seen, *sac.actor_hidden_dims, 2 * actions),
        "critic": 2 * _perceptron(critic + actions, *sac.critic_hidden_dims, outputs),
    }


def _recurrent(ppo: PPOSettings, seen: int) -> int:
    numbers, gates = 0, {"none": 0, "gru": 3, "lstm": 4}[ppo.rnn_type]
    for _ in range(ppo.rnn_num_layers if gates else 0):
        numbers += gates * ppo.rnn_hidden_dim * (seen + ppo.rnn_hidden_dim + 2)
        seen = ppo.rnn_hidden_dim
    return numbers


def _perceptron(*sizes: int) -> int:
    return sum((before + 1) * after for before, after in itertools.pairwise(sizes))
