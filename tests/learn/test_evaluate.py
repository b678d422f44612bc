from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env, runs, training, waiting
from embodied_rl.config import Page, load, override
from embodied_rl.errors import UserError
from embodied_rl.learn import evaluate as protocol
from embodied_rl.learn.evaluate import FIRST_SEED, SEEDS, evaluate, evaluation_page
from embodied_rl.learn.ranks.group import Group
from embodied_rl.mdp.score import score_of

#: A page with no task, otherwise go2_flat.
NO_TASK = ["task=null"]


def stand(obs: dict[str, Tensor]) -> Tensor:
    """Holds the default pose."""
    return torch.zeros(len(obs["actor"]), 12)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(protocol, "EPISODES", 8)
    return load("go2_flat", ["env.compile=false", "physics.num_threads=1"])


@pytest.mark.parametrize("reference", [False, True])
def test_the_page_of_an_evaluation(reference: bool) -> None:
    page = load("go2_flat")
    changed = evaluation_page(page, SEEDS[2], reference=reference)
    assert (changed.env.num_envs, changed.env.seed) == (256, SEEDS[2])
    assert not changed.env.random_episode_phase
    assert changed.observations == page.observations  # noise stays
    assert changed.control_dt == pytest.approx(page.control_dt)
    if reference:
        physics = changed.physics
        assert (physics.dt, physics.decimation) == (0.002, 10)
        assert (physics.solver, physics.iterations, physics.ls_iterations) == ("newton", 100, 50)
        assert changed.scene.collisions == "full"
    else:
        assert changed.physics == page.physics and changed.scene == page.scene


def test_reference_physics_keeps_any_control_rate() -> None:
    page = load("go2_flat", ["physics.dt=0.005", "physics.decimation=3"])
    changed = evaluation_page(page, SEEDS[0], reference=True)
    assert changed.control_dt == pytest.approx(0.015, rel=1e-12)
    assert changed.physics.dt == pytest.approx(0.002, rel=0.07)


def test_training_never_meets_the_seeds() -> None:
    assert all(seed >= FIRST_SEED for seed in SEEDS)


def test_a_page_without_a_task_is_not_judged() -> None:
    page = load("go2_flat", NO_TASK)
    for ask in (lambda: runs.evaluate_policy(page, stand), lambda: evaluation_page(page, SEEDS[0])):
        with pytest.raises(
            UserError, match=r"^go2_flat: task: the page names none .*; write task: NAME \([a-z_, ]+, or a folder\)$"
        ):
            ask()


def test_the_figures_of_a_run(page: Page) -> None:
    """Eight robots that stand for a second: those of the loop and those of the score, each term's reward."""
    page = override(page, ["score.episode_s=1.0"])
    result = runs.evaluate_policy(page, stand)
    mine = {"episodes", "fall_rate", "mean_reward", "mean_episode_s"}
    theirs = {"lin_vel_error", "ang_vel_error", "cost_of_transport", "shortfall", "heading_drift"}
    assert mine | theirs | {f"reward/{name}" for name in (*page.rewards, "total")} == set(result)
    assert result["episodes"] == 8
    assert result["mean_reward"] == pytest.approx(result["mean_episode_s"] * result["reward/total"], rel=1e-5)
    assert all(math.isfinite(value) for value in result.values())


def test_a_seed_makes_an_evaluation(page: Page) -> None:
    short = override(page, ["score.episode_s=2.0"])
    results = [runs.evaluate_policy(short, stand, seed=seed) for seed in (SEEDS[0], SEEDS[0], SEEDS[1])]
    assert results[0] == results[1] != results[2]


class Scripted:
    """Four robots of 80 steps, 4 a second, that earn the same in each; two of them end at step 30 and begin anew."""

    step_dt, num_envs, max_episode_length, device = 0.25, 4, 80, "cpu"

    def __init__(self) -> None:
        self.steps = 0
        self.obs = {"actor": torch.zeros(4, 1)}
        self.buffers = {"reward_terms": torch.zeros(4, 2)}
        self.terms = SimpleNamespace(rewards=[SimpleNamespace(name="only")])

    def step(self, actions: Tensor) -> SimpleNamespace:
        self.steps += 1
        self.buffers["reward_terms"][:] = torch.tensor([1.0, 2.0])
        ended = (torch.arange(4) < 2) & (self.steps % 30 == 0)
        return SimpleNamespace(terminated=ended, truncated=torch.full((4,), self.steps == 80))


