"""The replay against lists of what happened: what is drawn, where it led, and with which weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied_rl.errors import UserError
from embodied_rl.learn.replay import Drawn, Replay, replay_bytes
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.sum_tree import SumTree

GAMMA = 0.9


class Story:
    """Robots whose every observation is a number of its own; what happened, by lists."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.random, self.num_envs = np.random.default_rng(seed), num_envs
        self.now = [self._fresh() for _ in range(num_envs)]
        # of each robot: observation, reward, how it ended, where it led, final observation
        self.rows: list[list[tuple[float, float, str, float, float]]] = [[] for _ in range(num_envs)]
        self._count = 0.0

    def _fresh(self) -> float:
        self._count = getattr(self, "_count", 0.0) + 1.0
        return self._count

    def rollout(self, steps: int, robots: list[int], ends: tuple[float, float, float] = (0.1, 0.1, 0.05)) -> Rollout:
        """Let some robots go on for T steps: they terminate, are truncated, or blow up, with these probabilities."""
        shape = (steps, len(robots))
        obs, final, rewards = (torch.zeros(shape) for _ in range(3))
        terminated, truncated, valid = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        last = torch.zeros(len(robots))
        for column, robot in enumerate(robots):
            for step in range(steps):
                obs[step, column], rewards[step, column] = self.now[robot], float(self.random.normal())
                end = self.random.choice(["on", "terminated", "truncated", "invalid"], p=[1.0 - sum(ends), *ends])
                after, ended_in = self._fresh(), self._fresh() if end == "truncated" else -1.0
                terminated[step, column], truncated[step, column] = end in ("terminated", "invalid"), end == "truncated"
                valid[step, column], final[step, column] = end != "invalid", ended_in
                self.rows[robot].append((self.now[robot], float(rewards[step, column]), end, after, ended_in))
                self.now[robot] = after
            last[column] = self.now[robot]
        groups = lambda value: {"actor": value[..., None], "critic": torch.stack((value, 10.0 * value), dim=-1)}  # noqa: E731
        return Rollout(
            obs=groups(obs), actions=obs[..., None] / 2, output=obs[..., None], std=None, rewards=rewards, terminated=terminated,
            truncated=truncated, valid=valid, final_obs=groups(final), last_obs=groups(last),
        )  # fmt: skip

    def leave(self, robot: int) -> None:
        """Put another one in a robot's place: its last row led to where nothing goes on from."""
        self.now[robot] = self._fresh()
        if self.rows[robot] and self.rows[robot][-1][2] == "on":
            obs, reward, _, after, _ = self.rows[robot][-1]
            self.rows[robot][-1] = (obs, reward, "truncated", after, after)

    def told(self, robot: int, number: int, n_steps: int) -> tuple[float, float, float, float]:
        """Observation, summed rewards, where they led and the discount, step by step."""
        total, rows = 0.0, self.rows[robot]
        for step in range(n_steps):
            _, reward, end, after, final = rows[number + step]
            total += GAMMA**step * reward
            follows = number + step + 1
            if end == "terminated":
                return rows[number][0], total, after, 0.0
            if end == "truncated":
                return rows[number][0], total, final, GAMMA ** (step + 1)
            if follows == len(rows) or rows[follows][2] == "invalid":
                break
        return rows[number][0], total, after, GAMMA ** (step + 1)


