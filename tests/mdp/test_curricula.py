"""Curricula without a robot: what they move, what is remembered of it, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from embodied_rl import make_env
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.inspection import inspect
from embodied_rl.mdp.curricula import Curricula
from embodied_rl.paths import PACKAGE

OWN = """
from embodied_rl.mdp.term import curriculum

@curriculum()
def own(params, statistics, iteration, *, level: float = 0.0):
    {body}
"""
RANGE = "commands.velocity.lin_vel_x"
RAMP = "{term: linear, parameter: commands.velocity.lin_vel_x, start: [-1.0, 1.0], end: [-2.0, 3.0], iterations: [2, 6]}"


def page(folder: Path, body: str, *overrides: str) -> Page:
    """go2_flat with a curriculum `own` of this body."""
    (folder / "own_terms.py").write_text(OWN.format(body=body))
    (folder / "ramps.yaml").write_text("extends: go2_flat.yaml\nterms: [own_terms.py]\ncurriculum:\n  own: {}\n  gate: null\n")
    return load(str(folder / "ramps.yaml"), overrides)


def ramp(*overrides: str) -> Curricula:
    return Curricula(load("go2_flat", ["curriculum.gate=null", f"curriculum.ramp={RAMP}", *overrides]))


@pytest.mark.parametrize(
    ("name", "learners"),
    [("go2_flat", {"ppo.entropy_coef"}), (str(PACKAGE.parent / "tests" / "everything.yaml"), {"ppo.desired_kl"})],
)
def test_the_numbers_are_the_environments_without_one_and_the_learners_that_are_free(name: str, learners: set[str]) -> None:
    task = load(name, ["env.num_envs=2", "env.compile=false", "physics.num_threads=1"])
    env, numbers = make_env.make(task), Curricula(task).params
    assert set(numbers) - learners == set(env.params) and learners <= set(numbers)
    for path, number in numbers.items():
        expected = torch.tensor(getattr(task.ppo, path[4:])) if path in learners else env.params[path]
        assert number.dtype == torch.float32 and torch.equal(number, expected), path
    env.close()


#: A line through several points: what a prototype that walks over stairs was trained by.
LINES = """
from embodied_rl.mdp.term import curriculum

@curriculum()
def lines(params, statistics, iteration, *, parameter: str, at: tuple[int, ...], values: tuple[float, ...]):
    points = list(zip(at, values))
    for (a, x), (b, y) in zip(points, points[1:]):
        if a <= iteration <= b:
            params[parameter] = x + (y - x) * (iteration - a) / (b - a)
