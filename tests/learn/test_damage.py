from __future__ import annotations

import copy
import errno
import hashlib
import io
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl import runs, training
from embodied_rl.cli import main
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.checkpoint import CheckpointError, DamagedError
from embodied_rl.learn.damage import find_damage
from embodied_rl.learn.run import Run, RunError
from embodied_rl.learn.train import Trainer

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "train.save_every=1"),
]
NAN, INF = float("nan"), float("inf")
ACTOR, CRITIC, OPTIMIZER = "actor_state_dict", "critic_state_dict", "optimizer_state_dict"
WEIGHT, BIAS, VAR, STD = "mlp.0.weight", "mlp.2.bias", "obs_normalizer._var", "distribution.std_param"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """One that has written the checkpoints 1, 2 and 3."""
    made = training.start(load("go2_flat", SMALL), tmp_path_factory.mktemp("run") / "run")
    for _ in made.train(3):
        pass
    return made


@pytest.fixture(scope="module")
def saved(trainer: Trainer) -> dict:
    return checkpoint.read(trainer.run.checkpoint(3))


@pytest.fixture
def run(trainer: Trainer, tmp_path: Path) -> Run:
    """A copy that a test may damage."""
    copied = Run(tmp_path / "run")
    copied.checkpoints.mkdir(parents=True)
    for path in (trainer.run.path / "config.yaml", *trainer.run.checkpoints.glob("*.pt")):
        (copied.path / path.relative_to(trainer.run.path)).write_bytes(path.read_bytes())
    return copied


def put(state: dict, *path: Any, value: Any) -> None:
    """Set what lies at a path; a function is told what was there."""
    *way, last = path
    for key in way:
        state = state[key]
    state[last] = value(state[last]) if callable(value) else value


