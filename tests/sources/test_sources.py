"""Environments of others: their spaces, their seeds, and what brings them back to where they were."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embodied_rl
from embodied_rl import training
from embodied_rl.config import ConfigError, Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.make_env import make_vector
from embodied_rl.sources.env import SourceEnv
from embodied_rl.vector_env import ActionSpace

gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: an extra, gym")
spaces = gymnasium.spaces

OWN = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Own(gymnasium.Env):
    made = 0

    def __init__(self, kind="box"):
        self.kind = kind
        camera = spaces.Box(0, 255, (2, 2), np.uint8)
        self.observation_space = spaces.Dict({"gear": spaces.Discrete(3), "camera": camera, "arm": spaces.Box(-1, 1, (2,))})
        self.action_space = {
            "box": spaces.Box(np.array([0.0, -np.inf]), np.array([4.0, np.inf]), dtype=np.float64),
            "half": spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([np.inf, 2.0], np.float32)),
            "huge": spaces.Box(-np.finfo(np.float32).max, 1e10, (2,)),
            "whole": spaces.Box(-1, 2, (1,), np.int64),
            "sequence": spaces.Discrete(2),
            "fails": spaces.Discrete(2),
            "discrete": spaces.Discrete(3, start=5),
            "multi": spaces.MultiDiscrete([2, 2]),
        }[kind]
        if kind == "sequence":
            self.observation_space = spaces.Sequence(spaces.Box(-1, 1, (2,)))
        self.number, self.lived = Own.made, 0
        Own.made += 1

    def observe(self):
        return {"gear": self.told % 3, "camera": np.arange(4, dtype=np.uint8).reshape(2, 2), "arm": np.full(2, 0.5)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.told = 1
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action) or self.kind == "box"
        self.last = action
        self.lived += 1
        if self.kind == "fails" and self.number == 3 and self.lived == 10:
            raise RuntimeError("lost the connection")
        return self.observe(), np.array([np.sum(action)]), False, False, {}

def make(**options):
    return Own(**options)

def broken():
    raise OSError("no licence")

def of_two(first, second, *, third):
    return Own()

def ends():
    raise SystemExit(0)

def moves():
    import os, torch
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return Own()

one = Own()
same = lambda: one
nothing = lambda: None
number = 3
vector = lambda: gymnasium.make_vec("CartPole-v1", num_envs=2)

class Plain(gymnasium.Env):
    # returns what its options say; with `odd` each second one has other spaces
    made = 0

    def __init__(self, begin="(np.zeros(3), {})", then="(np.zeros(3), 1.0, False, False, {})", see=None, do=None, odd=None):
        self.begin, self.then = begin, then
        box = lambda low, high, shape=(3,): spaces.Box(np.full(shape, low, np.float32), np.full(shape, high, np.float32))
        first = Plain.made % 2 == 0
        self.observation_space = eval(see) if see and (odd is None or first) else spaces.Box(-1, 1, (3,))
        self.action_space = eval(do) if do and (odd is None or first) else spaces.Box(-1, 1, (2,))
        Plain.made += 1

    def reset(self, *, seed=None, options=None):
        return eval(self.begin)

    def step(self, action):
        self.last = action
        return eval(self.then)

    def close(self):
        raise RuntimeError("never opened")

def damaged():
    box = spaces.Box(-1, 1, (2,))
    box.low[1] = np.nan
    return box
"""


def source(name: str, tmp_path: Path, **env: Any) -> Page:
    (tmp_path / "page.yaml").write_text(json.dumps({"env": {"source": name, "num_envs": 6} | env}))
    return load(tmp_path / "page.yaml", ["pool.on_crash=mask"])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SourceEnv]:
    (tmp_path / "own_envs.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_envs", None)

    def make(kind: str = "box", **env: Any) -> SourceEnv:
        page = source("python:own_envs:make", tmp_path, source_options={"kind": kind}, **env)
        return make_vector(page, torch.arange(2))  # type: ignore[return-value]

    return make


def actions(env: SourceEnv, generator: torch.Generator) -> torch.Tensor:
    space = env.action_space
    if space.discrete:
        return torch.randint(space.size, (env.num_envs,), generator=generator)
    return torch.randn(env.num_envs, space.size, generator=generator)