"""


def test_the_learners_numbers_go_to_the_learner_alone(tmp_path: Path) -> None:
    """Held for 440 iterations; then 0.56 of the rate, which falls to 0.15 of it at iteration 900, and a smaller bonus."""
    (tmp_path / "lines.py").write_text(LINES)
    rate = "{term: lines, parameter: ppo.learning_rate, at: [0, 439, 440, 900], values: [7.0e-4, 7.0e-4, 3.92e-4, 1.05e-4]}"
    bonus = "{term: linear, parameter: ppo.entropy_coef, start: [0.005], end: [0.001], iterations: [439, 440]}"
    ramps = f"  gate: null\n  rate: {rate}\n  bonus: {bonus}\n  ramp: {RAMP}\n"
    text = f"extends: go2_flat.yaml\nterms: [lines.py]\ncurriculum:\n{ramps}"
    (tmp_path / "page.yaml").write_text(f"{text}ppo: {{schedule: constant, learning_rate: 7.0e-4, entropy_coef: 0.005}}\n")
    curricula = Curricula(load(str(tmp_path / "page.yaml")))
    found = {}
    for iteration in (0, 2, 6, 439, 440, 670, 900, 901):
        curricula.advance({}, iteration)
        found[iteration] = curricula.learner_numbers
        assert set(curricula.numbers) <= {RANGE}
    assert found[0] == found[6] == {}
    values = {440: (3.92e-4, 0.001), 670: (2.485e-4, 0.001), 900: (1.05e-4, 0.001), 901: (1.05e-4, 0.001)}
    for iteration, (expected_rate, expected_bonus) in values.items():
        expected = {"ppo.learning_rate": expected_rate, "ppo.entropy_coef": expected_bonus}
        assert found[iteration] == pytest.approx(expected, rel=1e-6), iteration
    again = Curricula(load(str(tmp_path / "page.yaml")))
    again.load_state_dict(curricula.state_dict(), 901)
    assert again.learner_numbers == curricula.learner_numbers


def test_a_line_between_two_iterations_whatever_the_statistics() -> None:
    curricula = ramp()
    found = []
    for iteration in (0, 2, 3, 6, 9):
        curricula.advance({"episodes": float(iteration)}, iteration)
        found.append(curricula.params[RANGE].tolist())
    assert found == [[-1.0, 1.0], [-1.0, 1.0], [-1.25, 1.5], [-2.0, 3.0], [-2.0, 3.0]]


EARNED = "{term: earned, parameter: commands.velocity.lin_vel_x, start: [-0.2, 0.4], end: [-1.0, 2.0], "
EARNED += "share: Metrics/speed, step: 0.25}"


def speeds(reached: float, asked: float = 1.0) -> dict[str, float]:
    return {"share/Metrics/speed": reached, "share_of/Metrics/speed": asked}


def test_a_range_widens_as_it_is_earned() -> None:
    widening = Curricula(load("go2_flat", [f"curriculum.wider={EARNED}", "curriculum.wider.below=0.4"]))
    seen = []
    for iteration, statistics in enumerate([{}, speeds(0.9), speeds(0.7), speeds(2.7, 3.0), speeds(0.3), speeds(0.0, 0.0)]):
        widening.advance(statistics, iteration)
        seen.append(widening.params[RANGE].tolist())
    for now, progress in zip(seen, [0.0, 0.25, 0.25, 0.5, 0.25, 0.25], strict=True):
        assert now == pytest.approx([-0.2 - 0.8 * progress, 0.4 + 1.6 * progress], abs=1e-6)
    for iteration in range(6, 12):
        widening.advance(speeds(1.0), iteration)
    assert widening.params[RANGE].tolist() == [-1.0, 2.0]
    other = Curricula(load("go2_flat", [f"curriculum.wider={EARNED}"]))
    other.load_state_dict(widening.state_dict(), 12)
    other.advance(speeds(0.7), 12)
    assert other.params[RANGE].tolist() == [-1.0, 2.0]


def test_small_weights_are_earned_too_and_bounds_stand_in_their_order() -> None:
    given = EARNED.replace("commands.velocity.lin_vel_x", "rewards.action_rate.weight").replace("step: 0.25", "step: 0.1")
    given = given.replace("[-0.2, 0.4]", "[0.0]").replace("[-1.0, 2.0]", "[-2.5e-7]")
    small = Curricula(load("go2_flat", [f"curriculum.smooth={given}"]))
    small.advance({}, 0)
    for iteration in range(1, 11):
        small.advance(speeds(1.0), iteration)
        assert small.params["rewards.action_rate.weight"].item() == pytest.approx(-2.5e-8 * iteration, rel=1e-3)
    still = Curricula(load("go2_flat", [f"curriculum.still={EARNED}", "curriculum.still.start=[-1.0, 2.0]"]))
    still.advance({}, 0)
    still.advance(speeds(1.0), 1)
    assert still.params[RANGE].tolist() == [-1.0, 2.0]
    with pytest.raises(UserError, match=r"curriculum\.wider: has below: 0\.9, over above: 0\.8; swap them"):
        Curricula(load("go2_flat", [f"curriculum.wider={EARNED}", "curriculum.wider.below=0.9"])).advance({}, 0)


def test_a_share_that_nobody_counts_is_named() -> None:
    widening = Curricula(load("go2_flat", [f"curriculum.wider={EARNED}", "curriculum.wider.share=Metrics/sped"]))
    widening.advance({}, 0)
    with pytest.raises(
        UserError, match=r"curriculum\.wider.* reads the statistic 'share_of/Metrics/sped'.*'share_of/Metrics/speed'"
    ):
        widening.advance(speeds(1.0), 1)


def test_what_has_moved_is_told_from_then_on_also_when_it_is_back() -> None:
    curricula = ramp()
    curricula.advance({}, 0)
    assert curricula.numbers == {}
    curricula.advance({}, 4)
    moved = curricula.numbers
    assert list(moved) == [RANGE] and moved[RANGE].tolist() == [-1.5, 2.0]
    curricula.advance({}, 0)
    assert curricula.numbers[RANGE].tolist() == [-1.0, 1.0]
    assert moved[RANGE].tolist() == [-1.5, 2.0]  # what was told before stays what it was


def test_statistics_drive_and_a_level_is_remembered(tmp_path: Path) -> None:
    body = """params["curriculum.own.level"] += statistics.get("terminated", 0.0)
    params["rewards.pose.weight"] = level * 2.0"""
    task = page(tmp_path, body)
    curricula = Curricula(task)
    curricula.advance({}, 0)
    curricula.advance({"terminated": 3.0}, 1)
    resumed = Curricula(task)
    resumed.load_state_dict(curricula.state_dict(), 1)
    for one in (curricula, resumed):
        one.advance({"terminated": 1.0}, 2)
        assert {path: number.item() for path, number in one.numbers.items()} == {
            "curriculum.own.level": 4.0,
            "rewards.pose.weight": 8.0,
        }


def test_a_state_is_taken_up_as_far_as_the_page_goes_with_it() -> None:
    curricula = ramp()
    curricula.advance({}, 4)
    state = curricula.state_dict()
    again = ramp()
    again.advance({}, 6)
    again.load_state_dict(state, 4)
    assert again.numbers[RANGE].tolist() == [-1.5, 2.0]
    # the curriculum is gone: the page's own number holds
    gone = Curricula(load("go2_flat", ["curriculum=null"]))
    gone.load_state_dict(state, 4)
    assert gone.numbers == {} and gone.params[RANGE].tolist() == [-1.0, 1.0]
    # the state does not know it: it begins where the run is
    new = ramp()
    new.load_state_dict({}, 4)
    assert new.numbers[RANGE].tolist() == [-1.5, 2.0]
    # it moves another number now: that of before is the page's own again
    elsewhere = ramp("curriculum.ramp={parameter: commands.velocity.ang_vel_z}")
    elsewhere.load_state_dict(state, 4)
    assert elsewhere.numbers == {} and elsewhere.params[RANGE].tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match=f"^curriculum.ramp: {RANGE} differs$"):
        ramp().load_state_dict({"ramp": {RANGE: torch.zeros(3)}}, 4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            'params["rewards.pose.weight"] /= 0.0',
            "sets rewards.pose.weight to inf in iteration 7, which is not finite",
        ),
        (
            'params["rewards.pose.weight"].fill_(float("nan"))',
            "sets rewards.pose.weight to nan in iteration 7, which is not finite",
        ),
        (
            'params["commands.velocity.lin_vel_x"] = params["rewards.pose.weight"]',
            "sets commands.velocity.lin_vel_x to a value of shape (), and the page's has (2,)",
        ),
        (
            'params["commands.velocity.lin_vel_x"].resize_(3)',
            "sets commands.velocity.lin_vel_x to a value of shape (3,), and the page's has (2,)",
        ),
        (
            'params["rewards.poses.weight"] = 1.0',
            "sets 'rewards.poses.weight', which is no number of the page; did you mean 'rewards.pose.weight'?",
        ),
        ('params["ppo.entropy_coef"] -= 1.0', "sets ppo.entropy_coef to -0.995 in iteration 7, which is negative"),
        (
            'params["ppo.learning_rate"] = 1e-4',
            "sets 'ppo.learning_rate', which is moved by ppo.schedule: linear already; take constant, "
            "or leave the curriculum out",
        ),
        (
            'params["ppo.clip_parm"] = 0.1',
            "sets 'ppo.clip_parm', which is none of the learner's numbers that may change during a run "
            "(they are ppo.learning_rate, ppo.entropy_coef, ppo.desired_kl)",
        ),
    ],
)
def test_what_a_curriculum_cannot_set(tmp_path: Path, body: str, said: str) -> None:
    curricula = Curricula(page(tmp_path, body))
    with pytest.raises(UserError) as caught:
        curricula.advance({}, 7)
    assert str(caught.value) == f"ramps: curriculum.own {said}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "curriculum.ramp.parameter=commands.velocity.lin_vel_z",
            "'commands.velocity.lin_vel_z' is no number of the page; did you mean 'commands.velocity.lin_vel_y'?",
        ),
        ("curriculum.ramp.end=[1.0]", "'commands.velocity.lin_vel_x' has 2 numbers, start and end need as many"),
    ],
)
def test_a_number_that_is_not_there(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        ramp(override)
    assert str(caught.value) == f"go2_flat: curriculum.ramp.parameter: {said}"


ODD = """
import sys
from embodied_rl.mdp.term import curriculum