class Watching:
    """A score that notes what it is shown, whose family calls its failures drops."""

    failure = "drop"

    def __init__(self) -> None:
        self.begun, self.going = 0, []

    def begin(self, env: Scripted) -> None:
        self.begun = 1 + env.steps

    def step(self, env: Scripted, going: Tensor) -> None:
        self.going.append(going.tolist())

    def figures(self) -> dict[str, float]:
        return {"cubes": float(len(self.going))}


def test_an_episode_counts_up_to_its_end() -> None:
    score = Watching()
    result = evaluate(Scripted(), lambda obs: obs["actor"], score)  # pyright: ignore[reportArgumentType]
    assert list(result) == ["episodes", "drop_rate", "cubes", "mean_reward", "mean_episode_s", "reward/only", "reward/total"]
    # the next episodes of the two, which end as well, are not looked at
    assert (result["episodes"], result["drop_rate"], result["cubes"]) == (4, 0.5, 80.0)
    assert result["mean_episode_s"] == (2 * 20.0 + 2 * 7.5) / 4
    assert result["mean_reward"] == (2 * 160.0 + 2 * 60.0) / 4
    assert (result["reward/only"], result["reward/total"]) == (4.0, 8.0)


def test_the_score_sees_which_rows_are_in_their_first_episode() -> None:
    score = Watching()
    evaluate(Scripted(), lambda obs: obs["actor"], score)  # pyright: ignore[reportArgumentType]
    assert score.begun == 1  # before the first step
    assert score.going == [[True] * 4] * 29 + [[False, False, True, True]] * 50 + [[False] * 4]


def test_it_ends_with_the_last_robot(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the figures that looking on to the end gives."""
    page = override(page, ["score.episode_s=4.0"])
    found, steps = [], []

    def sway(obs: dict[str, Tensor]) -> Tensor:
        steps[-1] += 1
        return 3.0 * torch.sin(40.0 * obs["actor"][:, :12])

    for look_every in (1, 7, 1000):
        monkeypatch.setitem(protocol._LOOK_EVERY, "cpu", look_every)
        steps.append(0)
        found.append(runs.evaluate_policy(page, sway))
    assert found[0] == found[1] == found[2] and found[0]["fall_rate"] == 1.0
    assert steps[0] < steps[2] == 200 and steps[1] == -(-steps[0] // 7) * 7


def test_environments_begin_anew_to_the_bit(page: Page) -> None:
    """One evaluation after the other, of policies that end differently, is each of them in environments of its own."""
    page = override(page, ["score.episode_s=1.0"])
    sway = lambda obs: 3.0 * torch.sin(40.0 * obs["actor"][:, :12])  # noqa: E731
    again = runs.Evaluations(page)
    for reference in (False, True):
        for policy in (sway, stand, sway):
            score = score_of(page)
            settings = evaluation_page(page, SEEDS[1], reference=reference)
            env = make_env.make(settings, ["env.compile=false"], measure=score.needs)
            assert again(policy, {}, seed=SEEDS[1], reference=reference) == evaluate(env, policy, score)
            env.close()
    again.close()


def test_evaluations_of_a_training_say_how_far_they_are(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "_FIRST_S", 0.05)
    monkeypatch.setattr(waiting, "_NEXT_S", 0.05)
    page = override(page, ["score.episode_s=2.0", "train.evaluate_every=1"])
    examiner = training._make_examiner(page, Group())
    assert examiner is not None
    examiner._measure(stand, {}, seed=SEEDS[0], reference=False)  # pyright: ignore[reportArgumentType]
    assert "go2_flat: evaluating robots in training physics" in caplog.messages[0]
    assert "train.evaluate_every=null" in caplog.messages[0]  # how to do without
    assert any("of 2 s" in line for line in caplog.messages)


def test_a_robot_that_blows_up_has_fallen(page: Page) -> None:
    page = override(page, ["score.episode_s=0.2"])
    score = score_of(page)
    env = make_env.make(evaluation_page(page, SEEDS[0]), ["env.compile=false"], measure=score.needs)
    broken = torch.zeros(8).bool()
    broken[3] = True
    env.physics.write(broken, qvel=torch.full_like(env.physics.qvel, float("nan")))
    result = evaluate(env, stand, score)
    assert result["fall_rate"] == pytest.approx(1 / 8)
    assert all(math.isfinite(value) for value in result.values())
    env.close()
