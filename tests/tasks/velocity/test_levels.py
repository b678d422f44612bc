from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.moment import Draw
from embodied_rl.mdp.state import Memory
from embodied_rl.tasks.velocity.levels import start_on_patch

DT, ROWS, KINDS = 0.1, 5, 2


class Robots:
    """Robots that go as they are told to, on a ground of two kinds and five rows; what an `Env` does of a step."""

    def __init__(self, rows: tuple[int, int] = (2, 2), num: int = 4, **params) -> None:
        part = SimpleNamespace(floating=True, spec=SimpleNamespace(name="dog"), root_qpos=0, root_qvel=0)
        self.term, self.memory = start_on_patch(part, rows=rows, **params), Memory(num, torch.device("cpu"))  # pyright: ignore
        self.memory.add("events.start_on_patch", self.term)
        kind, row = torch.meshgrid(torch.arange(KINDS), torch.arange(ROWS), indexing="ij")
        self.origins = torch.stack((10.0 * row, 10.0 * kind, 0.0 * row), dim=-1)
        self.num, self.command, self.speed = num, torch.zeros(num, 3), torch.zeros(num, 2)
        self.length = 100
        self.reset()

    def env(self, done: Tensor, terminated: Tensor | None, timed_out: Tensor) -> SimpleNamespace:
        robot = SimpleNamespace(lin_vel_yaw=self.speed, root_qpos=0, root_qvel=0)
        return SimpleNamespace(
            robot=robot,
            terrain=SimpleNamespace(origins=self.origins, kinds=("stairs", "slope")),
            env_ids=torch.arange(self.num),
            command=lambda name: self.command,
            step_dt=DT,
            done=done,
            episode_length=torch.where(done, 0, self.length),  # an event sees that of the next episode
            max_episode_length=100,
            terminated=terminated,
            timed_out=timed_out,
            draw=Draw(torch.rand(self.num, 8, generator=torch.Generator().manual_seed(1))),
        )

    def _draft(self) -> Draft:
        return Draft(torch.tensor([[0.0, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]]).expand(self.num, 7), torch.zeros(self.num, 6), {})

    def reset(self) -> Draft:
        draft = self._draft()
        self.term(self.env(torch.ones(self.num).bool(), None, torch.zeros(self.num).bool()), draft)  # pyright: ignore
        return draft

    def go(self, seconds: float, command: tuple[float, ...], speed: tuple[float, float]) -> None:
        self.command, self.speed = torch.tensor([command]).expand(self.num, 3), torch.tensor([speed]).expand(self.num, 2)
        nobody = torch.zeros(self.num).bool()
        for _ in range(round(seconds / DT)):
            self.term.update(self.env(nobody, nobody, nobody))  # pyright: ignore

    def end(self, *, fell: bool = False) -> list[int]:
        everybody, nobody = torch.ones(self.num).bool(), torch.zeros(self.num).bool()
        env = self.env(everybody, everybody if fell else nobody, nobody if fell else everybody)
        self.term(env, self._draft())  # pyright: ignore
        return self.term.row.tolist()


def test_robots_are_dealt_out_over_kinds_and_rows() -> None:
    robots = Robots(rows=(1, 2), num=8)
    assert robots.term.row.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    draft = robots.reset()
    assert robots.term.row.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]  # nobody is judged at a reset
    assert draft.qpos[:, 0].tolist() == [10.0, 10.0, 20.0, 20.0] * 2
    assert draft.qpos[:, 1].tolist() == [0.0, 10.0] * 4 and draft.qpos[:, 2].tolist() == pytest.approx([0.3] * 8)


@pytest.mark.parametrize(
    ("seconds", "command", "speed", "row"),
    [
        (5.0, (1.0, 0.0, 0.0), (0.9, 0.3), 3),  # follows
        (5.0, (0.0, 0.4, 1.0), (0.0, 0.35), 3),  # in a circle, and sideways
        (5.0, (0.3, 0.0, 0.0), (0.28, 0.0), 3),  # slowly
        (5.0, (1.0, 0.0, 0.0), (0.6, 0.0), 2),  # not well enough; never down for a time-out
        (5.0, (1.0, 0.0, 0.0), (-1.0, 0.0), 2),
        (1.8, (1.0, 0.0, 0.0), (1.0, 0.0), 2),  # too short
        (5.0, (0.1, 0.0, 0.0), (0.1, 0.0), 2),  # too little is asked for
        (5.0, (0.0, 0.0, 0.0), (0.0, 0.0), 2),
    ],
)
def test_who_goes_up(seconds: float, command: tuple[float, ...], speed: tuple[float, float], row: int) -> None:
    robots = Robots()
    robots.go(seconds, command, speed)
    assert robots.end() == [row] * 4


def test_the_last_command_alone_is_judged() -> None:
    robots = Robots()
    robots.go(10.0, (1.0, 0.0, 0.0), (0.0, 0.0))
    robots.go(3.0, (0.5, 0.0, 0.0), (0.5, 0.0))
    assert robots.end() == [3] * 4
    robots.go(10.0, (1.0, 0.0, 0.0), (1.0, 0.0))
    robots.go(3.0, (0.5, 0.0, 0.0), (0.0, 0.0))
    assert robots.end() == [3] * 4
    robots.go(1.0, (0.5, 0.0, 0.0), (0.5, 0.0))  # the window before is over with its episode
    assert robots.end() == [3] * 4


