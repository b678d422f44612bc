from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env, runs
from embodied_rl.config import Page, load, override
from embodied_rl.errors import UserError
from embodied_rl.learn import evaluate as protocol
from embodied_rl.learn.evaluate import FIRST_SEED, LIMITS, SEEDS, evaluate, evaluation_page, walks

KEYS = {"episodes", "fall_rate", "lin_vel_error", "ang_vel_error", "mean_reward", "mean_episode_s", "cost_of_transport"}


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
    assert (changed.env.num_envs, changed.env.episode_s, changed.env.seed) == (256, 20.0, SEEDS[2])
    assert not changed.env.random_episode_phase
    asked = changed.commands["velocity"].params
    assert (asked["lin_vel_x"], asked["lin_vel_y"], asked["ang_vel_z"]) == ((-1.0, 1.0), (-0.5, 0.5), (-1.0, 1.0))
    assert (asked["resample_s"], asked["standing"], asked["heading"]) == ((5.0, 5.0), 0.1, False)
    assert changed.events["randomize_friction"].params["range"] == (0.5, 1.25)
    assert "push" in page.events and "push" not in changed.events
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


def test_friction_is_random_once_whatever_the_page_calls_it() -> None:
    own = ["events.randomize_friction=null", "events.ice={term: randomize_friction, range: [0.1, 0.2]}"]
    for overrides, name in (([], "randomize_friction"), (own, "ice"), (own[:1], "randomize_friction")):
        events = evaluation_page(load("go2_flat", overrides), SEEDS[0]).events
        ranges = {event: entry.params["range"] for event, entry in events.items() if entry.term == "randomize_friction"}
        assert ranges == {name: (0.5, 1.25)}


def test_curricula_are_over() -> None:
    ramp = "{term: linear, parameter: rewards.pose.weight, start: [0.0], end: [1.0], iterations: [0, 9]}"
    page = load("go2_flat", [f"curriculum.ramp={ramp}"])
    assert page.curriculum and not evaluation_page(page, SEEDS[0]).curriculum


def test_only_velocity_tasks_have_the_protocol() -> None:
    page = SimpleNamespace(name="jump", commands={})
    with pytest.raises(UserError, match="jump: only pages with a velocity command"):
        evaluation_page(page, SEEDS[0])  # pyright: ignore[reportArgumentType]


def test_training_never_meets_the_seeds() -> None:
    assert all(seed >= FIRST_SEED for seed in SEEDS)


def test_the_figures_of_a_run(page: Page) -> None:
    """Eight robots that stand or lie for 20 s, for no termination ends their episodes: what is asked for is the error."""
    page = override(page, ["terminations.tilt=null", "terminations.height=null"])
    result = runs.evaluate_policy(page, stand)
    assert KEYS | {f"reward/{name}" for name in (*page.rewards, "total")} == set(result)
    assert result["episodes"] == 8 and result["fall_rate"] == 0.0
    assert result["mean_episode_s"] == pytest.approx(20.0)
    # the mean |v| of commands uniform in +-1 x +-0.5 is 0.59 m/s, mean |w| is 0.5 rad/s; 32 commands were drawn
    assert 0.4 < result["lin_vel_error"] < 0.75 and 0.3 < result["ang_vel_error"] < 0.7
    assert result["mean_reward"] == pytest.approx(20.0 * result["reward/total"], rel=1e-5)
    assert all(math.isfinite(value) for value in result.values())


def test_a_seed_makes_an_evaluation(page: Page) -> None:
    def result(seed: int) -> dict[str, float]:
        short = override(evaluation_page(page, seed), ["env.episode_s=2.0"])
        env = make_env.make(short, measure=("joint_torque",))
        try:
            return evaluate(env, stand)
        finally:
            env.close()

    assert result(SEEDS[0]) == result(SEEDS[0]) != result(SEEDS[1])


