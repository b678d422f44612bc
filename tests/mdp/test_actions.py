"""Joint-position actions: targets in the robot's own numbers, and their latency."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from embodied_rl.config.terms import find_terms
from embodied_rl.mdp.actions import joint_position
from embodied_rl.mdp.moment import Draw, Moment

DEFAULT = torch.tensor([0.1, -0.8])


def _env(count: int, latency: list[float] | None = None, block: torch.Tensor | None = None) -> Moment:
    robot = SimpleNamespace(default_joint_pos=DEFAULT, joint_names=("a", "b"))
    actions, previous = torch.arange(2.0 * count).view(count, 2), -torch.arange(2.0 * count).view(count, 2) - 1.0
    buffers = {} if latency is None else {"joint_position.latency": torch.tensor(latency)}
    return cast(
        Moment,
        SimpleNamespace(
            robot=robot, actions=actions, previous_actions=previous, buffers=buffers, draw=Draw(block), num_envs=count
        ),
    )


def test_targets_count_from_the_default_pose():
    term, env = joint_position("joint_position", scale=torch.tensor(0.25)), _env(3)  # pyright: ignore
    assert term.size(env) == 2 and term.state == {}
    expected = torch.tensor([[0.1, -0.55], [0.6, -0.05], [1.1, 0.45]])
    torch.testing.assert_close(term.controls(env, 4), expected)


def test_a_latency_holds_the_targets_of_the_step_before():
    term = joint_position("joint_position", scale=0.25, latency=(0, 3))
    env = _env(3, latency=[0.0, 1.0, 3.0])
    controls = term.controls(env, 4)
    new, old = DEFAULT + 0.25 * env.actions, DEFAULT + 0.25 * env.previous_actions
    for row, late in enumerate((0, 1, 3)):
        expected = torch.stack([old[row] if substep < late else new[row] for substep in range(4)])
        torch.testing.assert_close(controls[row], expected)


def test_a_latency_is_drawn_for_the_episodes_that_begin():
    term = joint_position("joint_position", latency=(1, 3))
    block = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    env = _env(3000, latency=[7.0] * 3000, block=block)
    done = torch.arange(3000) % 2 == 0
    term.update(env, done)
    latency = env.buffers["joint_position.latency"]
    assert (latency[~done] == 7.0).all()
    values, counts = latency[done].unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0] and counts.min() > 430


def test_the_greatest_random_number_is_the_greatest_latency():
    term = joint_position("joint_position", latency=(1, 2))
    env = _env(1, latency=[0.0], block=torch.full((1, 4), 1.0 - 2.0**-24))
    term.update(env, torch.ones(1, dtype=torch.bool))
    assert env.buffers["joint_position.latency"].tolist() == [2.0]


def test_every_action_is_tested_here():
    assert set(find_terms()[0]["action"]) == {"joint_position"}
