"""`pool.lag`: policies of a set age, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium")

from embodied_rl.config import Page, load
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.make_env import make_vector
from embodied_rl.pools.pool import SimPool

ENVS, STEPS = 4, 6


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.yaml"
    path.write_text(
        'env: {source: "gymnasium:Pendulum-v1", num_envs: 4}\n'
        "train: {steps: 6}\nppo: {gamma: 0.9}\npool: {workers: 2, shard_size: 2, spares: 0}\n"
    )
    return load(path)


def policy(version: int) -> Policy:
    """One that is other with every version."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 1)).requires_grad_(False)
    torch.nn.init.constant_(network[0].weight, 0.1 + 0.05 * version)  # pyright: ignore[reportArgumentType]
    torch.nn.init.zeros_(network[0].bias)  # pyright: ignore[reportArgumentType]
    return Policy(torch.nn.Identity(), network, lambda: torch.full((1,), 0.5))


def moved(acting: Policy, version: int) -> None:
    acting.network.load_state_dict(policy(version).network.state_dict())


def test_policies_are_as_old_as_the_page_says_and_the_same_twice(
    page: Page, inline: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Each rollout is that of the policy of k versions ago, collected here; before there is one, of the oldest."""
    lag, here = 2, LocalCollector(make_vector(page, torch.arange(ENVS)), STEPS, page.env.seed, chunk=2)
    expected = [here.collect(policy(max(0, iteration - lag)), iteration).actions.clone() for iteration in range(5)]
    for _ in range(2):
        pool, acting = SimPool(load(tmp_path / "page.yaml", [f"pool.lag={lag}"]), connection=inline), policy(0)
        for iteration in range(5):
            moved(acting, iteration)
            rollout = pool.collect(acting, iteration)
            assert torch.equal(rollout.actions, expected[iteration])
            age = min(iteration, lag)
            assert rollout.staleness is not None and (rollout.staleness == age).all()
            assert rollout.totals["largest/Pool/largest_staleness"] == age
            older = policy(max(0, iteration - lag))(rollout.obs["actor"])[0]
            torch.testing.assert_close(rollout.log_prob, older.log_prob(rollout.actions), rtol=1e-4, atol=1e-4)
    said = [message for message in caplog.messages if "pool.lag" in message]
    assert len(said) == 2
    assert said[0] == (
        "pool.lag: 2: no policy of before iteration 0 is there or in a checkpoint, "
        "so the first 2 rollouts are fewer versions behind, from 0 on"
    )


def test_a_replacement_collects_with_the_same_old_policy(page: Page, inline: Any, tmp_path: Path) -> None:
    lag, here = 2, LocalCollector(make_vector(page, torch.arange(ENVS)), STEPS, page.env.seed, chunk=2)
    expected = [here.collect(policy(max(0, iteration - lag)), iteration).actions.clone() for iteration in range(4)]
    pool, acting = SimPool(load(tmp_path / "page.yaml", [f"pool.lag={lag}"]), connection=inline), policy(0)
    for iteration in range(4):
        moved(acting, iteration)
        if iteration == 3:
            pool.crew.workers[1].actor.dead = True
        rollout = pool.collect(acting, iteration)
        assert torch.equal(rollout.actions, expected[iteration])
    assert rollout.totals["pool/restarts"] == 1.0 and rollout.totals["pool/lost_fragments"] == 0.0