@curriculum()
def mine(params, statistics, iteration):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("params['rewards.pose.std'].fill_(-1.0)", "sets rewards.pose.std in iteration 0: -1.0 is not allowed: more than 0"),
        (
            "params['commands.velocity.lin_vel_x'].neg_()",
            "sets commands.velocity.lin_vel_x in iteration 0: [1.0, -1.0] is not allowed",
        ),
        ("params['observations.actor.joint_pos.noise'].fill_(-1.0)", "-1.0 is not allowed: at least 0"),
        ("params['rewards.pose.std'] = '3'", "sets rewards.pose.std to '3', which is no number"),
        ("params['nope'].fill_(1.0)", "own.py:7: KeyError: 'nope'"),
        ("statistics['reward/total']", "own.py:7: reads the statistic 'reward/total', which there is not; there are none before"),
        ("sys.exit(0)", "own.py:7: ends the process (SystemExit 0)"),
    ],
)
def test_what_a_curriculum_may_not_do_is_named_when_the_page_is_checked(body: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ODD.format(body=body))
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        inspect(load("go2_flat", [f"terms=[{tmp_path / 'own.py'}]", "curriculum.mine={}"]))
    assert "curriculum.mine" in str(refused.value)


def _linear(parameter: str, start: list[float], end: list[float]) -> str:
    return f"{{term: linear, parameter: {parameter}, start: {start}, end: {end}, iterations: [0, 10]}}"


@pytest.mark.parametrize(
    ("curricula", "said"),
    [
        ([_linear("rewards.pose.std", [0.5], [-0.5])], "curriculum.c0.end: -0.5 is not allowed: more than 0"),
        ([_linear("commands.velocity.lin_vel_x", [-1, 1], [1, -1])], "curriculum.c0.end: [1.0, -1.0] is not allowed: low"),
        (
            [_linear("rewards.pose.std", [0.5], [0.6])] * 2,
            "curriculum.c1.parameter: 'rewards.pose.std' is moved by curriculum.c0",
        ),
    ],
)
def test_where_a_curriculum_leads_is_known_before_it_goes(curricula: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Curricula(load("go2_flat", [f"curriculum.c{index}={one}" for index, one in enumerate(curricula)]))