def test_being_faster_than_asked_makes_nothing_good() -> None:
    robots = Robots()
    robots.go(2.5, (1.0, 0.0, 0.0), (2.0, 0.0))
    robots.go(2.5, (1.0, 0.0, 0.0), (0.0, 0.0))
    assert robots.end() == [2] * 4


def test_who_falls_goes_down_and_who_is_through_goes_anywhere() -> None:
    robots = Robots(num=64)
    for row in (1, 0, 0):
        robots.go(5.0, (1.0, 0.0, 0.0), (1.0, 0.0))
        assert robots.end(fell=True) == [row] * 64
    for row in (1, 2, 3, 4):
        robots.go(5.0, (1.0, 0.0, 0.0), (1.0, 0.0))
        assert robots.end() == [row] * 64
    robots.go(5.0, (1.0, 0.0, 0.0), (1.0, 0.0))
    assert set(robots.end()) == set(range(ROWS))


def test_without_a_curriculum_rows_stay() -> None:
    robots = Robots(rows=(0, 9), num=10, curriculum=False)
    rows = robots.term.row.tolist()
    assert rows == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    robots.go(5.0, (1.0, 0.0, 0.0), (1.0, 0.0))
    assert robots.end() == rows and robots.end(fell=True) == rows


def test_a_time_out_before_its_time_is_no_judgement() -> None:
    """As where a robot is stuck or the ground ends."""
    robots = Robots(rows=(2, 2))
    robots.length = 60
    robots.go(4.0, (0.5, 0.0, 0.0), (0.5, 0.0))
    assert robots.end() == [2, 2, 2, 2]
    robots.length = 100
    robots.go(4.0, (0.5, 0.0, 0.0), (0.5, 0.0))
    assert robots.end() == [3, 3, 3, 3]


def test_who_gets_there_goes_up_in_an_env() -> None:
    """In the order in which an environment's step asks: what it clears before it places robots is not judged."""
    small = ["env.num_envs=3", "env.compile=false", "env.random_episode_phase=false", "env.episode_s=0.3", "terrain.rows=3"]
    hold = ["events.start_on_patch={rows: [1, 1], window_s: 0.1, kinds: [flat]}", "commands.velocity.resample_s=[10.0, 10.0]"]
    page = load("go2_rough", [*small, *hold, "commands.velocity.standing=0.0"])
    env = make_env.make(page)
    env.reset()
    state = {name: env.buffers[f"events.start_on_patch.{name}"] for name in ("row", "way")}
    rows = [[1, 1, 1]]
    while len(rows) < 3:
        state["way"].copy_(torch.tensor([[1.0, 1.0], [1.0, 0.2], [1.0, 1.0]]))  # asked for, and gone
        env.step(torch.zeros(3, env.num_actions))
        if env.episode.truncated.all():
            rows.append(state["row"].tolist())
    assert rows == [[1, 1, 1], [2, 1, 2], rows[2]] and rows[2][1] == 1
    env.close()


def test_without_patches_it_is_refused() -> None:
    page = load("go2_flat", ["events.start_on_patch={}", "env.num_envs=2", "env.compile=false"])
    with pytest.raises(UserError, match="start_on_patch places robots on patches, and the page has none; add patches"):
        make_env.make(page)


def test_a_kind_that_stands_twice_gets_twice_as_many() -> None:
    robots = Robots(rows=(1, 2), num=6, kinds=("slope", "stairs", "slope"))
    draft = robots.reset()
    assert draft.qpos[:, 1].tolist() == [10.0, 0.0, 10.0] * 2  # slopes are the second kind
    assert robots.term.row.tolist() == [1, 1, 1, 2, 2, 2]
    levels = next(share for share in robots.term.shares(robots.env(*[torch.zeros(6).bool()] * 3)) if len(share.names) == 2)  # pyright: ignore
    assert levels.at is not None and levels.at.tolist() == [1, 0, 1] * 2
    with pytest.raises(UserError, match="start_on_patch: kinds: the page has no patches 'stair'; did you mean 'stairs'"):
        Robots(kinds=("stair",))


def test_levels_and_successes_are_told_by_kind_and_row() -> None:
    robots = Robots(rows=(2, 2), num=4)
    robots.go(4.0, (0.5, 0.0, 0.0), (0.5, 0.0))
    robots.speed = torch.tensor([[0.5, 0.0]]).expand(4, 2)
    nobody = torch.zeros(4).bool()
    fallen, others = torch.tensor([True, False, False, False]), torch.tensor([False, True, True, True])

    def told(terminated: Tensor, timed_out: Tensor) -> dict[str, tuple[float, float]]:
        found: dict[str, tuple[float, float]] = {}
        for share in robots.term.shares(robots.env(terminated | timed_out, terminated, timed_out)):  # pyright: ignore
            at = torch.zeros(4, dtype=torch.int64) if share.at is None else share.at
            for index, name in enumerate(share.names):
                found[name] = share.number[at == index].sum().item(), share.whole[at == index].sum().item()
        return found

    summed = told(fallen, others)
    assert summed["Metrics/row"] == (8.0, 4.0)
    assert summed["Level/stairs"] == (4.0, 2.0) and summed["Level/slope"] == (4.0, 2.0)
    assert summed["Success/stairs/row_2"] == (1.0, 2.0) and summed["Success/slope/row_2"] == (2.0, 2.0)
    assert all(pair == (0.0, 0.0) for name, pair in summed.items() if name.startswith("Success") and name[-1] != "2")
    summed = told(nobody, nobody)
    assert summed["Level/stairs"] == (4.0, 2.0) and all(
        pair == (0.0, 0.0) for name, pair in summed.items() if name.startswith("Success")
    )
