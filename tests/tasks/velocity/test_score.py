"""Does it walk: the conditions that no page can ease, what is counted, and the limits."""

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
from embodied_rl.tasks.velocity import score
from embodied_rl.tasks.velocity.score import Walk

ICE = "{term: randomize, quantity: friction, of: feet, operation: set, range: [0.1, 0.2], when: startup}"
PAYLOAD = "{term: randomize, quantity: mass, of: base, operation: scale, range: [0.5, 0.6]}"
RAMP = "{term: linear, parameter: %s, start: %s, end: %s, iterations: [0, 9]}"
#: What pages have tried, or might: each would make the evaluation easier, or another one.
EASED = {
    "starts": ["events.reset_base={position: 0.0, yaw: 0.0, lin_vel: 0.0, ang_vel: 0.0}", "events.reset_joints.position=0.0"],
    "starts under other names": ["events.reset_base=null", "events.calm={term: reset_base, lin_vel: 0.0, tilt: 0.5}"],
    "no starts": ["events=null"],
    "ranges": ["commands.velocity.lin_vel_x=[0.0, 0.3]", "commands.velocity.ang_vel_z=[0.0, 0.0]"],
    "hold": ["commands.velocity.standing=0.9", "commands.velocity.standing_hold=0.1", "commands.velocity.resample_s=[99, 99]"],
    "heading": ["commands.velocity.heading=true"],
    "friction": ["events.foot_friction.range=[1.0, 1.0]"],
    "friction under another name": ["events.foot_friction=null", f"events.ice={ICE}"],
    "pushes": ["events.push.lin_vel=5.0"],
    "randomized robots": [f"events.payload={PAYLOAD}"],
    "episodes": ["env.episode_s=2.0", "env.random_episode_phase=true"],
    "curriculum": [f"curriculum.ramp={RAMP % ('commands.velocity.lin_vel_x', '[0.0, 0.1]', '[-0.2, 0.2]')}"],
    "curriculum of an event": [f"curriculum.ramp={RAMP % ('events.push.lin_vel', '[0.0]', '[0.5]')}"],
}


def conditions(page: Page) -> dict:
    """All that a page says of how its robots are asked, start and end."""
    mapping = page.to_mapping()
    return {key: mapping[key] for key in ("env", "commands", "events", "terminations", "curriculum")}


@pytest.mark.parametrize("changes", EASED.values(), ids=EASED)
def test_no_page_eases_its_own_evaluation(changes: list[str]) -> None:
    shipped, eased = (conditions(evaluation_page(load("go2_flat", one), SEEDS[0])) for one in ([], changes))
    assert eased == shipped
    assert list(eased["events"]) == ["reset_base", "reset_joints", "foot_friction"]  # the order of their draws


def test_the_conditions_are_those_of_go2_flat() -> None:
    page = load("go2_flat", ["events.foot_friction.range=[0.5, 1.25]"])  # trained on more slippery feet, too
    changed = evaluation_page(page, SEEDS[0])
    assert {name: page.events[name] for name in changed.events} == changed.events
    asked = changed.commands["velocity"].params
    assert (asked["lin_vel_x"], asked["lin_vel_y"], asked["ang_vel_z"]) == ((-1.0, 1.0), (-0.5, 0.5), (-1.0, 1.0))
    assert (asked["resample_s"], asked["standing"], asked["standing_hold"]) == ((5.0, 5.0), 0.1, 1.0)
    assert changed.env.episode_s == 20.0


@pytest.mark.parametrize(
    "changes",
    [
        ["terminations=null"],
        ["terminations={tilt: {limit: 3.0}}"],
        ["terminations.tilt=null", "terminations.tilt={term: height, minimum: 0.01}"],
    ],
)
def test_no_page_hides_its_falls(changes: list[str]) -> None:
    page = load("go2_flat", changes)
    ends = evaluation_page(page, SEEDS[0]).terminations
    assert page.terminations.items() <= ends.items()  # its own stay
    added = [entry for name, entry in ends.items() if name not in page.terminations]
    assert [(entry.term, entry.params) for entry in added] == [("time_out", {}), ("tilt", {"limit": 1.0})]


def test_no_curriculum_goes_on() -> None:
    page = load("go2_flat", [f"curriculum.weight={RAMP % ('rewards.pose.weight', '[0.0]', '[2.0]')}"])
    changed = evaluation_page(page, SEEDS[0])
    assert not changed.curriculum and changed.rewards["pose"].weight == page.rewards["pose"].weight


