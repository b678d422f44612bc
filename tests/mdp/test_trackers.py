"""What trackers keep, by hand, and in an environment whose episodes end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

import embodied_rl
from embodied_rl.mdp.state import Memory
from embodied_rl.mdp.trackers import TRACKERS, air_time

DT = 0.1


def test_air_time_counts_flights_and_forgets_those_of_other_episodes() -> None:
    tracker = air_time(cast(Any, SimpleNamespace(foot_names=("left", "right"))))
    memory = Memory(2, torch.device("cpu"))
    memory.add("trackers.air_time", tracker)

    def step(*contact: list[float]) -> tuple[list, list]:
        tracker.update(cast(Any, SimpleNamespace(robot=SimpleNamespace(foot_contact=torch.tensor(contact)), step_dt=DT)))
        return rounded(tracker.time), rounded(tracker.flight)

    def rounded(values: Tensor) -> list:
        return [[round(float(value), 6) for value in row] for row in values]

    assert step([1.0, 0.0], [1.0, 1.0]) == ([[0.0, 0.1], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    assert step([0.0, 0.0], [0.0, 0.0]) == ([[0.1, 0.2], [0.1, 0.1]], [[0.0, 0.0], [0.0, 0.0]])
    assert step([0.0, 1.0], [0.0, 0.0]) == ([[0.2, 0.0], [0.2, 0.2]], [[0.0, 0.2], [0.0, 0.0]])  # it came down after 0.2 s
    assert step([1.0, 1.0], [0.0, 0.0]) == ([[0.0, 0.0], [0.3, 0.3]], [[0.2, 0.0], [0.0, 0.0]])
    memory.begin(torch.tensor([False, True]))
    assert (rounded(tracker.time)[1], rounded(tracker.flight)[0]) == ([0.0, 0.0], [0.2, 0.0])
    # a robot that comes down in its first step ends no flight of the episode before
    assert step([1.0, 0.0], [1.0, 0.0]) == ([[0.0, 0.1], [0.0, 0.1]], [[0.0, 0.0], [0.0, 0.0]])


@torch.no_grad()
def test_the_previous_velocity_of_a_new_episode_is_that_which_it_begins_with() -> None:
    quiet = ["env.compile=false", "physics.num_threads=1", "env.episode_s=0.06", "env.random_episode_phase=false"]
    asked = ["rewards.joint_acceleration={weight: -1.0}", "events.reset_joints.velocity=2.0"]
    env = embodied_rl.make("go2_flat", [*quiet, *asked], num_envs=2)
    previous = env.terms.trackers["previous_joint_vel"].value
    assert previous is env.buffers["trackers.previous_joint_vel.value"]
    ends = 0
    for step in range(4):
        assert previous.abs().max() > 0.0 and torch.equal(previous, env.physics.qvel[:, env.robot.qvel_index])
        before = previous.clone()
        env.step(torch.full((2, env.num_actions), 0.3 * (-1) ** step))
        ends += int(env.episode.done.sum())
        assert not torch.equal(previous, before)
    assert ends == 2
    env.close()


def test_every_tracker_is_tested_here() -> None:
    assert set(TRACKERS) == {"air_time", "previous_joint_vel"}
