from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from embodied_rl import make_env
from embodied_rl.config import load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.demo import demo_of
from embodied_rl.view.play import agent, hold_command, play, playback_page


def test_nothing_disturbs_a_playback() -> None:
    page = playback_page(load("go2_flat"), num_envs=3, seconds=30.0)
    assert (page.env.num_envs, page.env.random_episode_phase) == (3, False)
    assert page.env.episode_s > 30.0
    assert "push" not in page.events
    # what a learner alone sees costs half of a step
    assert (list(page.observations), page.rewards, page.env.final_obs_groups) == (["actor"], {}, ())
    assert page.events["reset_base"].params["yaw"] == page.events["reset_base"].params["position"] == 0.0


def test_standing_is_reported(env: Env) -> None:
    lines: list[str] = []
    stats = play(env, agent(env, "zero"), seconds=1.0, command=[0.0, 0.0, 0.0], report=lines.append)
    assert (stats["seconds"], stats["terminated"], stats["unstable"], stats["video"]) == (1.0, 0, 0, None)
    # told to stand, it stands, but for what the random velocities of its start carry it
    assert stats["lin_vel_error"] < 0.2
    assert lines[0].startswith("2 robots, 1.0 s: 0 falls, lin_vel_error 0.")


def test_errors_are_those_of_the_command(env: Env) -> None:
    stats = play(env, agent(env, "zero"), seconds=3.0, command=[0.6, 0.0, -0.8], report=lambda line: None)
    assert stats["lin_vel_error"] == pytest.approx(0.6, abs=0.2)  # it slips
    assert stats["ang_vel_error"] == pytest.approx(0.8, abs=0.15)


def test_falls_are_counted(env: Env) -> None:
    def lie_down(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.full((env.num_envs, env.num_actions), -6.0)

    assert play(env, lie_down, seconds=1.0, report=lambda line: None)["terminated"] >= 2


def test_a_command_is_held_through_resampling_and_resets(env: Env) -> None:
    asked = torch.tensor([0.8, -0.1, 0.3])
    told, observed = [], []

    def policy(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(told) == 20:
            env.buffers["commands.velocity.time_left"].zero_()  # resampled by the next step
        told.append(env.buffers["commands.velocity.command"].clone())
        observed.append(obs["actor"].clone())
        tumble = -6.0 if len(told) > 25 else 0.0
        return torch.full((env.num_envs, env.num_actions), tumble)

    assert play(env, policy, seconds=1.0, command=asked.tolist(), report=lambda line: None)["terminated"] >= 2
    assert torch.equal(torch.stack(told), asked.expand(50, env.num_envs, 3))
    # gyroscope (3) and gravity (3) come first on the page: the very first observation knows the command
    assert torch.equal(torch.stack(observed)[..., 6:9], asked.expand(50, env.num_envs, 3))


def test_the_demo_walks_through_its_script(env: Env) -> None:
    limits = torch.tensor([1.0, 0.5, 1.0])  # of go2_flat's ranges, which may have been held
    for name, bound in zip(("lin_vel_x", "lin_vel_y", "ang_vel_z"), limits.tolist(), strict=True):
        env.params[f"commands.velocity.{name}"].copy_(torch.tensor([-bound, bound]))
    demo = demo_of(env.page)
    assert demo is not None
    expected = torch.tensor(demo.script(env)).repeat_interleave(10, dim=0)
    told = []

    def policy(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        told.append(env.buffers["commands.velocity.command"][0].clone())
        return torch.zeros(env.num_envs, env.num_actions)

    play(env, policy, seconds=1.2, report=lambda line: None)
    assert len(expected) == 60 and expected.abs().max() > 0.5
    assert torch.allclose(torch.stack(told), expected)


def test_random_actions_are_bounded_and_change(env: Env) -> None:
    policy = agent(env, "random")
    first = policy(env.obs)
    assert first.shape == (env.num_envs, env.num_actions)
    assert torch.equal(first, policy(env.obs))
    env.step(first)
    second = policy(env.obs)
    assert not torch.equal(first, second)
    assert -1.0 <= second.min() < -0.3 < 0.3 < second.max() < 1.0


def test_a_command_that_is_no_number_is_refused_before_a_film_is_begun(env: Env, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--command: vx \[m/s\] is nan, wz \[rad/s\] is inf; a finite number is needed$"):
        play(env, agent(env, "zero"), command=[math.nan, 0.0, math.inf], video=tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_a_command_of_another_size_is_refused(env: Env) -> None:
    with pytest.raises(UserError, match=r"--command: velocity takes 3 numbers \(vx .*\), 2 were given"):
        hold_command(env, [0.5, 0.1])
    said = r"^--command: velocity takes 3 numbers \(vx \[m/s\], vy \[m/s\], wz \[rad/s\]\), 4 were given$"
    with pytest.raises(UserError, match=said):
        play(env, agent(env, "zero"), command=[0.5, 0.1, 0.0, 0.0])


def test_a_command_beyond_trainings_ranges_is_warned_of(env: Env, caplog: pytest.LogCaptureFixture) -> None:
    play(env, agent(env, "zero"), seconds=0.02, command=[3.0, 0.0, -0.8], report=lambda line: None)
    assert caplog.messages == ["--command: vx [m/s] 3 is outside of -1 to 1, which the policy was trained in"]


def test_playing_has_a_thread_and_gives_the_others_back(env: Env) -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        policy = lambda obs: (seen.append(torch.get_num_threads()), torch.zeros(2, env.num_actions))[1]  # noqa: E731
        play(env, policy, seconds=0.04, report=lambda line: None)
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_a_task_a_page_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    env = make_env.make(playback_page(load("go2_flat", ["task=null", "physics.num_threads=1"]), seconds=1.0))
    asked = env.buffers["commands.velocity.command"].clone()
    assert play(env, agent(env, "zero"), seconds=0.1)["terminated"] == 0
    assert capsys.readouterr().out.startswith("1 robot, 0.1 s: 0 terminated, lin_vel_error 0.")
    assert torch.equal(env.buffers["commands.velocity.command"], asked)
    env.close()
