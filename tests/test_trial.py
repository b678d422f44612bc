"""Own terms that write, remember or draw where they may not: seen before a training begins, and named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.inspection import inspect

HEAD = """
import random
import numpy as np
import torch
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import event, observation, reward

CALLS = []
"""
REWARD = "@reward()\ndef mine(env, *, k: float = 1.0):\n    {body}\n    return k * env.actions[:, 0]\n"
OF_CLASS = """
@reward()
class mine:
    state = {{"x": State()}}
    def update(self, env):
        {body}
    def __call__(self, env):
        return self.x.clone()
"""
EVENT = "@event(mode='{mode}')\ndef mine(env, draft):\n    {body}\n    return env.done\n"


def inspected(source: str, entry: str, folder: Path) -> None:
    (folder / "own.py").write_text(HEAD + source)
    inspect(load("go2_flat", [f"terms=[{folder / 'own.py'}]", "env.num_envs=16", "env.compile=false", entry]))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (REWARD.format(body="env.actions.data.mul_(0)"), "own.py:11: writes into actions; what a term is given is not its own"),
        (REWARD.format(body="env.actions[:, 0].data[0] = 1.0"), "own.py:11: writes into actions"),
        (REWARD.format(body="torch.add(env.actions.data, 1, out=env.previous_actions.data)"), "writes into previous_actions"),
        (REWARD.format(body="env.actions.numpy()[:] = 0"), "own.py:11: ValueError: assignment destination is read-only"),
        (REWARD.format(body="np.asarray(env.actions)[:] = 0"), "own.py:11: ValueError: assignment destination is read-only"),
        (REWARD.format(body="k.add_(1.0)"), "own.py:11: writes into params['rewards.mine.k']"),
        (
            REWARD.format(body="if bool(env.done.any() & ~env.done.all()): env.episode_length.zero_()"),
            "own.py:11: writes into episode_length",
        ),
        (OF_CLASS.format(body="env.actions.mul_(0.5)"), "own.py:14: writes into actions"),
        (REWARD.format(body="torch.rand(3)"), "own.py:11: draws random numbers of torch's"),
        (OF_CLASS.format(body="self.x.uniform_()"), "own.py:14: draws random numbers of torch's"),
        (REWARD.format(body="k = np.random.rand()"), "rewards.mine: another value when the same steps are taken again"),
        (REWARD.format(body="k = random.random()"), "rewards.mine: another value when the same steps are taken again"),
        (
            REWARD.format(body="CALLS.append(1); k = len(CALLS)"),
            "rewards.mine: another value when the same steps are taken again",
        ),
        (OF_CLASS.format(body="self.x = self.x + 1.0"), "rewards.mine.x: its state is another tensor after a step"),
        (OF_CLASS.format(body="CALLS.append(1); self.x.fill_(len(CALLS))"), "rewards.mine: another value when the same steps"),
    ],
)
def test_what_a_term_may_not_do_is_named(source: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        inspected(source, "rewards.mine={weight: 1.0}", tmp_path)
    assert "\n" not in str(refused.value)


def test_what_an_event_may_not_do_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("own.py:11: writes into episode_length")):
        inspected(EVENT.format(mode="interval", body="env.episode_length.add_(1)"), "events.mine={}", tmp_path)


@pytest.mark.parametrize(
    ("source", "entry"),
    [
        (OF_CLASS.format(body="self.x.add_(1.0); self.x.data.mul_(0.5)"), "rewards.mine={weight: 1.0}"),
        (
            REWARD.format(body="k = k + env.actions.numpy().sum() + env.actions.clone().add_(1.0).sum()"),
            "rewards.mine={weight: 1.0}",
        ),
        (EVENT.format(mode="reset", body="draft.qpos[:, 2] += 0.01 * env.draw(1)[:, 0]"), "events.mine={}"),
    ],
)
def test_what_a_term_may_do_passes(source: str, entry: str, tmp_path: Path) -> None:
    inspected(source, entry, tmp_path)