def lived(env: SourceEnv, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """Observations, rewards and ends of some steps under a fixed tape."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        env.advance(actions(env, generator))
        step = env.result
        seen += [*(value.clone() for value in env.obs.values()), step.rewards.clone(), step.terminated.clone()]
    return seen


KINDS = [
    "gymnasium:CartPole-v1",
    "gymnasium:Pendulum-v1",
    "gymnasium:Ant-v5",
    "gymnasium:LunarLander-v3",
    "dm_control:walker-walk",
    "envpool:CartPole-v1",
]


def made(name: str, tmp_path: Path, ids: torch.Tensor | None = None) -> SourceEnv:
    """Skips the test where the source is not installed."""
    try:
        return make_vector(source(name, tmp_path), torch.arange(6) if ids is None else ids)  # type: ignore[return-value]
    except UserError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", KINDS)
def test_what_an_environment_lives_through_is_a_function_of_its_global_id(name: str, tmp_path: Path) -> None:
    whole = made(name, tmp_path)
    draw = torch.Generator().manual_seed(1)
    tape = [actions(whole, draw) for _ in range(60)]
    parts = [made(name, tmp_path, torch.arange(0, 2)), made(name, tmp_path, torch.arange(2, 6))]
    ends = 0
    for given in tape:
        whole.advance(given)
        for part, rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
            part.advance(given[rows])
            assert all(torch.equal(part.obs[group], value[rows]) for group, value in whole.obs.items())
            assert torch.equal(part.result.rewards, whole.result.rewards[rows])
        ends += int(whole.result.terminated.sum())
    assert len(torch.unique(whole.obs["actor"], dim=0)) == 6  # and no other's
    assert ends or "CartPole" not in name


@pytest.mark.parametrize("name", KINDS[:-1])
def test_seeds_and_actions_bring_an_environment_back(name: str, tmp_path: Path) -> None:
    env = made(name, tmp_path)
    lived(env, 45)
    rows = torch.tensor([1, 4, 5])
    state = env.snapshot(rows)
    assert state["actions"].shape[1] == {"CartPole-v1": 500, "Pendulum-v1": 200}.get(name.split(":")[1], 1000)
    other = made(name, tmp_path, torch.arange(6)[rows])
    other.restore(torch.arange(3), state)
    generator = torch.Generator().manual_seed(7)
    for _ in range(30):
        given = actions(env, generator)
        env.advance(given)
        other.advance(given[rows])
        assert all(torch.equal(other.obs[group], value[rows]) for group, value in env.obs.items())
    assert {name: value.shape for name, value in other.snapshot(torch.arange(3)).items()} == {
        n: v.shape for n, v in state.items()
    }


def test_envpools_cannot_be_brought_back_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = made("envpool:CartPole-v1", tmp_path)
    lived(env, 5)
    env.restore(torch.arange(6), env.snapshot(torch.arange(6)))
    assert "6 environments cannot be brought back and begin anew" in caplog.text


def test_ends_and_totals(tmp_path: Path) -> None:
    env = made("gymnasium:CartPole-v1", tmp_path)
    seen: list[int] = []
    for _ in range(120):
        before = {name: value.clone() for name, value in env.obs.items()}
        env.advance(torch.zeros(6, dtype=torch.int64))  # always to the left: it falls
        done = env.result.terminated
        seen += [int(done.sum())]
        # the last observation is kept, and the next episode has begun
        assert (env.final_obs["actor"][done, 2].abs() > 0.2).all() and (env.obs["actor"][done].abs() < 0.05).all()
        assert not torch.equal(before["actor"], env.obs["actor"])
    totals = env.drain_totals()
    assert totals["steps"] == 720.0 and totals["episodes"] == totals["terminated"] == sum(seen) > 60
    assert totals["reward/total"] == totals["episode_length"] and env.drain_totals()["steps"] == 0.0


def test_a_time_limit_truncates(tmp_path: Path) -> None:
    env = made("gymnasium:Pendulum-v1", tmp_path)
    for step in range(1, 201):
        env.advance(torch.zeros(6, 1))
        assert env.result.truncated.all() == (step == 200) and not env.result.terminated.any()


def test_spaces_become_groups_and_boxes(own: Callable[..., SourceEnv]) -> None:
    env = own()
    # in the order of the keys: arm 2, camera 4, gear 3 choices
    assert env.obs["actor"][0].tolist() == [0.5, 0.5, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 0.0]
    env.advance(torch.tensor([[-1.0, 7.0], [3.0, -2.0]]))
    inner = [one.unwrapped.last.tolist() for one in env._batch._envs]  # pyright: ignore[reportAttributeAccessIssue]
    # +-1 are the bounds, beyond them is clipped; what has no bounds is passed on
    assert inner == [[0.0, 7.0], [4.0, -2.0]]
    assert env.result.rewards.tolist() == [7.0, 2.0]


def test_one_bound_is_kept_and_one_beyond_a_million_is_none(own: Callable[..., SourceEnv]) -> None:
    for kind, expected in (("half", [[0.0, -7.0], [3.0, 2.0]]), ("huge", [[-1.0, -7.0], [3.0, 5.0]])):
        env = own(kind)
        env.advance(torch.tensor([[-1.0, -7.0], [3.0, 5.0]]))
        assert [one.unwrapped.last.tolist() for one in env._batch._envs] == expected  # pyright: ignore


def test_whole_numbers_have_equal_shares(own: Callable[..., SourceEnv]) -> None:
    env, counts = own("whole"), dict.fromkeys((-1, 0, 1, 2), 0)
    for action in [*torch.linspace(-0.99, 0.99, 20).tolist(), -5.0, 5.0]:
        env.advance(torch.full((2, 1), action))
        counts[int(env._batch._envs[0].unwrapped.last[0])] += 1  # pyright: ignore
    assert counts == {-1: 6, 0: 5, 1: 5, 2: 6}


def test_one_that_fails_once_ends_its_episode_and_no_run(own: Any, tmp_path: Path) -> None:
    small = {"actor_hidden_dims": [8], "critic_hidden_dims": [8], "num_learning_epochs": 1, "num_mini_batches": 1}
    env = {"source": "python:own_envs:make", "source_options": {"kind": "fails"}, "num_envs": 16}
    (tmp_path / "page.yaml").write_text(json.dumps({"env": env, "train": {"steps": 8}, "ppo": small}))
    trainer = training.start(load(tmp_path / "page.yaml", ["pool.address=none"]), tmp_path / "run")
    assert [metrics["Physics/unstable"] for metrics in trainer.train(3)] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("setting", ["episode_s=0.5", "reward_floor=5.0", "reward_scale_dt=false", "random_episode_phase=false"])
def test_what_a_source_sees_to_itself_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("pool_ant", [f"env.{setting}"])
    (message,) = str(caught.value).splitlines()
    assert f"env.{setting.partition('=')[0]}: not allowed with env.source" in message and message.endswith("leave it out")


def test_there_are_no_numbers_of_a_page_to_set(own: Callable[..., SourceEnv]) -> None:
    env = own()
    env.begin_iteration(0, {})
    with pytest.raises(UserError, match=r"has no number 'rewards.pose.weight' that could be set$"):
        env.begin_iteration(0, {"rewards.pose.weight": torch.tensor(1.0)})


def test_groups_choose_among_keys_and_rewards_are_scaled_for_the_learner_alone(own: Callable[..., SourceEnv]) -> None:
    groups = {"actor": ["arm"], "critic": ["gear", "arm"]}
    env = own(groups=groups, reward_scale=0.5)
    assert env.obs["critic"][0].tolist() == [0.0, 1.0, 0.0, 0.5, 0.5] and env.obs["actor"].shape == (2, 2)
    assert list(env.final_obs) == ["critic"]
    env.advance(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert env.result.rewards.tolist() == [2.5, 2.5] and env.buffers["episode_reward"].tolist() == [5.0, 5.0]


def test_choices_may_begin_anywhere(own: Callable[..., SourceEnv]) -> None:
    env = own("discrete")
    env.advance(torch.tensor([0, 2]))
    assert env.action_space == ActionSpace(3, discrete=True) and env.result.rewards.tolist() == [5.0, 7.0]


@pytest.mark.parametrize(
    ("name", "env", "said"),
    [
        ("gymnasium:Antt-v5", {}, "env.source: gymnasium:Antt-v5: Gymnasium knows no such environment; did you mean 'Ant-v5'?"),
        ("python:own_envs:maker", {}, "write python:MODULE:FUNCTION"),
        ("python:nowhere:make", {}, "No module named 'nowhere'"),
        ("python:own_envs:make", {"source_options": {"kind": "multi"}}, "actions of the kind MultiDiscrete"),
        ("python:own_envs:make", {"source_options": {"kind": "sequence"}}, "of the kind Sequence have no fixed size"),
        ("python:own_envs:make", {"groups": {"actor": ["armm"]}}, "'armm' is no key of the observations; did you mean 'arm'?"),
        ("gymnasium:CartPole-v1", {"groups": {"actor": ["arm"]}}, "have no keys to choose from"),
    ],
)
def test_what_cannot_be_had(own: Any, tmp_path: Path, name: str, env: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make_vector(source(name, tmp_path, **env), torch.arange(2))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def refused(tmp_path: Path, name: str, steps: int = 0, **options: Any) -> str:
    """What is said of a source that cannot be had, or not stepped; a line."""
    with pytest.raises(UserError) as caught:
        env = make_vector(source(name, tmp_path, source_options=options), torch.arange(2))
        for _ in range(steps):
            env.advance(torch.zeros(2, 2))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python:own_envs:maker", "module 'own_envs' has no attribute 'maker'; did you mean 'make'?; write python:MODULE:FUNC"),
        ("python::make", "is not MODULE:NAME"),
        ("python:..own_envs:make", "is not MODULE:NAME"),
        ("python:own_envs", "is not MODULE:NAME"),
        ("python:own_envs:broken", "making one raised OSError: no licence ("),
        ("python:own_envs:ends", "making one raised SystemExit: 0 ("),
        ("python:own_envs:of_two", "making one raised TypeError: of_two() missing 2 required positional arguments: "),
        ("python:own_envs:same", "returned the same one twice; return a new one at each call"),
        ("python:own_envs:nothing", "gives None, and a gymnasium.Env is wanted"),
        ("python:own_envs:number", "is a value of the kind int, and a function that makes one is wanted"),
        ("python:own_envs:vector", "gives a vector of environments (CartPoleVectorEnv), and single ones are wanted"),
        ("python:syntax:make", "importing syntax raised SyntaxError: "),
        ("python:exits:make", "importing exits raised SystemExit: 0 ("),
        ("python:lacks:make", "importing lacks raised ModuleNotFoundError: No module named 'nowhere' ("),
        ("gymnasium:syntax:Own-v0", "making one raised SyntaxError: "),
        ("gymnasium:exits:Own-v0", "making one raised SystemExit: 0 ("),
        ("gymnasium:FetchReach-v9", "; an id of another package is gymnasium:PACKAGE:ID, which imports it first"),
        ("gymnasium:nowhere:Own-v0", "can be imported."),  # and no extra of ours is said to help
    ],
)
def test_what_makes_none_is_a_line(own: Any, tmp_path: Path, name: str, said: str) -> None:
    for module, text in {"syntax": "def make(:", "exits": "raise SystemExit(0)", "lacks": "import nowhere"}.items():
        sys.modules.pop(module, None)
        (tmp_path / f"{module}.py").write_text(text)
    line = refused(tmp_path, name)
    assert line.startswith(("env.source: " + name, "env.source: what makes")) and said in line


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gymnasium:CartPole-v1", {"max_episode_steps": -5}, "making one raised ValueError: Expect the `max_episode_steps`"),
        ("gymnasium:CartPole-v1", {"sutton_barto_rewards": 1}, "source_options.sutton_barto_rewards; did you mean 'sutton_b"),
        ("python:own_envs:make", {"kind": "huge", "bounds": 1}, "got an unexpected keyword argument 'bounds'"),
        ("python:own_envs:Plain", {"se": "3"}, "; env.source_options.se; did you mean 'see'?"),
        ("python:own_envs:Plain", {"see": "3"}, "its observation_space is a value of the kind int, and one of gymnasium.spaces"),
        ("python:own_envs:Plain", {"do": "3"}, "its action_space is a value of the kind int, and one of gymnasium.spaces"),
        ("python:own_envs:Plain", {"see": "box(-1, 1, (0,))"}, "observations of the group 'actor' have no numbers"),
        ("python:own_envs:Plain", {"see": "spaces.Discrete(10**9)"}, "1,000,000,000 numbers, and at most 10,000,000 are"),
        ("python:own_envs:Plain", {"do": "box(-1, 1, (0,))"}, "actions of the shape (0,): there is nothing to choose"),
        ("python:own_envs:Plain", {"do": "damaged()"}, "the bounds of action 1 are nan and 1; the lower one comes first"),
        ("python:own_envs:Plain", {"do": "box(-5, 5)", "odd": 1}, "actions are Box("),
        ("python:own_envs:Plain", {"see": "box(-1, 1, (5,))", "odd": 1}, "observations have {'actor': "),
        (
            "python:own_envs:Plain",
            {"see": "spaces.Dict(a=box(-1, 1), s=spaces.Sequence(box(0, 1)))"},
            "observations 's' of the kind Sequence have no fixed size; choose among the others: env.groups: {actor: [KEY, ...]}",
        ),
    ],
)
def test_options_and_spaces_that_cannot_be_used_are_a_line(own: Any, tmp_path: Path, name: str, options: dict, said: str) -> None:
    assert said in refused(tmp_path, name, **options)


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        ("np.zeros(3)", "it returned a value of the kind ndarray; a gymnasium.Env returns (observation, info)"),
        ("(np.zeros(3), {}, 1)", "it returned 3 values; a gymnasium.Env returns (observation, info)"),
        ("(np.zeros(1), {})", "an observation has the shape (1,), and its space (3,)"),
        ("(0.5, {})", "an observation has the shape (), and its space (3,)"),
        ("(np.zeros(4), {})", "an observation has the shape (4,), and its space (3,)"),
        ("(['1', '2', '3'], {})", "an observation is ['1', '2', '3'], and numbers are wanted"),
        ("(np.zeros(3) + 1j, {})", "and numbers are wanted"),
        ("exit()", "raised SystemExit"),
    ],
)
def test_what_a_reset_returns_is_not_guessed_at(own: Any, tmp_path: Path, begin: str, said: str) -> None:
    assert said in refused(tmp_path, "python:own_envs:Plain", begin=begin)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("(np.zeros(3), 1.0, False, {})", "step returned 4 values; a gymnasium.Env returns 5"),
        ("(np.zeros(3), 1.0, {}, False, False)", "terminated is {}, and numbers are wanted"),
        ("(np.zeros(3), 1.0, 'False', False, {})", "terminated is 'False', and numbers are wanted"),
        ("(np.zeros(3), 1.0, False, 0.5, {})", "truncated is 0.5, and True or False is wanted"),
        ("(np.zeros(3), 1.0, float('nan'), False, {})", "terminated is nan, and True or False is wanted"),
        ("(np.zeros(3), '1.5', False, False, {})", "the reward is '1.5', and numbers are wanted"),
        ("(np.zeros(3), [1.0, 2.0], False, False, {})", "the reward has the shape (2,), and one number is wanted"),
        ("(np.zeros(2), 1.0, False, False, {})", "an observation has the shape (2,), and its space (3,)"),
        ("exit()", "SystemExit"),
    ],
)
def test_what_a_step_returns_is_not_guessed_at(own: Any, tmp_path: Path, then: str, said: str) -> None:
    line = refused(tmp_path, "python:own_envs:Plain", 10, then=then)
    assert "environment 0, " in line and "failed 5 times" in line and said in line


@pytest.mark.parametrize(
    ("see", "begin", "said"),
    [
        ("spaces.Discrete(5, start=3)", "(1, {})", "an observation is 1, and its space Discrete(5, start=3)"),
        ("spaces.Discrete(5)", "(2.7, {})", "an observation is 2.7, and its space Discrete(5)"),
        ("spaces.Dict(a=box(0, 1), b=box(0, 1))", "({'a': np.zeros(3)}, {})", "an observation has no 'b', which its space has"),
        ("spaces.Dict(a=box(0, 1), b=box(0, 1))", "({'a': np.zeros(5), 'b': np.zeros(1)}, {})", "has the shape (5,), and its sp"),
        ("spaces.Tuple((box(0, 1), box(0, 1)))", "((np.zeros(3),), {})", "an observation has no 1, which its space has"),
    ],
)
def test_an_observation_is_one_of_its_space(own: Any, tmp_path: Path, see: str, begin: str, said: str) -> None:
    assert said in refused(tmp_path, "python:own_envs:Plain", see=see, begin=begin)


def test_ends_and_rewards_are_read_in_the_types_that_are_common(own: Any, tmp_path: Path) -> None:
    for end in ("True", "1", "1.0", "np.True_", "np.array([True])"):
        then = f"(np.zeros((1, 3)), np.array([2]), False, {end}, None)"
        env = make_vector(source("python:own_envs:Plain", tmp_path, source_options={"then": then}), torch.arange(2))
        env.advance(torch.zeros(2, 2))
        assert env.result.truncated.tolist() == [True, True] and env.result.rewards.tolist() == [2.0, 2.0]
        env.close()


@pytest.mark.parametrize(("low", "high", "led"), [(2e6, 3e6, [2e6, 2.5e6, 3e6]), (-1e6, 1e6, [-1e6, 0.0, 1e6])])
def test_bounds_that_lie_far_off_are_bounds(own: Any, tmp_path: Path, low: float, high: float, led: list) -> None:
    options = {"do": f"box({low}, {high})"}
    env: Any = make_vector(source("python:own_envs:Plain", tmp_path, source_options=options), torch.arange(1))
    env.advance(torch.tensor([[-1.0, 0.0, 1.0]]))
    assert env._batch._envs[0].unwrapped.last.tolist() == led


def test_what_an_environment_changes_of_the_process_is_put_back(own: Any, tmp_path: Path, caplog: Any) -> None:
    before = Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    make_vector(source("python:own_envs:moves", tmp_path), torch.arange(2))
    assert (Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()) == before
    assert caplog.messages == ["env.source: python:own_envs:moves: changes the working directory to /; it is put back"]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"actor": []}, "env.groups.actor: a group needs at least one key"),
        ({"actor": ["arm", "arm"]}, "env.groups.actor: a key stands twice"),
        ({"actor": ["arm"], "critics": ["arm"]}, "env.groups.critics: nothing reads it; did you mean 'critic'? (there are both)"),
    ],
)
def test_groups_that_nobody_means(tmp_path: Path, groups: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source("python:own_envs:make", tmp_path, groups=groups)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("name", "lacking", "extra"),
    [
        ("gymnasium:LunarLander-v3", "Box2D", "box2d"),
        ("dm_control:walker-walk", "dm_control", "dmc"),
        ("envpool:A", "envpool", "envpool"),
    ],
)
def test_what_is_not_installed(name: str, lacking: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.bipedal_walker", raising=False)
    with pytest.raises(UserError) as caught:
        make_vector(source(name, tmp_path), torch.arange(2))
    assert str(caught.value).startswith(f"env.source: {name}: ")
    assert str(caught.value).endswith(f'; pip install -e ".[{extra}]" in the clone')


@pytest.mark.parametrize("override", ["train.evaluate_every=5", "train.stop_when=passed"])
def test_such_a_page_has_nobody_to_judge_its_policy(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("pool_ant", [override])
    assert "needs a task family, by whose score the policy is judged; env.source has none; leave it out" in str(caught.value)


def test_such_a_page_has_no_robot_to_show(tmp_path: Path) -> None:
    source("gymnasium:CartPole-v1", tmp_path)
    with pytest.raises(UserError, match="make builds pages with a robot; embodied-rl train takes this one"):
        embodied_rl.make(tmp_path / "page.yaml")


def test_a_pole_is_balanced_through_the_trainer(tmp_path: Path) -> None:
    """The whole way: page, source, collector, learner, checkpoint, resume."""
    from embodied_rl import training

    task = load(
        _written(tmp_path),
        ["env.num_envs=16", "ppo.learning_rate=3e-3", "ppo.schedule=constant", "ppo.gamma=0.98", "ppo.init_std=1.0"],
    )
    trainer = training.start(task, tmp_path / "run")
    assert isinstance(trainer.collector, LocalCollector)
    # each iteration's own: the metrics are of the latest hundred episodes, which here reach back over several
    sums = [dict(trainer.collector._rollout.totals) for _ in trainer.train(14)]
    lengths = [totals["episode_length"] / max(totals["episodes"], 1.0) for totals in sums]
    assert lengths[0] < 40.0 and max(lengths[-4:]) > 90.0
    again = training.resume(str(tmp_path / "run"), str(tmp_path / "page.yaml"))
    collector = again.collector
    assert isinstance(collector, LocalCollector)
    assert torch.equal(collector._env.obs["actor"], trainer.collector._env.obs["actor"])  # pyright: ignore
    assert np.isfinite(lengths).all()


def _written(tmp_path: Path) -> Path:
    path = tmp_path / "page.yaml"
    ppo = {"num_learning_epochs": 8, "actor_hidden_dims": [32], "critic_hidden_dims": [32]}
    path.write_text(
        json.dumps({"env": {"source": "gymnasium:CartPole-v1"}, "train": {"steps": 64}, "ppo": ppo, "pool": {"shard_size": 8}})
    )
    return path