def everything(replay: Replay) -> Drawn:
    """Draw each row that is there once."""
    count = int(replay.filled.sum())
    return replay.draw((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def check(replay: Replay, story: Story, drawn: Drawn) -> int:
    valid = 0
    for row in range(len(drawn.rewards)):
        lane, number = (int(part[row]) for part in drawn.numbers)
        if story.rows[lane][number][2] == "invalid":
            assert drawn.weight[row] == 0.0
            continue
        obs, total, after, discount = story.told(lane, number, replay.n_steps)
        assert float(drawn.obs["actor"][row, 0]) == obs and float(drawn.actions[row, 0]) == obs / 2
        assert float(drawn.obs["critic"][row, 1]) == 10.0 * obs
        assert float(drawn.rewards[row]) == pytest.approx(total, abs=1e-5)
        assert float(drawn.discount[row]) == pytest.approx(discount, rel=1e-6)
        if discount:
            assert float(drawn.next_obs["actor"][row, 0]) == after
        assert drawn.weight[row] == 1.0
        valid += 1
    return valid


@pytest.mark.parametrize("n_steps", [1, 3, 5])
def test_rows_are_those_of_a_list_through_ends_robots_and_the_write_head(n_steps: int) -> None:
    story, envs = Story(6, n_steps), 6
    replay = Replay({"actor": 1, "critic": 2}, 1, num_envs=envs, size=6 * 150, gamma=GAMMA, n_steps=n_steps)
    checked = 0
    for turn in range(160):  # 900 steps a lane and more: it is written three times round
        robots = sorted(story.random.choice(envs, size=int(story.random.integers(1, envs + 1)), replace=False).tolist())
        if turn % 9 == 4:
            story.leave(robots[0])
        steps = int(story.random.integers(1, 17))
        replay.insert(story.rollout(steps, robots), torch.tensor(robots))
        if turn % 8 == 7:
            checked += check(replay, story, everything(replay))
    assert checked > 10_000 and int(replay.written.min()) > 3 * 150
    # of all rows the newest of each lane are there, and no other
    lanes, numbers = everything(replay).numbers
    found = sorted(zip(lanes.tolist(), numbers.tolist(), strict=True))
    assert found == [(lane, n) for lane in range(envs) for n in range(len(story.rows[lane]) - 150, len(story.rows[lane]))]


def test_many_time_outs_lose_no_final_observation() -> None:
    story = Story(2, 7)
    replay = Replay({"actor": 1, "critic": 2}, 1, num_envs=2, size=2 * 200, gamma=GAMMA)
    for _ in range(40):
        replay.insert(story.rollout(13, [0, 1], (0.0, 0.8, 0.0)))
    assert check(replay, story, everything(replay)) == 400


def test_rows_are_drawn_alike_where_lanes_are_filled_unequally() -> None:
    story = Story(3, 1)
    replay = Replay({"actor": 1, "critic": 2}, 1, num_envs=3, size=300, gamma=GAMMA)
    replay.insert(story.rollout(80, [0]), torch.tensor([0]))
    replay.insert(story.rollout(20, [2]), torch.tensor([2]))
    lanes, _ = replay.draw(torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).numbers
    assert torch.bincount(lanes, minlength=3).tolist() == pytest.approx([80_000, 0, 20_000], abs=600)


def test_a_replay_goes_on_from_what_was_kept() -> None:
    story = Story(4, 3)
    make = lambda: Replay({"actor": 1, "critic": 2}, 1, num_envs=4, size=200, gamma=GAMMA, n_steps=2, priority_exponent=0.6)  # noqa: E731
    replay, other = make(), make()
    for _ in range(9):
        replay.insert(story.rollout(11, [0, 1, 2, 3]))
    other.restore(replay.snapshot())
    rollout = story.rollout(11, [0, 1, 2, 3])
    for one in (replay, other):
        one.insert(rollout)
    uniform = torch.rand(64, dtype=torch.float64)
    one, two = replay.draw(uniform), other.draw(uniform)
    assert all(torch.equal(one.next_obs[name], two.next_obs[name]) for name in one.next_obs)
    assert torch.equal(one.rewards, two.rewards) and torch.equal(one.numbers[1], two.numbers[1])


def test_what_is_too_small_or_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(UserError, match=r"sac.replay_size: 8 are 2 rows for each of 4 robots, and a target takes 3; .* 12"):
        Replay({"actor": 1}, 1, num_envs=4, size=8, gamma=GAMMA, n_steps=3)
    with pytest.raises(UserError, match=r"the replay takes .* GiB, and .* GiB are free \(cpu\); take fewer rows"):
        Replay({"actor": 1000}, 1, num_envs=4, size=10**12, gamma=GAMMA)
    replay = Replay({"actor": 1, "critic": 2}, 1, num_envs=4, size=40, gamma=GAMMA)
    with pytest.raises(UserError, match=r"40 are 10 rows for each robot, and a rollout has train.steps: 24; at least 96"):
        replay.insert(Story(4, 0).rollout(24, [0, 1, 2, 3]))


@pytest.mark.parametrize("prioritized", [False, True])
def test_memory_is_what_was_said(prioritized: bool) -> None:
    given = {"sizes": {"actor": 17, "critic": 23}, "actions": 6, "num_envs": 16, "size": 50_000}
    replay = Replay(**given, gamma=GAMMA, priority_exponent=0.6 if prioritized else None)
    held = [value for value in vars(replay).values() if isinstance(value, torch.Tensor)]
    held += [value for group in (replay.obs, replay._finals) for value in group.values()]
    held += replay.tree._levels if replay.tree else []
    assert replay_bytes(**given, prioritized=prioritized) == pytest.approx(sum(value.nbytes for value in held), rel=0.02)


# ------------------------------------------------------------------------------------------------------------- priorities


def test_the_root_of_the_tree_is_the_sum_of_its_leaves_after_a_million_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    tree = SumTree(5000)
    for _ in range(250):
        rows = torch.randint(5000, (4000,), generator=generator).unique()
        tree.set(rows, torch.rand(len(rows), generator=generator, dtype=torch.float64) ** 8)
    assert float(tree.total) == pytest.approx(float(tree.leaves.sum()), rel=1e-12)


def test_rows_are_found_as_often_as_their_priorities_say_and_empty_ones_never() -> None:
    generator = torch.Generator().manual_seed(1)
    tree = SumTree(3000)
    rows = torch.arange(0, 2000, 2)
    tree.set(rows, torch.rand(1000, generator=generator, dtype=torch.float64) ** 3)
    tree.set(rows[:100], torch.zeros(100, dtype=torch.float64))
    draws = 1_000_000
    found, share = tree.find(torch.rand(draws, generator=generator, dtype=torch.float64))
    counts = torch.bincount(found, minlength=3000)
    assert int(counts[tree.leaves == 0].sum()) == 0
    expected = (tree.leaves / tree.total * draws)[tree.leaves > 0]
    large = expected > 5.0
    chi_square = ((counts[tree.leaves > 0][large] - expected[large]).square() / expected[large]).sum()
    degrees = int(large.sum())
    assert abs(float(chi_square) - degrees) < 5.0 * (2.0 * degrees) ** 0.5
    assert torch.allclose(share, tree.leaves[found] / tree.leaves.sum())
    # the very last place there is
    assert float(tree.leaves[tree.find(torch.tensor([1.0 - 2.0**-53], dtype=torch.float64))[0]]) > 0.0


def _prioritized(seed: int = 5) -> tuple[Replay, Story]:
    story = Story(4, seed)
    replay = Replay({"actor": 1, "critic": 2}, 1, num_envs=4, size=80, gamma=GAMMA, priority_exponent=0.5)
    replay.insert(story.rollout(12, [0, 1, 2, 3], (0.1, 0.1, 0.2)))
    return replay, story


def test_weights_are_those_of_the_formula_and_equal_priorities_weigh_one() -> None:
    replay, _ = _prioritized()
    uniform = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = replay.draw(uniform, 0.4)
    assert bool((drawn.weight == 1.0).all())  # and none that means nothing was drawn
    errors = torch.rand(500, generator=torch.Generator().manual_seed(3)) + 0.1
    replay.set_priorities(drawn.numbers, errors)
    drawn = replay.draw(uniform, 0.4)
    place = (drawn.numbers[1] % replay.num_slots) * 4 + drawn.numbers[0]
    assert replay.tree is not None
    share = replay.tree.leaves[place] / replay.tree.leaves.sum()
    wanted = (48 * share) ** -0.4
    assert torch.allclose(drawn.weight.double(), wanted / wanted.max(), rtol=1e-6)
    assert 0.0 < float(drawn.weight.min()) < float(drawn.weight.max()) == 1.0


def test_the_priority_of_a_row_that_was_written_over_is_dropped_and_counted() -> None:
    replay, story = _prioritized()
    drawn = replay.draw(torch.rand(64, dtype=torch.float64))
    replay.insert(story.rollout(14, [0, 1, 2, 3], (0.0, 0.0, 0.0)))  # 26 of 20: the first six of each lane are gone
    assert replay.tree is not None
    before = replay.tree.leaves.clone()
    replay.set_priorities(drawn.numbers, torch.full((64,), 1e6))
    gone = drawn.numbers[1] < 6
    assert 0 < int(replay.stale_priorities) == int(gone.sum()) < 64
    kept = set(((drawn.numbers[1] % 21) * 4 + drawn.numbers[0])[~gone].tolist())
    changed = set((replay.tree.leaves != before).nonzero()[:, 0].tolist())
    assert changed == kept
