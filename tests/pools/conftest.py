"""Ray on this machine, environments that go wrong on demand, and a Ray that is none, whose workers take turns in this process."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embodied_rl.config import load

# Read when Ray starts: a death is noticed soon, simulators are no background work, and nobody is told of any of it.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: An environment that does as a file says when it is asked to step, once.
TRAPPED = """
import os, time
import gymnasium
import numpy as np

class Trapped(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, trap, always=False, pause=0.0):
        self.trap, self.always, self.pause = trap, always, pause

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps, self.state = seed, 0, self.np_random.normal(size=3)
        return self.state, {}

    def step(self, action):
        self.steps += 1
        self.state = 0.9 * self.state + np.resize(action, 3) + 0.1 * self.np_random.normal(size=3)
        if os.path.exists(self.trap):
            kind = open(self.trap).read()
            if not self.always:
                try:
                    os.remove(self.trap)
                except FileNotFoundError:
                    kind = ""
            if kind == "raise":
                raise RuntimeError("the gripper is stuck")
            if kind == "nan":
                return self.state * np.nan, 1.0, False, False, {}
            if kind == "exit":
                raise SystemExit(0)
            if kind == "hang":
                time.sleep(1000.0)
            if kind == "die":
                os._exit(1)
            if kind == "slow":
                time.sleep(0.2)
        return self.state, float(-np.abs(self.state).sum()), False, self.steps >= 25, {}

def make(**options):
    return Trapped(**options)
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Ray on two nodes; this process is its driver."""
    pytest.importorskip("ray", reason="needs Ray: an extra, ray")
    from ray.cluster_utils import Cluster

    from embodied_rl.pools.cluster import Connection

    before = dict(os.environ)
    os.environ.update(SETTINGS)
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 120 << 20})
    started.add_node(num_cpus=4, object_store_memory=120 << 20)
    connection = Connection(str(started.address))
    yield started
    connection.close()
    started.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def trapped(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes pools of environments that go wrong once the file `trap` is written."""
    pytest.importorskip("gymnasium")
    (tmp_path / "trapped.py").write_text(TRAPPED)
    monkeypatch.syspath_prepend(str(tmp_path))
    from embodied_rl.pools.pool import SimPool

    made: list[SimPool] = []

    def make(*overrides: str, **options: Any) -> Any:
        path = tmp_path / "page.yaml"
        options = {"trap": str(tmp_path / "trap")} | options
        path.write_text(
            json.dumps(
                {
                    "env": {"source": "python:trapped:make", "source_options": options, "num_envs": 8},
                    "train": {"steps": 20},
                    "ppo": {"gamma": 0.9},
                    "physics": {"max_unstable": 1.0},
                    "pool": {"workers": 2, "shard_size": 4, "spares": 0},
                }
            )
        )
        pool = SimPool(load(path, overrides))
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()
    sys.modules.pop("trapped", None)


_NODE = "ab" * 28


class LostError(Exception):
    """An actor of `Inline`'s is dead."""


class Answer:
    """What a call of an actor will come to: it is made when somebody looks for it, after those before it."""

    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        self.actor, self.call, self.value = actor, call, None
        self.done = False


class Actor:
    """An object whose methods are called as Ray's are.

    One that is `slow` begins nothing, and what one that is `late` did is not there for a while.
    """

    def __init__(self, made: Any) -> None:
        self.made, self.calls = made, deque[Answer]()
        self.slow = self.late = self.dead = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.made, name)

        def remote(*arguments: Any) -> Answer:
            given = [copy.deepcopy(one.value) if isinstance(one, Answer) else one for one in arguments]  # as over a wire
            answer = Answer(self, lambda: method(*given))
            self.calls.append(answer)
            return answer

        def at_once(*arguments: Any) -> Answer:
            answer = Answer(self, lambda: None)
            answer.value, answer.done = None if self.dead else method(*arguments), True
            return answer

        options = lambda **_: SimpleNamespace(remote=lambda *a: at_once(*(o.value if isinstance(o, Answer) else o for o in a)))  # noqa: E731
        return SimpleNamespace(remote=remote, options=options)

    def work(self) -> None:
        """Do all that was asked."""
        while self.calls:
            answer = self.calls.popleft()
            answer.value, answer.done = copy.deepcopy(answer.call()), True


class Inline:
    """As much of Ray as a pool needs, in this process: who is not `slow` has answered whenever one looks."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=type("RayTaskError", (LostError,), {}))

    def __init__(self) -> None:
        self.actors: list[Actor] = []

    def remote(self, **_: Any) -> Callable[[type], Any]:
        def make(cls: type) -> Any:
            def start(*arguments: Any) -> Actor:
                self.actors.append(Actor(cls(*arguments)))
                return self.actors[-1]

            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

        return make

    def put(self, value: Any) -> Answer:
        answer = Answer(None, lambda: value)  # pyright: ignore[reportArgumentType]
        answer.value, answer.done = value, True
        return answer

    def wait(self, refs: list[Answer], **_: Any) -> tuple[list[Answer], list[Answer]]:
        for ref in refs:
            if not (ref.done or ref.actor.slow or ref.actor.dead):
                ref.actor.work()
        ready = [ref for ref in refs if ref.actor.dead or (ref.done and not ref.actor.late)]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Answer, timeout: float | None = None) -> Any:
        if not ref.done and ref.actor.dead:
            raise LostError("the actor died")
        if not ref.done:
            ref.actor.work()
        return ref.value

    def kill(self, actor: Actor, **_: Any) -> None:
        actor.dead = True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: _NODE)

    def is_initialized(self) -> bool:
        return False

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}


@pytest.fixture
def inline() -> Any:
    """A connection to an `Inline`."""
    pytest.importorskip("ray", reason="needs Ray: an extra, ray")
    node = {"NodeID": _NODE, "Alive": True, "NodeManagerAddress": "127.0.0.1", "Resources": {"CPU": 4.0}}
    words = {"nodes": lambda: [node], "last_words": lambda pid: "", "close": lambda: None}
    return SimpleNamespace(ray=Inline(), **words)
