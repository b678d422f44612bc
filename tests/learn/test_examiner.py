from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.learn import examiner
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.learn.examiner import Examiner, margin
from embodied_rl.learn.ranks.group import Group

GOOD = {"fall_rate": 0.0, "lin_vel_error": 0.12, "ang_vel_error": 0.1, "cost_of_transport": 1.0}
GOOD |= {"shortfall": 0.1, "heading_drift": 0.1}
BAD = GOOD | {"fall_rate": 0.5}
#: What a training near the limits says of itself, and one far from them.
NEAR = {"Metrics/lin_vel_error": 0.2, "Metrics/ang_vel_error": 0.2}
FAR = {"Metrics/lin_vel_error": 1.0, "Metrics/ang_vel_error": 0.2}


class Training:
    """A learner whose policy is known by its iteration, and what comes out when one is measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        self.asked: list[tuple[str, int, bool]] = []
        self.bad: set[tuple[str, int, bool]] = set()
        self.figures = GOOD
        self.policy = SimpleNamespace(device=torch.device("cpu"), name="")
        copied = lambda page, state, device: SimpleNamespace(device=device, name=state["name"])  # noqa: E731
        monkeypatch.setattr(examiner, "learner_class", lambda page: SimpleNamespace(load_policy=copied))
        self.examiner = Examiner(load("go2_flat", list(overrides)), Group(), self.measure)

    def state_dict(self) -> dict[str, str]:
        return {"name": f"copy of {self.policy.name}"}

    def measure(self, policy: Any, moved: Any, *, seed: int, reference: bool) -> dict[str, float]:
        torch.rand(3)
        assert moved == {"curricula of": policy.policy.name.removeprefix("copy of ")}
        asked = policy.policy.name, seed, reference
        self.asked.append(asked)
        return dict(BAD if asked in self.bad else self.figures)

    def go_on(self, iterations: int) -> None:
        """Evaluate after each iteration until it has passed."""
        for iteration in range(1, iterations + 1):
            if not self.examiner.passed:
                self.policy.name = str(iteration)
                metrics = {"Train/env_steps": 1000.0 * iteration, "Train/seconds": 0.5 * iteration}
                moved: Any = {"curricula of": str(iteration)}
                self.metrics = self.examiner.examine(iteration, self, moved, metrics)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("bad", "passed", "last"),
    [
        ([], 1, 2),
        ([("1", SEEDS[0], False)], 2, 3),
        ([("2", SEEDS[0], False)], 3, 4),
        ([("copy of 1", SEEDS[1], False)], 3, 4),  # chosen by luck: neither of the two counts
        ([("copy of 1", SEEDS[1], True)], 3, 4),
    ],
)
def test_two_passes_in_a_row_and_one_on_other_seeds(monkeypatch: pytest.MonkeyPatch, bad: list, passed: int, last: int) -> None:
    training = Training(monkeypatch, "train.stop_when=passed")
    training.bad.update(bad)
    training.go_on(9)
    found = training.examiner.passed
    assert found is not None and training.policy.name == str(last)
    assert (found.iteration, found.env_steps, found.seconds) == (passed, 1000 * passed, 0.5 * passed)
    assert found.sentence == "it walks" and found.figures["reference_lin_vel_error"] == 0.12
    assert training.asked[-2:] == [(f"copy of {passed}", SEEDS[1], False), (f"copy of {passed}", SEEDS[1], True)]
    # reference physics are asked of who is to end the training, and there where training physics pass
    assert all(
        name.startswith("copy") and (name, seed, False) not in bad for name, seed, reference in training.asked if reference
    )


def test_with_a_curve_reference_physics_count_in_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, "train.stop_when=passed", "train.evaluate_every=1")
    training.bad |= {("1", SEEDS[0], False), ("3", SEEDS[0], True)}
    training.go_on(9)
    found = training.examiner.passed
    assert found is not None and (found.iteration, training.policy.name) == (4, "5")
    assert ("1", SEEDS[0], True) not in training.asked and ("2", SEEDS[0], True) in training.asked


def test_a_curve_never_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, "train.evaluate_every=1")
    training.go_on(4)
    assert training.examiner.passed is None and {seed for _, seed, _ in training.asked} == {SEEDS[0]}


def test_when_it_is_worth_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    near = Training(monkeypatch, "train.stop_when=passed").examiner
    assert [i for i in range(1, 31) if near.due(i, FAR if i < 15 else NEAR)] == [20, 30]
    always = Training(monkeypatch, "train.stop_when=passed", "train.evaluate_every=4").examiner
    assert [i for i in range(1, 10) if always.due(i, FAR)] == [4, 8]


@pytest.mark.parametrize(
    ("figures", "due"),
    [
        (GOOD | {"lin_vel_error": 0.3}, [40, 50]),  # twice the limit: once the training's own error has almost halved
        (GOOD | {"lin_vel_error": 0.25}, [40, 50]),
        (GOOD | {"lin_vel_error": 0.19}, [20, 30, 40, 50]),  # it comes down to 0.15 in 14 iterations
        (GOOD | {"lin_vel_error": 0.17}, [20, 30, 40, 50]),  # almost there
        (GOOD | {"fall_rate": 0.5}, [60]),  # nothing in training's metrics says when: it halves in ten iterations
        (GOOD | {"fall_rate": 0.05}, [30, 40, 50]),
        (GOOD | {"fall_rate": 0.02}, [20, 30, 40, 50]),
        (GOOD | {"fall_rate": 0.05, "lin_vel_error": 0.25}, [40, 50]),
        (GOOD | {"lin_vel_error": math.nan}, [20, 30, 40, 50]),
        (GOOD | {"lin_vel_error": 3.0}, [60]),  # it may be the training that gets harder
        (GOOD, [20, 30, 40, 50]),
    ],
)
def test_who_failed_is_looked_at_again_where_it_may_pass(monkeypatch: pytest.MonkeyPatch, figures: dict, due: list[int]) -> None:
    training = Training(monkeypatch, "train.stop_when=passed")
    monkeypatch.setattr(training, "figures", figures)
    training.policy.name = "10"
    told = {"Train/env_steps": 0.0, "Train/seconds": 0.0}
    training.examiner.examine(10, training, {"curricula of": "10"}, NEAR | told)  # pyright: ignore[reportArgumentType]
    kept = training.examiner.infos(10)
    found = [i for i in range(11, 61) if training.examiner.due(i, _metrics(i))]
    assert found[: len(due)] == due
    # a run that is resumed waits as long
    again = Training(monkeypatch, "train.stop_when=passed").examiner
    again.resume(kept | {"candidate": 10} if "candidate" in kept else kept, lambda iteration: _state(iteration))
    assert [i for i in range(11, 61) if again.due(i, _metrics(i))] == found


def _metrics(iteration: int) -> dict[str, float]:
    return NEAR | {"Metrics/lin_vel_error": 0.2 if iteration < 35 else 0.1}


def _state(iteration: int) -> dict:
    return {"iter": iteration, "name": str(iteration), "infos": {"env_steps": 0, "seconds": 0.0}}


def test_what_is_said_and_kept_of_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    training = Training(monkeypatch, "train.evaluate_every=1")
    training.bad.add(("1", SEEDS[0], True))
    before = torch.get_rng_state()
    training.go_on(1)
    assert torch.equal(torch.get_rng_state(), before)  # of whoever measures
    limited = {name: GOOD[name] for name in ("fall_rate", "lin_vel_error", "ang_vel_error", "shortfall", "heading_drift")}
    limited |= {f"reference_{name}": BAD[name] for name in limited}
    assert training.metrics.pop("Score/margin") == pytest.approx(1 - 0.12 / 0.15)
    assert training.metrics == {f"Score/{name}": value for name, value in limited.items()} | {"Score/passed": 0.0}
    score = training.examiner.infos(1)["score"]
    assert (score["figures"], score["passed"]) == (limited, False) and training.examiner.infos(2) == {}
    assert caplog.messages == [
        "evaluated after iteration 1: fall_rate 0.000 (limit 0.010)  lin_vel_error 0.120 (limit 0.150)  "
        "ang_vel_error 0.100 (limit 0.200)  shortfall 0.100 (limit 0.500)  heading_drift 0.100 (limit 0.785)  "
        "reference_fall_rate 0.500 (limit 0.050)  reference_lin_vel_error 0.120 (limit 0.200)  reference_ang_vel_error 0.100  "
        "reference_shortfall 0.100  reference_heading_drift 0.100: it does not walk yet"
    ]
    assert training.examiner.seconds > 0.0


@pytest.mark.parametrize(
    ("figures", "limits", "expected"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 4.0, "b": 2.0}, 0.5),
        ({"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, -0.5),
        ({"a": 0.25}, {"a": 0.0}, -0.25),
        ({"a": -3.0}, {"a": -2.0}, 0.5),  # a return of 3 where 2 is asked for
        ({"a": math.nan}, {"a": 1.0}, -math.inf),
        ({"a": 1.0}, {}, 0.0),
    ],
)
def test_the_margin(figures: dict, limits: dict, expected: float) -> None:
    assert margin(figures, limits) == expected


def test_a_page_that_its_family_cannot_judge_is_refused_before_it_trains() -> None:
    page = load("go2_stand", ["task=velocity", "score=null", "train.evaluate_every=1"])
    with pytest.raises(UserError, match=r"^go2_stand: task: velocity judges how a velocity command is followed"):
        Examiner(page, Group(), lambda policy, moved, *, seed, reference: {})
