from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
import torch

import embodied_rl
from embodied_rl import make_env, waiting
from embodied_rl.config import ConfigError, load
from embodied_rl.errors import UserError
from embodied_rl.learn.policy import remember

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]


def test_options_go_over_overrides() -> None:
    page = make_env.resolve("go2_flat", ["env.num_envs=3", "env.seed=4"], num_envs=5, engine="native", device="cpu", seed=6)
    assert (page.env.num_envs, page.env.seed, page.physics.engine) == (5, 6, "native")
    expected = load("go2_flat", ["env.num_envs=5", "env.seed=7", "physics.device=cpu"])
    assert make_env.resolve(page, ["env.seed=7"]) == expected


@pytest.mark.parametrize(
    ("options", "engine", "device"),
    [
        ({}, "native", "auto"),
        ({"device": "cuda"}, "warp", "cuda"),
        ({"device": "cuda:1", "engine": "mjx"}, "mjx", "cuda:1"),
        ({"engine": "warp"}, "warp", "auto"),
    ],
)
def test_a_device_picks_its_engine(options: dict, engine: str, device: str) -> None:
    page = make_env.resolve("go2_flat", **options)
    assert (page.physics.engine, page.physics.device) == (engine, device)
    # a run on a GPU is played in C on the CPU
    there = make_env.resolve(page, engine="native")
    assert (there.physics.engine, there.physics.device) == ("native", "auto")
    assert make_env.device_of(there).type == "cpu"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda", "engine": "native"}, "the engine native runs on the CPU"),
        ({"device": "gpu"}, "physics.device"),
        ({"engine": "warp", "overrides": ["physics.solver=pgs"]}, "the engine warp has no such solver"),
        ({"engine": "mjx", "overrides": ["physics.integrator=implicit"]}, "the engine mjx has no such integrator"),
        ({"engine": "isaacgym"}, "EMBODIED_RL_ISAACGYM_PYTHON is not set: install Isaac Gym Preview 4"),
        ({"num_envs": 0}, "env.num_envs"),
    ],
)
def test_what_cannot_be_asked_for(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        embodied_rl.make("go2_flat", **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        embodied_rl.make("go2_flat", ["env.num_env=3", "physics.dt=-1.0"])
    assert len(str(caught.value).splitlines()) == 2


def test_make_measures_what_is_asked_for() -> None:
    env = make_env.make("go2_flat", SMALL, measure=("joint_torque",))
    env.step(torch.zeros(4, 12))
    assert env.physics.joint_torque.abs().sum() > 0
    env.close()


def test_the_step_is_compiled_where_it_can_be(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def compiles(setting: str) -> bool:
        function: Callable = lambda: None  # noqa: E731
        return make_env.compiler(load("go2_flat", [f"env.compile={setting}"]), torch.device("cpu"))(function) is not function

    monkeypatch.setattr(make_env.machine, "cpp_error", lambda: None)
    assert compiles("auto") and compiles("true") and not compiles("false")
    monkeypatch.setattr(make_env.machine, "cpp_error", lambda: "no C++ compiler")
    with pytest.raises(UserError, match=r"env\.compile: true: no C"):
        compiles("true")
    assert not caplog.records
    assert not compiles("auto")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("no C++ compiler: ")


def test_compiling_says_what_and_how_to_do_without(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(waiting, "_FIRST_S", 0.01)
    monkeypatch.setattr(make_env.machine, "cpp_error", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *given: time.sleep(0.3) or function(*given))

    class Env:
        def _outcome(self, number: int) -> int:
            return number + 1

    step = make_env.compiler(load("go2_flat", ["env.num_envs=7"]), torch.device("cpu"))(Env()._outcome)
    assert (step(1), step(2)) == (2, 3)
    (line,) = caplog.messages  # the first call's
    assert line.startswith("go2_flat: compiling outcome for 7 robots, 0 s (") and "env.compile=false" in line


@pytest.mark.parametrize("network", [torch.nn.GRU, torch.nn.LSTM])
def test_what_remembers_is_compiled_too(network: Callable[..., torch.nn.RNNBase]) -> None:
    """torch refuses to, unless it is told that it may."""
    memory = network(5, 7, 2)

    def answer(x: torch.Tensor, *before: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return remember(memory, x, before)

    given = [torch.randn(3, 5), *(torch.randn(2, 3, 7) for _ in range(2 if network is torch.nn.LSTM else 1))]
    with torch.no_grad():
        compiled = make_env.compiler(load("go2_flat", ["env.compile=true"]), torch.device("cpu"))(answer)
        for found, wanted in zip(_flat(compiled(*given)), _flat(answer(*given)), strict=True):
            torch.testing.assert_close(found, wanted)


def _flat(answer: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [answer[0], *answer[1]]