def test_a_page_says_over_which_ranges_it_is_judged() -> None:
    changes = ["score.lin_vel_x=[0.0, 2.0]", "score.episode_s=10.0", "score.friction=[0.8, 0.9]", "score.tilt=0.7"]
    page = load("go2_flat", [*changes, "score.start_lin_vel=0.0", "score.lin_vel_error=0.3"])
    changed = evaluation_page(page, SEEDS[0])
    assert changed.commands["velocity"].params["lin_vel_x"] == (0.0, 2.0)
    assert changed.env.episode_s == 10.0
    assert changed.events["foot_friction"].params["range"] == (0.8, 0.9)
    assert changed.events["reset_base"].params["lin_vel"] == 0.0
    assert changed.terminations["score_tilt"].params["limit"] == 0.7
    assert score_of(page).limits(False)["lin_vel_error"] == 0.3


def test_only_pages_with_a_velocity_command_are_judged() -> None:
    page = SimpleNamespace(name="jump", commands={})
    with pytest.raises(UserError, match="jump: task: velocity judges how a velocity command is followed, and the page has none"):
        Walk().overrides(page, False)  # pyright: ignore[reportArgumentType]


def test_robots_that_stand_are_off_by_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight robots that stand or lie for 20 s, or hang, for no termination ends their episodes."""
    monkeypatch.setattr(protocol, "EPISODES", 8)
    page = load("go2_flat", ["physics.num_threads=1", "terminations=null", "score.tilt=3.1415927"])
    result = runs.evaluate_policy(page, lambda obs: torch.zeros(8, 12))
    assert result["fall_rate"] == 0.0
    assert result["mean_episode_s"] == pytest.approx(20.0)
    # the mean |v| of commands uniform in +-1 x +-0.5 is 0.59 m/s, mean |w| is 0.5 rad/s; 32 commands were drawn
    assert 0.4 < result["lin_vel_error"] < 0.75 and 0.3 < result["ang_vel_error"] < 0.7


class Scripted:
    """Eight robots whose state is written in a table, in place of an environment; 4 steps a second, 5 s a command."""

    step_dt, num_envs, device = 0.25, 8, "cpu"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.command = SimpleNamespace(command=torch.zeros(8, 3), time_left=torch.full((8,), 5.0))
        self.terms = SimpleNamespace(commands={"velocity": self.command})
        self.page = SimpleNamespace(commands={"velocity": SimpleNamespace(term="velocity")})
        self.robot, self.physics, self.max_episode_length = SimpleNamespace(mass=10.0, measured=frozenset()), self, 80
        monkeypatch.setattr(score, "PartState", lambda robot, physics: physics.state())

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

    def step(self, fell: Tensor) -> None:
        self.answered = self.command.command.clone()
        self.steps += 1
        left = self.command.time_left
        left -= self.step_dt
        fresh = (left < 0.1) | fell
        left[fresh] = 5.0
        self.command.command[fresh] = float(self.steps)


def figures(monkeypatch: pytest.MonkeyPatch, *, fall_at: int | None = None) -> dict[str, float]:
    env, walk, going = Scripted(monkeypatch), Walk(), torch.ones(8).bool()
    walk.begin(env)  # pyright: ignore[reportArgumentType]
    for step in range(1, 81):
        fell = (torch.arange(8) < 2) & (step == fall_at)
        env.step(fell)
        going &= ~fell
        walk.step(env, going)  # pyright: ignore[reportArgumentType]
    return walk.figures()


def test_the_first_second_after_a_command_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is answered is the command of before the step, not the one that it ended with."""
    result = figures(monkeypatch)
    assert result["lin_vel_error"] == pytest.approx(0.5)
    assert result["ang_vel_error"] == pytest.approx(0.2, rel=1e-5)
    # |2 * 3| + |-1 * 4| = 10 W over 0.5 m/s, for a weight of 98.1 N
    assert result["cost_of_transport"] == pytest.approx(10.0 / (98.1 * 0.5))


def test_what_follows_a_fall_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next episodes of two robots, whose first second comes at another time."""
    assert figures(monkeypatch, fall_at=30)["lin_vel_error"] == pytest.approx(0.5)


def test_walking_is_every_limit_at_once() -> None:
    walk = Walk()
    for reference in (False, True):
        limits = walk.limits(reference)
        assert walk.verdict(limits, reference) == (True, "it walks")
        for name in limits:
            passed, sentence = walk.verdict(limits | {name: 0.8, "reached/vx_0.1_to_0.3": 0.2}, reference)
            assert not passed and sentence.startswith("it does not walk yet")
    assert walk.limits(False) == {
        "fall_rate": 0.01,
        "lin_vel_error": 0.15,
        "ang_vel_error": 0.20,
        "shortfall": 0.5,
        "heading_drift": 0.785,
    }
    assert walk.limits(True) == {"fall_rate": 0.05, "lin_vel_error": 0.20}


def test_an_evaluation_is_worth_its_time_near_the_limits() -> None:
    near = {"Metrics/lin_vel_error": 0.30, "Metrics/ang_vel_error": 0.40}
    assert Walk().near(near)
    assert not any(Walk().near(near | {name: 0.5}) for name in near)
    assert not Walk().near({})
    assert Walk(lin_vel_error=0.25).near(near | {"Metrics/lin_vel_error": 0.5})