class Scripted:
    """Eight robots whose state is written in a table, in place of an environment; 4 steps a second."""

    step_dt, num_envs, max_episode_length, device = 0.25, 8, 80, "cpu"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fall_at: int | None = None) -> None:
        self.steps, self.fall_at = 0, fall_at
        self.obs = {"actor": torch.zeros(8, 1)}
        self.buffers = {
            "velocity.command": torch.zeros(8, 3),
            "velocity.time_left": torch.full((8,), 5.0),
            "reward_terms": torch.zeros(8, 2),
        }
        reward, command = SimpleNamespace(name="only"), SimpleNamespace(name="velocity")
        self.terms = SimpleNamespace(commands={"velocity": command}, rewards=[reward])
        self.robot, self.physics = SimpleNamespace(mass=10.0), self
        monkeypatch.setattr(protocol, "RobotState", lambda robot, physics: physics.state())

    def state(self) -> SimpleNamespace:
        """In the first second after a command everything is off by 100, then by (0.3, 0.4) m/s and 0.2 rad/s."""
        settled = (self.steps - 1) % 20 >= 4
        off = 1.0 if settled else 100.0
        return SimpleNamespace(
            lin_vel_yaw=self.answered[:, :2] + off * torch.tensor([0.3, 0.4]),
            yaw_rate=self.answered[:, 2] - off * 0.2,
            joint_torque=torch.tensor([[2.0, -1.0]]).expand(8, 2),
            joint_vel=torch.tensor([[3.0, 4.0]]).expand(8, 2),
            base_lin_vel_w=torch.tensor([[0.0, 0.5, 9.0]]).expand(8, 3),
        )

    def step(self, actions: Tensor) -> SimpleNamespace:
        self.answered = self.buffers["velocity.command"].clone()
        self.steps += 1
        self.buffers["reward_terms"][:] = torch.tensor([1.0, 2.0])
        fell = torch.zeros(8).bool()
        if self.steps == self.fall_at:
            fell[:2] = True
        left = self.buffers["velocity.time_left"]
        left -= self.step_dt
        fresh = (left < 0.1) | fell
        left[fresh] = 5.0
        self.buffers["velocity.command"][fresh] = float(self.steps)
        return SimpleNamespace(terminated=fell, truncated=torch.full((8,), self.steps == 80))


def test_the_first_second_after_a_command_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(Scripted(monkeypatch), lambda obs: obs["actor"])  # pyright: ignore[reportArgumentType]
    assert result["lin_vel_error"] == pytest.approx(0.5)
    assert result["ang_vel_error"] == pytest.approx(0.2, rel=1e-5)
    assert (result["fall_rate"], result["mean_episode_s"]) == (0.0, 20.0)
    assert (result["mean_reward"], result["reward/only"], result["reward/total"]) == (160.0, 4.0, 8.0)
    # |2 * 3| + |-1 * 4| = 10 W over 0.5 m/s, for a weight of 98.1 N
    assert result["cost_of_transport"] == pytest.approx(10.0 / (98.1 * 0.5))


def test_a_fallen_episode_counts_up_to_the_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(Scripted(monkeypatch, fall_at=30), lambda obs: obs["actor"])  # pyright: ignore[reportArgumentType]
    assert result["fall_rate"] == 0.25
    assert result["mean_episode_s"] == pytest.approx((6 * 20.0 + 2 * 7.5) / 8)
    assert result["mean_reward"] == pytest.approx((6 * 160.0 + 2 * 60.0) / 8)
    # the next episodes of the two, whose first second comes at another time, are not looked at
    assert result["lin_vel_error"] == pytest.approx(0.5)
    assert result["reward/only"] == pytest.approx(4.0)


def test_a_robot_that_blows_up_has_fallen(page: Page) -> None:
    env = make_env.make(evaluation_page(page, SEEDS[0]), ["env.episode_s=0.2", "env.compile=false"], measure=("joint_torque",))
    broken = torch.zeros(8).bool()
    broken[3] = True
    env.physics.write(broken, qvel=torch.full_like(env.physics.qvel, float("nan")))
    result = evaluate(env, stand)
    assert result["fall_rate"] == pytest.approx(1 / 8)
    assert all(math.isfinite(value) for value in result.values())
    env.close()


def test_walking_is_every_limit_at_once() -> None:
    well = dict.fromkeys(LIMITS, 0.01)
    assert walks(well)
    assert not any(walks(well | {name: 0.3}) for name in LIMITS)
