from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from embodied_rl import machine, make_env
from embodied_rl.blocks import BLOCK, Rowwise, in_blocks
from embodied_rl.config import load
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.rollout import LocalCollector


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced runs operation by operation."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **_: graph)


class Walk:
    """Rows that take steps, each its own."""

    def __init__(self, rows: int) -> None:
        self.place = torch.arange(3.0 * rows).view(rows, 3)
        self.steps, self.tired = torch.arange(rows) % 7, torch.zeros(rows, dtype=torch.bool)
        self.length, self.counted, self.last = torch.ones(3), 0, torch.zeros(rows)

    @property
    def rows(self) -> list[torch.Tensor]:
        return [self.place, self.steps, self.tired, self.last, self.place]

    def step(self) -> None:
        self.place += self.length * self.steps[:, None]
        self.steps.add_(1)
        self.tired.copy_(self.steps > 9)

    def together(self) -> None:
        self.last.copy_(self.place[:, 0] - self.place[:, 0].mean())

    def shared(self) -> None:
        self.length += self.place.amax()

    def left(self) -> None:
        self.last = self.place[:, 0] + 1.0

    def count(self) -> None:
        self.place += self.counted
        self.counted += 1

    def nothing(self) -> None:
        pass


@pytest.mark.parametrize("rows", [1, 9, BLOCK, 2 * BLOCK, 2 * BLOCK + 5])
def test_blocks_of_rows_are_all_rows(rows: int, uncompiled: None) -> None:
    walk, whole = Walk(rows), Walk(rows)
    step = in_blocks(Rowwise(walk.step, walk.rows))
    assert step is not None and torch.equal(walk.place, whole.place)  # compiling takes no step
    for length in (1.0, 2.0, 3.0):
        for one in (walk, whole):
            one.length.fill_(length)
        step()
        whole.step()
        assert all(torch.equal(one, other) for one, other in zip(walk.rows, whole.rows, strict=True))


@pytest.mark.parametrize("name", ["together", "shared", "left", "count", "nothing"])
def test_what_is_not_of_rows_is_left_whole(name: str, uncompiled: None) -> None:
    walk = Walk(2 * BLOCK)
    before = [tensor.clone() for tensor in (*walk.rows, walk.length)]
    assert in_blocks(Rowwise(getattr(walk, name), walk.rows)) is None
    if name != "left":
        assert all(torch.equal(one, other) for one, other in zip((*walk.rows, walk.length), before, strict=True))


def test_another_number_of_rows_compiles_nothing() -> None:
    if reason := machine.cpp_error():
        pytest.skip(reason)
    from torch._inductor.utils import fresh_cache

    entries: dict[str, Any] = {}
    with fresh_cache(entries):
        sizes = []
        for rows in (2 * BLOCK, BLOCK + 3):
            walk, whole = Walk(rows), Walk(rows)
            step = in_blocks(Rowwise(make_env._copied(walk.step), walk.rows))
            assert step is not None
            step()
            whole.step()
            assert torch.equal(walk.place, whole.place) and torch.equal(walk.tired, whole.tired)
            torch._dynamo.reset()
            sizes.append(torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"])
    assert sizes[0] == sizes[1]


def test_an_environment_and_its_policy_in_blocks(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are cut into blocks, one of them not full, and go the same way."""
    caplog.set_level(logging.DEBUG, "embodied_rl")
    monkeypatch.setattr(make_env.machine, "cpp_error", lambda: None)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    small = [f"env.num_envs={BLOCK + 3}", "physics.num_threads=1", "ppo.actor_hidden_dims=[8]"]
    torch.manual_seed(0)
    policy, rollouts = None, []
    for compiled in ("true", "false"):
        page = load("go2_flat", [*small, f"env.compile={compiled}"])
        env = make_env.make(page)
        policy = policy or policy_of(build_actor(env.obs, env.action_space, page.ppo))
        compiler: Callable = make_env.compiler(page, env.device)
        rollouts.append(LocalCollector(env, 3, seed=1, compiler=compiler).collect(policy, 0))
        env.close()
    assert not [message for message in caplog.messages if "is not compiled for blocks" in message]
    one, two = rollouts
    for name in ("actions", "rewards", "valid", "terminated"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))
    torch.testing.assert_close(one.last_obs, two.last_obs)
    assert one.totals == pytest.approx(two.totals)
