from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import SEEDS, evaluate, evaluation_page
from embodied_rl.mdp.score import judged, score_of

PATCHES = ["task=rough", "terrain={rows: 2, size: 2.0, border: 2.0, cell: 0.1}", "env.compile=false", "physics.num_threads=1"]
PATCHES += ["patches={flat: {}, stairs: {platform: 0.4, step: [0.02, 0.04]}}"]
PATCHES += ["score={robots: 4, episode_s: 0.8, easy_rows: 1, hard_row: 1, start_joint_pos: 0.0}"]
#: Which way each of the 16 robots is to go.
SIDES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).repeat_interleave(4, 0)


@pytest.fixture
def page() -> Page:
    return load("go2_flat", PATCHES)


def moved(page: Page, way: Tensor, *, at_step: int = 10) -> dict[str, float]:
    """Evaluate robots that stand, each of which is put (N, 2) [m] aside after some steps."""
    score = score_of(page)
    env = make_env.make(evaluation_page(page, SEEDS[0]), measure=score.needs)
    steps = 0

    def policy(obs: dict[str, Tensor]) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == at_step:
            qpos = env.physics.qpos.clone()
            qpos[:, :2] += way
            qpos[:, 2] += 0.04  # the highest step
            env.physics.write(torch.ones(env.num_envs).bool(), qpos=qpos)
        return torch.zeros(env.num_envs, 12)

    try:
        return evaluate(env, policy, score)
    finally:
        env.close()


def test_ground_starts_and_command(page: Page) -> None:
    judged_on = evaluation_page(page, SEEDS[0])
    assert judged_on.env.num_envs == 16 and judged_on.terrain.seed != page.terrain.seed
    assert judged_on.commands["velocity"].params["lin_vel_x"] == (0.6, 0.6) and judged_on.commands["velocity"].params["heading"]
    assert set(judged_on.events) == {"start_on_patch", "reset_base", "reset_joints", "foot_friction"}
    score = score_of(page)
    env = make_env.make(judged_on, measure=score.needs)
    rows, kinds = env.buffers["events.start_on_patch.row"], torch.arange(16) % 2
    assert rows.tolist() == [0, 0, 1, 1] * 4
    origins = env.scene.terrain.origins
    assert origins is not None
    torch.testing.assert_close(env.physics.qpos[:, :2], origins[kinds, rows, :2])
    score.begin(env)
    expected = torch.atan2(SIDES[:, 1], SIDES[:, 0])
    apart = env.buffers["commands.velocity.target"] - expected
    torch.testing.assert_close(torch.cos(apart), torch.ones(16))
    env.close()


def test_who_leaves_through_the_side_that_was_commanded_is_across(page: Page) -> None:
    everybody = moved(page, 1.2 * SIDES)
    assert everybody["success"] == 1.0 and everybody["easy_failures"] == everybody["hard_failures"] == 0.0
    verdict, limits = judged(score_of(page), everybody, False)
    assert verdict.passed and verdict.sentence == "it gets across" and set(limits) == {"easy_failures", "hard_failures"}
    assert everybody["mean_episode_s"] < 0.6  # who is out is done
    way = 1.2 * SIDES
    way[[0, 5]] = way[[5, 0]]  # one of either kind, both in row 0, through another side
    way[2] = 0.0  # and one not at all: flat, row 1
    figures = moved(page, way)
    assert figures["success"] == pytest.approx(13 / 16)
    assert figures["success/flat/row_0"] == figures["success/stairs/row_0"] == figures["success/flat/row_1"] == 0.75
    assert figures["success/stairs/row_1"] == 1.0
    assert figures["easy_failures"] == pytest.approx(0.25) and figures["hard_failures"] == pytest.approx(0.125)
    assert not judged(score_of(page), figures, False)[0].passed


def test_too_late_and_not_far_enough_is_not_across(page: Page) -> None:
    assert moved(page, 1.2 * SIDES, at_step=100)["success"] == 0.0
    figures = moved(page, 0.6 * SIDES)  # on the stairs some go on by themselves
    assert figures["success/flat/row_0"] == figures["success/flat/row_1"] == 0.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["task=rough"], "task: rough judges who gets across patches, and the page has none"),
        ([*PATCHES, "score.hard_row=5"], "score: rows up to 5 are judged, and terrain.rows is 2"),
    ],
)
def test_what_cannot_be_judged_is_said(changes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluation_page(load("go2_flat", changes), SEEDS[0])