def one(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Puts a number in place of the first."""

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = number
        return tensor

    return changed


def swapped(state: dict) -> None:
    state[ACTOR], state[CRITIC] = state[CRITIC], state[ACTOR]


def at(*path: Any, value: Any) -> Callable[[dict], None]:
    return lambda state: put(state, *path, value=value)


def score(**changes: Any) -> Callable[[dict], None]:
    """Gives it an evaluation that came out so."""
    return at("infos", value=lambda infos: infos | {"score": {"figures": {}, "margin": 0.5, "passed": True} | changes})


def endless(state: dict) -> None:
    state["infos"]["loop"] = loop = []
    loop.append(loop)


GROUP, FIRST = (OPTIMIZER, "param_groups", 0), (OPTIMIZER, "state", 1)
DAMAGE = {
    "weight NaN": (at(ACTOR, WEIGHT, value=one(NAN)), "actor_state_dict.mlp.0.weight: 1 of 376 values not finite"),
    "weight inf": (at(CRITIC, BIAS, value=one(INF)), "critic_state_dict.mlp.2.bias: 1 of 1 values not finite"),
    "variance": (at(ACTOR, VAR, value=one(-1.0)), "actor_state_dict.obs_normalizer._var: -1, and no number below 0"),
    "variance inf": (at(CRITIC, VAR, value=one(INF)), "critic_state_dict.obs_normalizer._var: 1 of 59 values not finite"),
    "deviation": (at(ACTOR, "obs_normalizer._std", value=one(-0.5)), "obs_normalizer._std: -0.5, and no number below 0"),
    "mean": (at(ACTOR, "obs_normalizer._mean", value=one(NAN)), "obs_normalizer._mean: 1 of 47 values not finite"),
    "count": (at(ACTOR, "obs_normalizer.count", value=torch.tensor(-4)), "obs_normalizer.count: -4, and no number below 0"),
    "count float": (at(ACTOR, "obs_normalizer.count", value=torch.tensor(4.0)), "obs_normalizer.count: float32, and it counts"),
    "std negative": (at(ACTOR, STD, value=one(-1.0)), "distribution.std_param: -1, and only numbers above 0"),
    "std zero": (at(ACTOR, STD, value=one(0.0)), "distribution.std_param: 0, and only numbers above 0"),
    "rate NaN": (at(*GROUP, "lr", value=NAN), "optimizer_state_dict.param_groups.0.lr: nan, and only numbers from 0"),
    "rate negative": (at(*GROUP, "lr", value=-1e-3), "param_groups.0.lr: -0.001, and only numbers from 0"),
    "rate inf": (at(*GROUP, "lr", value=INF), "param_groups.0.lr: inf, and only numbers from 0"),
    "rate text": (at(*GROUP, "lr", value="fast"), "param_groups.0.lr: 'fast', and only numbers from 0"),
    "rate tensor": (at(*GROUP, "lr", value=torch.tensor(NAN)), "param_groups.0.lr: 1 of 1 values not finite"),
    "beta": (at(*GROUP, "betas", value=(0.9, 1.0)), "param_groups.0.betas.1: 1.0, and only numbers from 0 and below 1"),
    "betas": (at(*GROUP, "betas", value=0.9), "param_groups.0.betas: 0.9, and no two numbers"),
    "epsilon": (at(*GROUP, "eps", value=-1.0), "param_groups.0.eps: -1.0, and only numbers from 0"),
    "groups": (at(OPTIMIZER, "param_groups", value=None), "optimizer_state_dict.param_groups: no list of groups"),
    "moments": (at(OPTIMIZER, "state", value=[]), "optimizer_state_dict.state: no moments by parameter"),
    "step": (at(*FIRST, "step", value=torch.tensor(-1.0)), "optimizer_state_dict.state.1.step: -1, and no number below 0"),
    "step None": (at(*FIRST, "step", value=None), "optimizer_state_dict.state.1.step: None"),
    "moment NaN": (at(*FIRST, "exp_avg", value=one(NAN)), "state.1.exp_avg: 1 of 376 values not finite"),
    "moment negative": (at(*FIRST, "exp_avg_sq", value=one(-1.0)), "state.1.exp_avg_sq: -1, and no number below 0"),
    "moment shape": (at(*FIRST, "exp_avg_sq", value=torch.zeros(3)), "state.1.exp_avg_sq: shape (3,), and exp_avg is (8, 47)"),
    "moment int": (at(*FIRST, "exp_avg", value=lambda t: t.long()), "state.1.exp_avg: int64 of shape (8, 47); a tensor of"),
    "moments' shape": (
        at(*FIRST, value=lambda m: m | {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}),
        "mlp.0.weight: shape (8, 47), and its moments in the optimizer are (3,)",
    ),
    "int64": (at(ACTOR, WEIGHT, value=lambda t: t.long()), "mlp.0.weight: int64; float32 is possible, or float64 throughout"),
    "bool": (at(CRITIC, WEIGHT, value=lambda t: t > 0), "critic_state_dict.mlp.0.weight: bool; float32 is possible"),
    "complex": (at(ACTOR, WEIGHT, value=lambda t: t.to(torch.complex64)), "actor_state_dict.mlp.0.weight: complex64"),
    "half": (at(ACTOR, WEIGHT, value=lambda t: t.half()), "actor_state_dict.mlp.0.weight: float16; float32 is possible"),
    "double in part": (at(ACTOR, WEIGHT, value=lambda t: t.double()), "actor_state_dict.mlp.0.weight: float64, and"),
    "sparse": (at(ACTOR, WEIGHT, value=lambda t: t.to_sparse()), "actor_state_dict.mlp.0.weight: no plain tensor"),
    "swapped": (swapped, "actor_state_dict.mlp.0.weight: shape"),
    "transposed": (at(ACTOR, WEIGHT, value=lambda t: t.T.contiguous()), "mlp.0.weight: shape (47, 8), and its moments"),
    "weight 0-d": (at(ACTOR, WEIGHT, value=torch.tensor(1.0)), "mlp.0.weight: shape (), and its moments in the optimizer are"),
    "weight list": (at(ACTOR, WEIGHT, value=[1.0]), "actor_state_dict.mlp.0.weight: list, and no tensor"),
    "weight None": (at(CRITIC, WEIGHT, value=None), "critic_state_dict.mlp.0.weight: NoneType, and no tensor"),
    "expanded": (
        at(ACTOR, WEIGHT, value=lambda t: torch.zeros(1).expand(600_000, 600_000)),
        "actor_state_dict.mlp.0.weight: shape (600000, 600000), and the file holds 4 bytes of it",
    ),
    "iteration": (at("iter", value=-1), "iter: -1, and no number below 0 is possible"),
    "iteration huge": (at("iter", value=10**30), "iter: 1000000000000000000000000000000, and no number beyond 9007199254740992"),
    "iteration bool": (at("iter", value=True), "iter: True, and no number below 0 is possible"),
    "infos": (at("infos", value=[]), "infos: list, and no names with values"),
    "steps": (at("infos", "env_steps", value="x"), "infos.env_steps: 'x', and only a number from 0 up is possible"),
    "steps negative": (at("infos", "env_steps", value=-5), "infos.env_steps: -5, and only a number from 0 up is possible"),
    "steps beyond all": (at("infos", "env_steps", value=1e300), "infos.env_steps: 1e+300, and no number beyond"),
    "deviation and variance": (
        at(ACTOR, "obs_normalizer._std", value=one(50.0)), "obs_normalizer._std: not the root of obs_normalizer._var"
    ),
    "deviation of none": (
        at(ACTOR, "obs_normalizer._std", value=torch.zeros_like), "obs_normalizer._std: not the root of obs_normalizer._var"
    ),
    "parameters permuted": (at(*GROUP, "params", value=lambda ids: ids[::-1]), "and torch counts them from 0 on"),
    "parameters twice": (at(*GROUP, "params", value=lambda ids: [0] * len(ids)), "param_groups: parameters [0, 0, 0"),
    "moments of none": (at(OPTIMIZER, "state", 99, value={}), "optimizer_state_dict.state.99: moments of no parameter"),
    "moments by text": (
        at(OPTIMIZER, "state", value=lambda state: {str(index): one for index, one in state.items()}),
        "optimizer_state_dict.state.0: moments of no parameter",
    ),
    "shards twice": (at("shards", value=lambda shards: shards * 2), "shards: robot 0 is in two of them"),
    "steps huge": (at("infos", "env_steps", value=10**400), "infos.env_steps: 1000"),
    "seconds": (at("infos", "seconds", value=NAN), "infos.seconds: nan, and only a number from 0 up is possible"),
    "reward": (at("infos", "mean_reward", value=None), "infos.mean_reward: None, and only a number is possible"),
    "score": (at("infos", "score", value={"margin": 1.0}), "infos.score: {'margin': 1.0}, and figures by name, margin and"),
    "candidate": (at("infos", "candidate", value="x"), "infos.candidate: 'x', and only a number from 0 up is possible"),
    "wait": (at("infos", "wait", value=3), "infos.wait: 3, and until, least and metrics by name are needed"),
    "wait's": (
        at("infos", "wait", value={"until": "x", "metrics": {}, "least": 0}),
        "infos.wait.until: 'x', and only a number is possible",
    ),
    "score text": (at("infos", "score", value="good"), "infos.score: 'good', and figures by name, margin and passed are needed"),
    "score's figure": (score(figures={"fall_rate": "low"}), "infos.score.figures.fall_rate: 'low', and only a number"),
    "score's margin": (score(margin=NAN), "infos.score.margin: nan, and only a number is possible"),
    "score's margins": (score(margin=torch.ones(2)), "infos.score.margin: float32 of shape (2,), and only a number"),
    "score's verdict": (score(passed=1.0), "infos.score.passed: 1.0, and only True and False are possible"),
    "endless": (endless, "nested without end"),
    "shards text": (at("shards", value="envs_000003_0_of_1.pt"), "shards: str, and no list"),
    "shards empty": (at("shards", value=[{}]), "shards.0.name: None, and text is needed"),
    "shards of": (at("shards", value=["x"]), "shards.0.name: 'x', and text is needed"),
    "shards' count": (at("shards", 0, "count", value=-4), "shards.0.count: -4, and a count is needed"),
    "curricula": (at("curricula", value={"ramp": {"x": 1.0}}), "curricula.ramp.x: 1.0, and no tensor"),
    "curricula list": (at("curricula", value=[]), "curricula: no numbers by curriculum"),
    "elsewhere": (at("more", value={"memory": torch.tensor([NAN])}) , "more.memory: 1 of 1 values not finite"),
}  # fmt: skip


def test_what_training_saves_is_sound(saved: dict) -> None:
    assert find_damage(saved) == ""
    assert find_damage(saved | {"infos": None}) == ""  # as rsl_rl's runner saves it
    exact = copy.deepcopy(saved)
    for place in (ACTOR, CRITIC):
        for name, value in exact[place].items():
            if value.is_floating_point():
                exact[place][name] = value.double()
    assert find_damage(exact) == ""
    for figures, margin in (({"fall_rate": 0.5}, -49.0), ({"speed": NAN}, -INF)):
        scored = copy.deepcopy(saved)
        score(figures=figures, margin=margin)(scored)
        assert find_damage(scored) == ""
    still = copy.deepcopy(saved)  # an observation that never changes
    for name in (VAR, "obs_normalizer._std"):
        put(still, ACTOR, name, value=one(0.0))
    assert find_damage(still) == ""
    put(still, *GROUP, "lr", value=0.0)  # to where a curriculum may take it
    below = torch.tensor(-0.5)  # logarithms, and numbers that are no network's
    own = {"log_std": below, "std": below, "curricula": {"ramp": {"rewards.pose.std": below}}}
    assert find_damage(still | own | {"policy_state_dict": {"log_std": below, "head.log_std_param": below}}) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (print, "more.fn: builtin_function_or_method, and only tensors and plain values can be read again"),
        ([np.float64(1.0)], "more.fn.0: numpy.float64, and only tensors and plain values can be read again"),
        ({frozenset(): 1}, "the key more.fn.frozenset(): frozenset, and only tensors and plain values can be read again"),
        (NAN, ""),
        (OrderedDict({(1, 2): {None, b"x", torch.float32}}), ""),
    ],
)
def test_what_could_not_be_read_again_is_named_before_it_is_written(saved: dict, tmp_path: Path, value: Any, said: str) -> None:
    state = saved | {"more": {"fn": value}}
    assert find_damage(state) == said
    checkpoint.save(tmp_path / "model.pt", state)
    if said:
        with pytest.raises(DamagedError, match="refused: it holds more than tensors and plain values"):
            checkpoint.read(tmp_path / "model.pt")
    else:
        checkpoint.read(tmp_path / "model.pt")


def test_what_has_more_parts_than_are_read_replaces_nothing(saved: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(path, saved)
    monkeypatch.setattr(checkpoint, "_MAX_PARTS", 30)
    with pytest.raises(CheckpointError, match=r"model.pt: not written: \d+ parts, and at most 30 are possible$"):
        checkpoint.save(path, saved | {"more": [torch.ones(1) for _ in range(30)]})
    monkeypatch.undo()
    assert "more" not in checkpoint.read(path)


def test_a_large_checkpoint_is_looked_at_in_no_time(saved: dict) -> None:
    large = saved | {"more": {str(index): torch.zeros(1000) for index in range(1000)}}
    started = time.perf_counter()
    find_damage(large)
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_cannot_be_is_refused_by_name(saved: dict, tmp_path: Path, kind: str) -> None:
    damage, said = DAMAGE[kind]
    state, path = copy.deepcopy(saved), tmp_path / "model.pt"
    damage(state)
    checkpoint.save(path, state)
    with pytest.raises(DamagedError) as caught:
        checkpoint.read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: damaged: ") and said in line and "\n" not in line
    assert line.endswith("; use an earlier checkpoint of the run")


@pytest.mark.parametrize("kind", ["weight NaN", "rate text", "moments' shape", "steps", "endless"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(
    run: Run, trainer: Trainer, saved: dict, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    state, path = copy.deepcopy(saved), run.checkpoint(3)
    DAMAGE[kind][0](state)
    checkpoint.save(path, state)
    assert runs.load(run.path).iteration == 2
    assert training._go_on(trainer, run.newest_checkpoints()).iteration == 2
    with pytest.raises(DamagedError) as caught:
        runs.load(path)
    assert caplog.messages == [str(caught.value)] * 2


def without_moments(state: dict) -> None:
    state[OPTIMIZER]["state"] = {}


def both(*changes: Callable[[dict], None]) -> Callable[[dict], None]:
    def change_all(state: dict) -> None:
        for change in changes:
            change(state)

    return change_all


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (both(without_moments, swapped), "actor_state_dict is what critic_state_dict should be: actor_state_dict."),
        (lambda state: state[ACTOR].pop(WEIGHT), "actor_state_dict.mlp.0.weight is missing"),
        (lambda state: state.pop(CRITIC), "critic_state_dict is missing"),
        (lambda state: state.pop(OPTIMIZER), "its learner cannot be set to it (KeyError: 'optimizer_state_dict')"),
        (lambda state: state[CRITIC].update(extra=torch.zeros(2)), "critic_state_dict.extra is not one of the page's"),
        (at(ACTOR, VAR, value=torch.ones(3)), "actor_state_dict.obs_normalizer._var: shape (3,), the page's is (1, 47)"),
        (lambda state: state[OPTIMIZER].pop("param_groups"), "its learner cannot be set to it (KeyError: "),
        (at(OPTIMIZER, "param_groups", value=lambda groups: groups * 2), "and torch counts them from 0 on"),
        (at(*GROUP, "params", value=[0, 1]), "moments of no parameter"),
        (lambda state: state[OPTIMIZER]["state"].pop(3), "its learner cannot be set to it (KeyError: 'exp_avg')"),
        (lambda state: state[OPTIMIZER]["state"][3].pop("step"), "its learner cannot be set to it (KeyError: 'step')"),
        (
            both(
                lambda state: state[OPTIMIZER]["state"].pop(3),
                at(*FIRST, "exp_avg", value=torch.zeros(3)),
                at(*FIRST, "exp_avg_sq", value=torch.zeros(3)),
            ),
            "its learner cannot be set to it (ValueError: moments 1 have the shapes ",
        ),
    ],
    ids=[
        *("swapped", "missing", "no critic", "no optimizer", "more", "normalizer", "no groups", "two groups", "fewer parameters"),
        *("fewer moments", "no step", "some of another shape"),
    ],
)
def test_what_the_networks_cannot_be_set_to_sends_a_run_to_the_checkpoint_before(
    run: Run, trainer: Trainer, saved: dict, damage: Callable[[dict], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    state, path = copy.deepcopy(saved), run.checkpoint(3)
    damage(state)
    checkpoint.save(path, state)
    assert training._go_on(trainer, run.newest_checkpoints()).iteration == 2
    (line,) = caplog.messages
    assert line.startswith(f"{path}: damaged: ") and said in line and "\n" not in line


def test_networks_of_another_page_are_no_damage(run: Run, trainer: Trainer, tmp_path: Path) -> None:
    other = training.start(load("go2_flat", [*SMALL, "ppo.critic_hidden_dims=[16]"]), tmp_path / "other")
    list(other.train(1))
    path = other.run.checkpoint(1)
    with pytest.raises(CheckpointError) as caught:
        trainer.resume(path, checkpoint.read(path))
    said = "its networks have other shapes than the page's: critic_state_dict.mlp.0.weight: shape (16, 59), the page's is (8, 59)"
    assert str(caught.value) == f"{path}: {said}" and not isinstance(caught.value, DamagedError)


def test_another_learner_passes_over_damage_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = training.start(load("go2_flat", [*SMALL, "train.learner=rsl_rl.algorithms:PPO"]), tmp_path / "run")
    list(theirs.train(2))
    state = checkpoint.read(theirs.run.checkpoint(2))
    swapped(state)
    checkpoint.save(theirs.run.checkpoint(2), state)
    assert training._go_on(theirs, theirs.run.newest_checkpoints()).iteration == 1
    assert "actor_state_dict.mlp.0.weight: shape" in caplog.messages[0]


# ---------------------------------------------------------------------------------------------------------- robots and sizes


def change_shard(run: Run, change: Callable[[dict], None]) -> Path:
    """Change the robots of the third checkpoint, and the manifest with them."""
    shard = run.checkpoints / "envs_000003_0_of_1.pt"
    content = torch.load(shard, weights_only=True)
    change(content)
    digest = checkpoint.save(shard, content)
    state = checkpoint.read(run.checkpoint(3))
    state["shards"][0]["sha256"] = digest
    checkpoint.save(run.checkpoint(3), state)
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == digest
    return shard


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (at("envs", value={}), "it holds no robots"),
        (at("envs", value=[]), "it holds no robots"),
        (lambda content: content.clear(), "it holds no robots"),
        (at("envs", "age", value=torch.full((4,), -1)), "envs.age: below 0, and it counts steps"),
        (at("envs", "age", value=torch.zeros(3)), "envs.age: 3 robots, and its checkpoint says 4"),
        (at("envs", "age", value=torch.tensor(3)), "envs.age: 0 robots, and its checkpoint says 4"),
        (at("envs", "age", value="old"), "envs.age: 0 robots, and its checkpoint says 4"),
        (at("envs", "reward", value=torch.zeros(4, 1).expand(4, 10**12)), "envs.reward: shape (4, 1000000000000), and the file"),
    ],
    ids=["empty", "list", "missing", "negative", "fewer", "0-d", "text", "expanded"],
)
def test_a_shard_that_cannot_be_sends_a_run_to_the_checkpoint_before(
    run: Run, trainer: Trainer, damage: Callable[[dict], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard = change_shard(run, damage)
    assert training._go_on(trainer, run.newest_checkpoints()).iteration == 2
    (line,) = caplog.messages
    assert line.startswith(f"{shard}: damaged: {said}") and "\n" not in line


@pytest.mark.parametrize("kind", [torch.float16, torch.int64, torch.complex64])
def test_robots_in_numbers_of_another_kind_are_not_converted(run: Run, trainer: Trainer, kind: torch.dtype) -> None:
    change_shard(run, at("envs", "physics.integration", value=lambda state: state.to(kind)))
    with pytest.raises(CheckpointError, match=r"does not fit the page: physics.integration differ"):
        trainer.resume(run.checkpoint(3), checkpoint.read(run.checkpoint(3)))


def test_of_an_optimizer_the_rate_alone_is_the_files(trainer: Trainer, saved: dict) -> None:
    state = copy.deepcopy(saved)
    changes = {"maximize": True, "amsgrad": True, "weight_decay": 1e3, "betas": (0.0, 0.0), "eps": 1.0, "lr": 2e-3}
    state[OPTIMIZER]["param_groups"][0].update(changes)
    trainer.learner.load_state_dict(state)
    (group,) = trainer.learner.state_dict()[OPTIMIZER]["param_groups"]
    (own,) = saved[OPTIMIZER]["param_groups"]
    assert group == own | {"lr": pytest.approx(2e-3)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoints", "no run and no checkpoint; give {0}, {0}/best or one of {0}/checkpoints/ (model_000003.pt, model_"),
        ("config.yaml", "no run and no checkpoint; give {0}, {0}/best"),
        ("checkpoints/model_000077.pt", "no such file; give {0}, {0}/best or one of {0}/checkpoints/ (model_000003.pt, model_"),
        ("bestt", "no such file; give {0}, {0}/best"),
    ],
)
def test_a_path_in_a_run_that_is_none_names_the_run(run: Run, name: str, said: str) -> None:
    with pytest.raises(RunError) as caught:
        runs.load(run.path / name)
    assert str(caught.value).startswith(f"{run.path / name}: {said.format(run.path)}")


@pytest.mark.parametrize("section", ["terminations", "train", "pool"])
def test_a_page_that_was_cut_off_is_not_filled_up_with_defaults(run: Run, section: str) -> None:
    page = run.path / "config.yaml"
    whole = page.read_text()
    for cut in (whole.partition(f"\n{section}:")[0] + "\n", whole[: whole.index(f"\n{section}:") - 3]):
        page.write_text(cut)
        with pytest.raises(
            RunError, match=rf"config.yaml: cut off in or after `\w+:`, `{section}:` is missing; put it back whole$"
        ):
            runs.load(run.path)
    page.write_bytes(whole.encode("utf-16"))
    with pytest.raises(UserError) as caught:
        runs.load(run.path)
    assert "an earlier embodied_rl" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "3", ""])
def test_an_evaluation_that_was_written_over(run: Run, text: str) -> None:
    pytest.importorskip("onnxruntime")
    (run.path / "evaluations").mkdir()
    file = run.path / "evaluations/model_000003.training_physics,_seed_1.json"
    file.write_text(text)
    with pytest.raises(RunError) as caught:
        runs.export_run(run.path)
    assert str(caught.value) == f"{file}: holds no figures of an evaluation; remove it, or evaluate again"


def test_a_robot_whose_state_is_not_finite_starts_fresh(run: Run, trainer: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    def poison(content: dict) -> None:
        content["envs"]["physics.integration"][1, 3] = NAN
        content["envs"]["obs.actor"][1, 0] = INF
        content["envs"]["commands.velocity.time_left"][0] = INF  # a command that is held for ever is none of it
        content["envs"]["reward"][:] = 7.0

    shard = change_shard(run, poison)
    fresh = training.start(trainer.page, run.path.parent / "fresh")
    fresh.resume(run.checkpoint(3), checkpoint.read(run.checkpoint(3)))
    assert caplog.messages == [
        f"{shard}: physics.integration of 1 robots is not finite; they start fresh",
        f"{shard}: obs.actor of 1 robots is not finite; they start fresh",
        f"{run.checkpoint(3)}: holds no state of 1 of 4 robots; they start fresh",
    ]
    now = fresh.collector.snapshot()
    assert now["reward"].tolist() == [7.0, 0.0, 7.0, 7.0] and bool(now["physics.integration"].isfinite().all())


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: archive({"archive/data/0": bytes(30_000_000)}, zipfile.ZIP_DEFLATED), "archive/data/0: compressed, which torch"),
        (lambda: archive({f"archive/data/{i}": b"" for i in range(20_001)}), "20001 parts, and at most 20000 are possible"),
        (lambda: archive({f"archive/data/{i}": b"" for i in range(66_000)}), "66000 parts, and at most 20000 are possible"),
        (
            lambda: archive({"archive/data.pkl": pickle.dumps({f"k{i}": 1 for i in range(300_000)}, protocol=2)}),
            "bytes, and at most 2097152 are possible",
        ),
    ],
    ids=["zipped small", "parts", "parts of zip64", "keys"],
)  # fmt: skip
def test_what_would_take_long_is_refused_by_its_header(tmp_path: Path, data: Callable[[], bytes], said: str) -> None:
    (tmp_path / "model.pt").write_bytes(data())
    started = time.perf_counter()
    with pytest.raises(DamagedError) as caught:
        checkpoint.read(tmp_path / "model.pt")
    assert said in str(caught.value) and time.perf_counter() - started < 5.0


# ------------------------------------------------------------------------------------------------ odd things in a run's folder


def test_odd_things_among_the_checkpoints_are_worked_around(run: Run) -> None:
    """Folders with the names of files, backups, links to nowhere: a run goes on, and nothing that a person made is lost."""
    folder = run.checkpoints
    for name in ("model_000009.pt", "model_000004.tmp", "envs_000004_0_of_1.tmp", "envs_000004_0_of_2.pt", "odd.tmp"):
        (folder / name).mkdir()
        (folder / name / "kept.txt").touch()
    for name in ("model_000005.pt~", "model_000005.pt.bak", ".model_000005.pt.swp", "model_x.pt", "#model_000005.pt#"):
        (folder / name).touch()
    (folder / "model_000008.pt").symlink_to(folder / "nowhere.pt")
    (run.path / "environment.txt").write_bytes(b"\x80\xff\x00" * 40)
    (run.path / "launchers.txt").write_bytes(b"\x80\xff\x00" * 40)
    (run.path / "config.tmp").mkdir()
    assert run.git_commit == "" and not run.begun_by(["one"])
    assert [path.name for path in run.newest_checkpoints()] == [f"model_00000{n}.pt" for n in (3, 2, 1)]
    assert runs.load(run.path).iteration == 3
    trainer = training.resume(str(run.path), "go2_flat", ["ppo.lam=0.9"])
    assert len(list(trainer.train(5))) == 2
    assert runs.load(run.path).iteration == 5
    assert len(list(run.checkpoints.rglob("kept.txt"))) == 5


def test_checkpoints_of_more_than_a_million_iterations_are_the_newest(run: Run) -> None:
    for iteration in (999_999, 1_000_000):
        run.checkpoint(iteration).touch()
    assert [run.checkpoint(n) for n in (1_000_000, 999_999)] == run.newest_checkpoints()[:2]


def test_a_folder_in_place_of_the_lock(run: Run) -> None:
    (run.path / "lock").mkdir()
    with pytest.raises(RunError) as caught:
        training.resume(str(run.path), "go2_flat")
    assert str(caught.value) == f"{run.path}/lock: cannot be written (Is a directory); move it away, or name another --run-dir"


def test_a_file_in_place_of_the_superseded(run: Run) -> None:
    aside = run.checkpoints / "superseded"
    aside.touch()
    trainer = training.resume(str(run.checkpoint(1)), "go2_flat")
    with pytest.raises(CheckpointError) as caught:
        next(trainer.train(5))
    line = str(caught.value)
    assert f"cannot be moved to {aside} (File exists); move one of them away" in line and "\n" not in line


def test_a_file_in_place_of_the_checkpoints(run: Run) -> None:
    run.checkpoints.rename(run.path / "before")
    run.checkpoints.touch()
    with pytest.raises(RunError, match="no checkpoint yet"):
        runs.load(run.path)
    trainer = training.resume("auto", "go2_flat", path=run.path)
    with pytest.raises(CheckpointError, match=r"checkpoints: no folder, and none can be made \(File exists\)"):
        next(trainer.train(5))


def test_a_page_that_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Run, "change", full)
    with pytest.raises(RunError, match=r"config.yaml: cannot be written \(No space left on device\); resume without the changes"):
        training.resume(str(run.path), "go2_flat", ["ppo.lam=0.9"])


def test_a_file_in_place_of_the_exported(run: Run) -> None:
    pytest.importorskip("onnxruntime")
    (run.path / "exported").touch()
    with pytest.raises(UserError) as caught:
        runs.export_run(run.path)
    line = str(caught.value)
    assert line.startswith(f"{run.path}/exported: not written (") and line.endswith("; name another --output")


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"[]", b"{}"])
def test_a_status_of_a_pool_that_is_none(run: Run, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "pool.json").write_bytes(data)
    assert main(["pool", "status", str(run.path)]) == 2
    assert (
        capsys.readouterr().err
        == f"{run.path}/pool.json: no status of a pool; remove it, and the next iteration writes another\n"
    )


def test_a_policy_says_that_observations_are_of_another_size(run: Run) -> None:
    with pytest.raises(UserError, match="the policy takes 47 observations, and 46 are given; play it on the page"):
        runs.load(run.path).policy(torch.zeros(2, 46))


@pytest.mark.parametrize("of", ["{}", "{}/best", "{}/checkpoints/model_000003.pt"])
@pytest.mark.parametrize("damaged", [False, True])
def test_every_verb_says_of_an_old_run_that_it_is_one_and_nothing_else(
    run: Run, of: str, damaged: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    page = run.path / "config.yaml"
    page.write_text(page.read_text().replace("\ntrain:", "\nrunner:"))
    if damaged:
        run.checkpoint(3).write_bytes(b"")
    name = of.format(run.path)
    line = f"{run.path}: an earlier embodied_rl trained it, its page has no `train:`; that version reads it"
    verbs = [["eval", name], ["play", name, "--video", "film.mp4"], ["export", name]]
    verbs += [["train", config, "--resume", name] for config in ("go2_flat", str(page))]
    for verb in verbs:
        assert main(verb) == 2, verb
        printed = capsys.readouterr()
        assert (printed.err, printed.out) == (f"{line}\n", ""), verb
    with pytest.raises(RunError) as caught:
        runs.load(name)
    assert str(caught.value) == line and not caplog.messages
