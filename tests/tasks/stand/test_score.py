"""Does it stand: the conditions that no page can ease, what is counted, and the limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embodied_rl import runs
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn import evaluate as protocol
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
from embodied_rl.mdp.score import score_of
from embodied_rl.tasks.stand import score
from embodied_rl.tasks.stand.score import Stand

ICE = "{term: randomize, quantity: friction, of: feet, operation: set, range: [0.1, 0.2], when: startup}"
RAMP = "{term: linear, parameter: %s, start: %s, end: %s, iterations: [0, 9]}"
#: What pages might try: each would make the evaluation easier, or another one.
EASED = {
    "starts": ["events.reset_base={position: 0.0, yaw: 0.0, lin_vel: 0.0, ang_vel: 0.0}", "events.reset_joints.position=0.0"],
    "no starts": ["events=null"],
    "ranges": ["commands.pose.height=[0.3, 0.3]", "commands.pose.roll=[0.0, 0.0]", "commands.pose.pitch=[0.0, 0.1]"],
    "hold": ["commands.pose.resample_s=[99, 99]"],
    "friction": ["events.foot_friction.range=[1.0, 1.0]"],
    "friction under another name": ["events.foot_friction=null", f"events.ice={ICE}"],
    "pushes": ["events.push={interval_s: 1.0, lin_vel: 2.0}"],
    "episodes": ["env.episode_s=2.0", "env.random_episode_phase=true"],
    "curriculum": [f"curriculum.ramp={RAMP % ('commands.pose.roll', '[0.0, 0.0]', '[-0.1, 0.1]')}"],
}


def conditions(page: Page) -> dict:
    """All that a page says of how its robots are asked, start and end."""
    mapping = page.to_mapping()
    return {key: mapping[key] for key in ("env", "commands", "events", "terminations", "curriculum")}


@pytest.mark.parametrize("changes", EASED.values(), ids=EASED)
def test_no_page_eases_its_own_evaluation(changes: list[str]) -> None:
    shipped, eased = (conditions(evaluation_page(load("go2_stand", one), SEEDS[0])) for one in ([], changes))
    assert eased == shipped
    assert list(eased["events"]) == ["reset_base", "reset_joints", "foot_friction"]  # the order of their draws


def test_the_conditions_are_those_of_go2_stand() -> None:
    page = load("go2_stand")
    changed = evaluation_page(page, SEEDS[0])
    assert {name: page.events[name] for name in changed.events} == changed.events
    asked = changed.commands["pose"].params
    assert {name: asked[name] for name in ("height", "roll", "pitch")} == {
        "height": (0.2, 0.32),
        "roll": (-0.2, 0.2),
        "pitch": (-0.2, 0.2),
    }
    assert (asked["resample_s"], changed.env.episode_s) == ((3.0, 3.0), 12.0)


@pytest.mark.parametrize("changes", [["terminations=null"], ["terminations={tilt: {limit: 3.0}, height: {minimum: 0.01}}"]])
def test_no_page_hides_its_falls(changes: list[str]) -> None:
    page = load("go2_stand", changes)
    ends = evaluation_page(page, SEEDS[0]).terminations
    assert page.terminations.items() <= ends.items()  # its own stay
    added = [(entry.term, entry.params) for name, entry in ends.items() if name not in page.terminations]
    assert added == [("time_out", {}), ("tilt", {"limit": 1.0}), ("height", {"minimum": 0.1})]


def test_no_curriculum_goes_on() -> None:
    page = load("go2_stand", [f"curriculum.weight={RAMP % ('rewards.pose.weight', '[0.0]', '[2.0]')}"])
    changed = evaluation_page(page, SEEDS[0])
    assert not changed.curriculum and changed.rewards["pose"].weight == page.rewards["pose"].weight


def test_a_page_says_over_which_ranges_it_is_judged() -> None:
    changes = ["score.roll=[0.0, 0.1]", "score.episode_s=6.0", "score.friction=[0.8, 0.9]", "score.tilt=0.7", "score.lowest=0.15"]
    page = load("go2_stand", [*changes, "score.start_lin_vel=0.0", "score.height_error=0.02"])
    changed = evaluation_page(page, SEEDS[0])
    assert changed.commands["pose"].params["roll"] == (0.0, 0.1)
    assert changed.env.episode_s == 6.0
    assert changed.events["foot_friction"].params["range"] == (0.8, 0.9)
    assert changed.events["reset_base"].params["lin_vel"] == 0.0
    assert changed.terminations["score_tilt"].params["limit"] == 0.7
    assert changed.terminations["score_height"].params["minimum"] == 0.15
    assert score_of(page).limits(False)["height_error"] == 0.02


def test_only_pages_with_a_pose_command_are_judged() -> None:
    page = SimpleNamespace(name="jump", commands={})
    with pytest.raises(UserError, match="jump: task: stand judges how a commanded pose is held, and the page has none"):
        Stand().overrides(page, False)  # pyright: ignore[reportArgumentType]


def test_robots_that_keep_the_default_pose_are_off_by_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EPISODES", 8)
    asked = ["score.height=[0.2, 0.2]", "score.pitch=[0.2, 0.2]", "score.episode_s=2.0"]
    calm = [f"score.start_{name}=0.0" for name in ("joint_pos", "lin_vel", "ang_vel")]
    page = load("go2_stand", ["physics.num_threads=1", "env.compile=false", *asked, *calm])
    result = runs.evaluate_policy(page, lambda obs: torch.zeros(8, 12))
    assert result["fall_rate"] == 0.0
    assert result["mean_episode_s"] == pytest.approx(2.0)
    assert 0.06 < result["height_error"] < 0.13  # the base stands at 0.32 m, and lower for its weight
    assert 0.2 < result["tilt_error"] < 0.27  # the mean of sqrt(0.2^2 + roll^2) is 0.23


class Scripted:
    """Eight robots whose state is written in a table, in place of an environment; 4 steps a second, 5 s a pose."""

    step_dt, num_envs, device = 0.25, 8, "cpu"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.command = SimpleNamespace(command=torch.zeros(8, 3), time_left=torch.full((8,), 5.0))
        self.terms = SimpleNamespace(commands={"pose": self.command})
        self.page = SimpleNamespace(commands={"pose": SimpleNamespace(term="pose")})
        self.robot, self.physics = None, self
        self.scene = SimpleNamespace(terrain=SimpleNamespace(height=lambda xy: 0.1 * xy[:, 0]))
        monkeypatch.setattr(score, "PartState", lambda robot, physics: physics.state())

    def state(self) -> SimpleNamespace:
        """In the first second after a pose everything is off by 1 m and 1 rad, then by 0.02 m and 0.1 rad."""
        settled = (self.steps - 1) % 20 >= 4
        height, angle = (0.02, 0.1) if settled else (1.0, 1.0)
        roll = self.answered[:, 1] + angle
        return SimpleNamespace(
            base_pos_w=torch.stack((torch.full((8,), 3.0), torch.zeros(8), self.answered[:, 0] - height + 0.3), dim=-1),
            projected_gravity_b=torch.stack((0.0 * roll, -torch.sin(roll), -torch.cos(roll)), dim=-1),
        )

    def step(self, fell: Tensor) -> None:
        self.answered = self.command.command.clone()
        self.steps += 1
        left = self.command.time_left
        left -= self.step_dt
        fresh = (left < 0.1) | fell
        left[fresh] = 5.0
        self.command.command[fresh] = torch.tensor([0.2 + 0.001 * self.steps, 0.01 * self.steps, 0.0])


def figures(monkeypatch: pytest.MonkeyPatch, *, fall_at: int | None = None) -> dict[str, float]:
    env, stand, going = Scripted(monkeypatch), Stand(), torch.ones(8).bool()
    stand.begin(env)  # pyright: ignore[reportArgumentType]
    for step in range(1, 81):
        fell = (torch.arange(8) < 2) & (step == fall_at)
        env.step(fell)
        going &= ~fell
        stand.step(env, going)  # pyright: ignore[reportArgumentType]
    return stand.figures()


def test_the_first_second_after_a_pose_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is answered is the pose of before the step, not the one that it ended with; the ground is at 0.3 m."""
    assert figures(monkeypatch) == pytest.approx({"height_error": 0.02, "tilt_error": 0.1}, rel=1e-4)


def test_what_follows_a_fall_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next episodes of two robots, whose first second comes at another time."""
    assert figures(monkeypatch, fall_at=30) == pytest.approx({"height_error": 0.02, "tilt_error": 0.1}, rel=1e-4)


def test_standing_is_every_limit_at_once() -> None:
    stand = Stand()
    for reference in (False, True):
        limits = stand.limits(reference)
        assert stand.verdict(limits, reference) == (True, "it stands")
        for name in limits:
            assert stand.verdict(limits | {name: 0.05}, reference) == (False, "it does not stand yet")
    assert stand.limits(False) == stand.limits(True) == {"fall_rate": 0.01, "height_error": 0.01, "tilt_error": 0.0349}


def test_an_evaluation_is_worth_its_time_near_the_limits() -> None:
    near = {"Metrics/height_error": 0.03, "Metrics/tilt_error": 0.1}
    assert Stand().near(near)
    assert not any(Stand().near(near | {name: 0.12}) for name in near)
    assert not Stand().near({})
    assert Stand(tilt_error=0.05).near(near | {"Metrics/tilt_error": 0.14})
