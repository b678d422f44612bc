from __future__ import annotations

import copy
import functools
import os
import shutil
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import training
from embodied_rl.config import Page, load
from embodied_rl.config.page import TrainSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.errors import UserError
from embodied_rl.learn import examiner
from embodied_rl.learn.checkpoint import CheckpointError
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.learn.guards import UnstableError
from embodied_rl.learn.policy import Player
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.ranks import meeting
from embodied_rl.learn.ranks.group import Group, fingerprint, join, launchers, reports
from embodied_rl.learn.ranks.share import env_ids, learning_rate_factor, num_envs_scope, rank_device
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.run import Run
from embodied_rl.learn.train import Trainer
from embodied_rl.mdp.score import score_of
from embodied_rl.vector_env import ActionSpace

Ranks = Callable[[int, Callable[[Group], Any]], list[Any]]
Fork = Callable[..., Any]

# ------------------------------------------------------------------------------------- the same mathematics as one process

STEPS, ENVS, ACTIONS = 8, 6, 4
SIZES = {"actor": 5, "critic": 7}
MIRRORS = {
    "actor": (torch.tensor([1, 0, 2, 4, 3]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])),
    "critic": (torch.tensor([0, 2, 1, 3, 5, 4, 6]), torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])),
    "actions": (torch.tensor([2, 3, 0, 1]), torch.tensor([-1.0, 1.0, -1.0, 1.0])),
}
EPOCHS, MINIBATCHES = 3, 4


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(page: PPOSettings, envs: int, group: Group | None = None) -> PPO:
    obs = {name: torch.zeros(envs, size) for name, size in SIZES.items()}
    mirrors = {name: (index, sign.to(torch.get_default_dtype())) for name, (index, sign) in MIRRORS.items()}
    return PPO(obs, ActionSpace(ACTIONS), page, mirrors, seed=3, train=TrainSettings(iterations=4), reduce=(group or Group()).sum)


@torch.no_grad()
def rollout(seed: int, driver: PPO) -> Rollout:
    """What all robots lived through: one falls, one times out, and three transitions of two robots mean nothing."""
    torch.manual_seed(seed)
    obs = {name: 2.0 + 3.0 * torch.randn(STEPS, ENVS, size) for name, size in SIZES.items()}
    output, std = driver.actor.mlp(obs["actor"]), torch.full((ACTIONS,), 0.8)
    terminated, truncated, valid = (torch.full((STEPS, ENVS), value) for value in (False, False, True))
    terminated[2, 1] = truncated[5, 3] = True
    for step, robot in ((0, 0), (4, 0), (3, 4)):
        valid[step, robot], terminated[step, robot] = False, True
    return Rollout(
        obs=obs,
        actions=output + std * torch.randn_like(output),
        output=output,
        std=std,
        rewards=torch.randn(STEPS, ENVS),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        final_obs={"critic": torch.randn(STEPS, ENVS, SIZES["critic"])},
        last_obs={name: torch.randn(ENVS, size) for name, size in SIZES.items()},
    )


def columns(whole: Rollout, robots: list[int]) -> Rollout:
    """The part of some robots."""
    each = lambda tensors: {name: value[:, robots] for name, value in tensors.items()}  # noqa: E731
    names = ("actions", "output", "rewards", "terminated", "truncated", "valid")
    return Rollout(
        obs=each(whole.obs),
        std=whole.std,
        final_obs=each(whole.final_obs),
        last_obs={name: value[robots] for name, value in whole.last_obs.items()},
        **{name: getattr(whole, name)[:, robots] for name in names},
    )


def watched(made: PPO, orders: Tensor) -> list[Tensor]:
    """The gradient and the sums of every minibatch of the update to come, which takes rows in the given orders."""
    buckets, apply = [], made.steps.apply
    made._orders = lambda iteration: orders  # pyright: ignore
    made.steps.apply = lambda size: (buckets.append(made.steps.bucket.clone()), apply(size))  # pyright: ignore
    return buckets


VARIANTS = [
    {"schedule": "constant"},
    {"schedule": "adaptive", "desired_kl": 0.02, "normalize_advantage": "minibatch"},
    {"schedule": "adaptive", "symmetry": "augmentation"},
    {"schedule": "linear", "symmetry": "mirror_loss", "mirror_loss_coeff": 0.7, "stop_kl": 0.5, "init_std": 0.8},
]


#: Of the six robots: each way to share them with one variant, each variant with the most unequal one.
SHARES = {"3+3": ([0, 1, 2], [3, 4, 5]), "2+4": ([0, 4], [1, 2, 3, 5]), "1+5": ([3], [0, 1, 2, 4, 5])}
CROSSED = [(share, VARIANTS[1]) for share in ("3+3", "2+4")] + [("1+5", changes) for changes in VARIANTS]


@pytest.mark.parametrize(
    ("share", "changes"), CROSSED, ids=lambda one: one if isinstance(one, str) else " ".join(map(str, one.values()))
)
def test_ranks_learn_what_one_process_learns_from_all_their_samples(
    ranks: Ranks, double_precision: None, share: str, changes: dict[str, Any]
) -> None:
    """Gradients, weights, normalizers, learning rate and metrics, over two iterations of 12 minibatches, to 1e-10."""
    shares = SHARES[share]
    sizes = {"actor_hidden_dims": (16, 8), "critic_hidden_dims": (12,), "entropy_coef": 0.02}
    page = PPOSettings.model_validate(sizes | {"num_learning_epochs": EPOCHS, "num_mini_batches": MINIBATCHES} | changes)
    torch.manual_seed(0)
    one = learner(page, ENVS)
    start = copy.deepcopy(one.state_dict())
    # each rank's minibatches, and the union of those of the same number
    own = [torch.stack([torch.randperm(STEPS * len(robots)) for _ in range(EPOCHS)]) for robots in shares]
    globally = [
        rows // len(robots) * ENVS + torch.tensor(robots)[rows % len(robots)] for rows, robots in zip(own, shares, strict=True)
    ]
    pieces = [rows.tensor_split(MINIBATCHES, dim=1) for rows in globally]
    union = torch.cat([torch.cat(minibatch, dim=1) for minibatch in zip(*pieces, strict=True)], dim=1)
    rollouts = [rollout(iteration, one) for iteration in range(2)]
    expected = watched(one, union)
    expected_metrics = [one.update(whole, iteration) for iteration, whole in enumerate(rollouts)]

    made = [learner(page, len(robots)) for robots in shares]  # one after the other: the seed is the process's

    def train(group: Group) -> tuple[list[Tensor], list[dict[str, float]], dict]:
        mine = made[group.rank]
        mine._reduce = mine.steps._reduce = group.sum
        mine.load_state_dict(copy.deepcopy(start))
        buckets = watched(mine, own[group.rank])
        metrics = [mine.update(parts[iteration][group.rank], iteration) for iteration in range(2)]
        return buckets, metrics, mine.state_dict()

    parts = [[columns(whole, robots) for robots in shares] for whole in rollouts]
    results = ranks(len(shares), train)
    for buckets, metrics, state in results:
        assert len(buckets) == len(expected) == 2 * EPOCHS * MINIBATCHES
        for bucket, theirs in zip(buckets, expected, strict=True):
            torch.testing.assert_close(bucket, theirs, rtol=1e-10, atol=1e-10)
        for model in ("actor", "critic"):
            for name, value in getattr(one, model).state_dict().items():
                torch.testing.assert_close(
                    state[f"{model}_state_dict"][name], value, rtol=1e-10, atol=1e-10, msg=f"{model}.{name}"
                )
        for mine, theirs in zip(metrics, expected_metrics, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert len({fingerprint(state) for _, _, state in results}) == 1
    assert not torch.equal(one.actor.state_dict()["mlp.0.weight"], start["actor_state_dict"]["mlp.0.weight"])


def test_a_rank_with_fewer_rows_than_minibatches_makes_as_many_steps(ranks: Ranks, double_precision: None) -> None:
    page = PPOSettings.model_validate({"actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_mini_batches": 16})
    torch.manual_seed(0)
    made = [learner(page, 1), learner(page, 5)]
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    parts = [columns(rollout(0, made[0]), robots) for robots in ([1], [0, 2, 3, 4, 5])]

    def train(group: Group) -> tuple[dict[str, float], dict]:
        made[group.rank]._reduce = made[group.rank].steps._reduce = group.sum
        return made[group.rank].update(parts[group.rank], 0), made[group.rank].state_dict()

    (metrics, state), (others_metrics, others_state) = ranks(2, train)
    assert page.num_mini_batches > STEPS
    assert metrics == others_metrics and metrics["Loss/skipped"] == 0.0
    assert fingerprint(state) == fingerprint(others_state)
    steps = {float(one["step"]) for one in state["optimizer_state_dict"]["state"].values()}
    assert steps == {float(page.num_learning_epochs * page.num_mini_batches)}


# ------------------------------------------------------------------------------------------------------- ranks of a trainer

SMALL = [
    *("env.compile=false", "env.num_envs=5", "env.episode_s=0.5", "physics.num_threads=1", "distributed.num_envs_scope=global"),
    *("train.steps=8", "ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "train.save_every=2"),
    *("ppo.num_learning_epochs=2", "ppo.num_mini_batches=2"),
]


#: Pages are read by `ast`, which threads may not do at the same time (CPython 3.11).
READING = threading.Lock()


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    make = training._make_parts

    def locked(*arguments: Any) -> Any:
        with READING:
            return make(*arguments)

    monkeypatch.setattr(training, "_make_parts", locked)


@functools.cache
def read(*overrides: str) -> Page:
    return load("go2_flat", [*SMALL, *overrides])


def page(*overrides: str) -> Page:
    with READING:
        return read(*overrides)


def trainer(group: Group, folder: Path, *overrides: str) -> Trainer:
    """A rank of a run in the folder, which goes on from its newest checkpoint."""
    settings = page(*overrides)
    run = Run(folder)
    group.lead(lambda: None if (folder / "config.yaml").exists() else Run.create(settings, folder).note_launchers())
    return training._go_on(training.make_trainer(settings, run, group), group.lead(run.newest_checkpoints))


def robots(made: Trainer) -> dict[int, str]:
    """A hash of the state of each robot, by global id."""
    state = made.collector.snapshot()
    return {of: fingerprint({name: value[row] for name, value in state.items()}) for row, of in enumerate(made.env_ids)}


def test_a_robot_lives_the_same_life_on_whatever_rank(ranks: Ranks, tmp_path: Path) -> None:
    def first_rollout(group: Group) -> tuple[range, Rollout]:
        made = trainer(group, tmp_path / f"of_{group.size}")
        return made.env_ids, made.collector.collect(made.learner.policy, 0)

    ((ids, whole),) = ranks(1, first_rollout)
    parts = ranks(2, first_rollout)
    assert ids == range(5) and [ids for ids, _ in parts] == [range(3), range(3, 5)]
    for ids, part in parts:
        for group in ("actor", "critic"):
            assert torch.equal(part.obs[group][0], whole.obs[group][0, ids.start : ids.stop])
            torch.testing.assert_close(part.obs[group][:4], whole.obs[group][:4, ids.start : ids.stop], rtol=1e-3, atol=1e-3)
        noise, expected = part.actions - part.output, whole.actions - whole.output
        torch.testing.assert_close(noise, expected[:, ids.start : ids.stop], rtol=1e-4, atol=1e-5)
    for name, total in whole.totals.items():
        assert sum(part.totals[name] for _, part in parts) == pytest.approx(total, rel=0.05, abs=0.05), name


def test_after_5_iterations_all_ranks_are_the_same_to_the_last_bit(ranks: Ranks, tmp_path: Path) -> None:
    def train(group: Group) -> tuple[str, list[dict[str, float]]]:
        made = trainer(group, tmp_path / "run")
        history = list(made.train(5))
        return fingerprint(made.learner.state_dict()), history

    (one, history), (other, others), (third, _) = ranks(3, train)
    assert one == other == third
    assert history == others  # the clock's too: it is rank 0's
    last = history[-1]
    assert last["Train/env_steps"] == 5 * 8 * 5
    assert {"Perf/fps_per_rank", "Perf/slowest_rank", "Perf/share_waiting", "Perf/rank_2_fps", "Perf/rank_0_waiting"} <= set(last)
    assert last["Perf/fps_per_rank"] == pytest.approx(last["Perf/total_fps"] / 3)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*_000005*"))
    assert names == [*(f"envs_000005_{rank}_of_3.pt" for rank in range(3)), "model_000005.pt"]


def test_metrics_are_sums_over_counts(ranks: Ranks, tmp_path: Path) -> None:
    """Of ranks with unequal numbers of episodes, the mean is that of all episodes."""
    totals = [{"episodes": 1.0, "reward/total": 10.0}, {"episodes": 4.0, "reward/total": 0.0}]

    def train(group: Group) -> dict[str, float]:
        made = trainer(group, tmp_path / "run")
        collect = made.collector.collect

        def collected(*arguments: Any) -> Rollout:
            found = collect(*arguments)
            found.totals |= totals[group.rank]
            return found

        made.collector.collect = collected  # pyright: ignore[reportAttributeAccessIssue]
        (metrics,) = made.train(1)
        return metrics

    for metrics in ranks(2, train):
        assert metrics["Train/mean_reward"] == 2.0


def test_any_number_of_ranks_goes_on_from_what_two_saved(ranks: Ranks, tmp_path: Path) -> None:
    def save(group: Group) -> tuple[str, dict[int, str], dict[str, Any]]:
        made = trainer(group, tmp_path / "run")
        list(made.train(3))
        return fingerprint(made.learner.state_dict()), robots(made), made.metrics.state_dict()

    (learned, some, counted), (_, others, _) = ranks(2, save)

    def go_on(group: Group) -> tuple[str, dict[int, str], int, dict[str, Any]]:
        made = trainer(group, tmp_path / "run")
        return fingerprint(made.learner.state_dict()), robots(made), made.iteration, made.metrics.state_dict()

    for after in (1, 3):
        found: dict[int, str] = {}
        for state, mine, iteration, metrics in ranks(after, go_on):
            assert (state, iteration, metrics) == (learned, 3, counted) and metrics["env_steps"] == 3 * 8 * 5
            found |= mine
        assert found == some | others


def test_two_halves_are_the_whole(ranks: Ranks, tmp_path: Path) -> None:
    def train(folder: str, iterations: int) -> Callable[[Group], tuple[str, dict[int, str]]]:
        def run(group: Group) -> tuple[str, dict[int, str]]:
            made = trainer(group, tmp_path / folder)
            list(made.train(iterations))
            return fingerprint(made.learner.state_dict()), robots(made)

        return run

    whole = ranks(2, train("whole", 4))
    ranks(2, train("halves", 2))
    assert ranks(2, train("halves", 4)) == whole


def test_a_shard_that_is_gone_costs_its_robots_and_no_more(
    ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def save(group: Group) -> dict[int, str]:
        made = trainer(group, tmp_path / "run")
        list(made.train(2))
        return robots(made)

    saved = ranks(2, save)
    (tmp_path / "run" / "checkpoints" / "envs_000002_1_of_2.pt").unlink()

    def go_on(group: Group) -> tuple[dict[int, str], int]:
        made = trainer(group, tmp_path / "run")
        found = robots(made)
        list(made.train(3))
        return found, made.iteration

    (mine, iteration), (others, _) = ranks(2, go_on)
    assert iteration == 3 and mine == saved[0]
    assert all(others[of] != saved[1][of] for of in others)
    assert caplog.messages == [f"{tmp_path}/run/checkpoints/model_000002.pt: holds no state of 2 of 5 robots; they start fresh"]


def test_a_damaged_shard_sends_all_ranks_to_the_checkpoint_before(
    ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranks(2, lambda group: list(trainer(group, tmp_path / "run").train(3)))
    shard = tmp_path / "run" / "checkpoints" / "envs_000003_1_of_2.pt"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x10
    shard.write_bytes(data)
    assert ranks(2, lambda group: trainer(group, tmp_path / "run").iteration) == [2, 2]
    assert caplog.messages[0].startswith(f"rank 1: {shard}: damaged (another hash than model_000003.pt says); use an earlier")


def test_ranks_that_do_not_see_the_run_directory_send_their_robots(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone has the disk; the others name the same directory and have nothing there."""
    here, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def folder(group: Group) -> Path:
        return here if group.rank == 0 else elsewhere

    def save(group: Group) -> tuple[dict[int, str], bool]:
        made = trainer(group, folder(group))
        list(made.train(3))
        return robots(made), made.checkpoints._visible

    saved = ranks(3, save)
    assert not any(visible for _, visible in saved)
    assert len(list((here / "checkpoints").glob("envs_000003_*_of_3.pt"))) == 3
    assert not elsewhere.exists()

    def go_on(group: Group) -> tuple[dict[int, str], int]:
        made = trainer(group, folder(group))
        return robots(made), made.iteration

    found = ranks(2, go_on)
    assert [iteration for _, iteration in found] == [3, 3]
    merged = lambda parts: {of: state for part, _ in parts for of, state in part.items()}  # noqa: E731
    assert merged(found) == merged(saved)


def test_one_rank_that_is_asked_to_stop_stops_all(ranks: Ranks, tmp_path: Path) -> None:
    def train(group: Group) -> tuple[int, bool]:
        made = trainer(group, tmp_path / "run")
        for _ in made.train(10):
            if group.rank == 1 and made.iteration == 3:
                made.stop()
        return made.iteration, made.stopped

    assert ranks(2, train) == [(3, True), (3, True)]
    assert (tmp_path / "run" / "checkpoints" / "model_000003.pt").exists()


def test_ranks_pass_together_by_what_the_first_measures(ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(policy: Player, moved: Any, *, seed: int, reference: bool) -> dict[str, float]:
        asked.append((threading.get_ident(), seed, reference))
        return dict.fromkeys(("fall_rate", "lin_vel_error", "ang_vel_error", "shortfall", "heading_drift"), 0.0)

    def judging(page: Page) -> Any:
        with READING:
            return score_of(page)

    monkeypatch.setattr(training, "Evaluations", lambda page, skip: measure)
    monkeypatch.setattr(examiner, "score_of", judging)

    def train(group: Group) -> tuple[Any, ...]:
        made = trainer(group, tmp_path / "run", "train.stop_when=passed", "train.evaluate_every=1")
        history = [metrics["Score/margin"] for metrics in made.train(10)]
        return made.iteration, made.stopped, made.passed, history

    first, second = ranks(2, train)
    assert first == second and first[:2] == (2, False) and first[2].env_steps == 40 and first[3] == [1.0, 1.0]
    assert len({who for who, *_ in asked}) == 1
    assert [of for _, *of in asked] == [[seed, ref] for seed in (SEEDS[0], SEEDS[0], SEEDS[1]) for ref in (False, True)]
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert saved == [
        *(f"envs_00000{of}_{rank}_of_2.pt" for of in (1, 2) for rank in (0, 1)),
        *("model_000001.pt", "model_000002.pt"),
    ]


def test_robots_that_blow_up_on_one_rank_end_all_with_the_same_line(ranks: Ranks, tmp_path: Path) -> None:
    def train(group: Group) -> str:
        made = trainer(group, tmp_path / "run", "physics.max_unstable=0.3")
        with pytest.raises(UnstableError) as caught:
            for _ in made.train(3):
                if group.rank == 1:
                    physics = made.collector._env.physics  # pyright: ignore[reportAttributeAccessIssue]
                    physics.write(torch.ones(2, dtype=torch.bool), qvel=torch.full_like(physics.qvel, float("nan")))
        return str(caught.value)

    one, other = ranks(2, train)
    assert one == other and one.startswith("2 of 5 robots blew up in iteration 2, more than physics.max_unstable (30%)")
    # by global id: rank 1 has the last two
    dumps = sorted(path.name for path in (tmp_path / "run" / "unstable").iterdir())
    assert dumps == ["iteration_000002_row_3.npz", "iteration_000002_row_4.npz"]


def test_no_room_for_one_ranks_shard_costs_one_checkpoint(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync

    def full(handle: int) -> None:
        if "envs_000004_1_of_2" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert ranks(2, lambda group: [len(list(made.train(5))) for made in [trainer(group, tmp_path / "run")]]) == [[5], [5]]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("model_*"))
    assert names == ["model_000002.pt", "model_000005.pt"]
    assert not list((tmp_path / "run" / "checkpoints").glob("*_000004*"))
    assert len({message for message in caplog.messages}) == 1
    assert "not written (No space left on device); the run goes on, and its last checkpoint is that of iteration 2" in caplog.text


GROW = """
from embodied_rl.mdp.term import curriculum

@curriculum()
def grow(params, statistics, iteration, *, per_step: float):
    params["commands.velocity.lin_vel_x"][1] += per_step * statistics.get("steps", 0.0)
"""


def test_curricula_go_by_the_robots_of_all_ranks_and_go_on_with_any_number(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "grow.py").write_text(GROW)
    own = (f"terms=[{tmp_path / 'grow.py'}]", "curriculum.grow={per_step: 0.01}")

    def train(iterations: int, folder: str) -> Callable[[Group], list[list[float]]]:
        def run(group: Group) -> list[list[float]]:
            made, seen = trainer(group, tmp_path / folder, *own), []
            for _ in made.train(iterations):
                params = made.collector._env.params  # pyright: ignore[reportAttributeAccessIssue]
                seen.append(params["commands.velocity.lin_vel_x"].tolist())
            return seen

        return run

    one, other = ranks(2, train(3, "run"))
    assert one == other
    for after in (1, 3):
        shutil.copytree(tmp_path / "run", tmp_path / f"of_{after}")
        for seen in ranks(after, train(4, f"of_{after}")):
            # 8 steps of 5 robots an iteration
            assert [pair[1] for pair in (*one, *seen)] == pytest.approx([1.0 + 0.4 * iteration for iteration in range(4)])


def test_a_curriculum_that_goes_another_way_on_one_rank_is_named(ranks: Ranks, tmp_path: Path) -> None:
    ramp = "{term: linear, parameter: rewards.pose.weight, start: [0.0], end: [1.0], iterations: [0, 9]}"

    def train(group: Group) -> str:
        made = trainer(group, tmp_path / "run", "curriculum.gate=null", f"curriculum.ramp={ramp}")
        with pytest.raises(UnstableError) as caught:
            for _ in made.train(4):
                if group.rank == 1:
                    made.curricula._terms[0].params["end"].fill_(0.5)
        return str(caught.value)

    (line,) = set(ranks(3, train))
    assert line.startswith("after iteration 2 the curricula of rank 1 differ from the others': one of them draws random numbers")


def test_a_rank_whose_networks_went_their_own_way_is_named_and_nothing_is_saved(ranks: Ranks, tmp_path: Path) -> None:
    def train(group: Group) -> str:
        made = trainer(group, tmp_path / "run")
        with pytest.raises(UnstableError) as caught:
            for _ in made.train(4):
                if group.rank == 2 and made.iteration == 3:  # one bit, after the checkpoint of iteration 2
                    next(made.learner.networks["actor"].parameters()).data.flatten().view(torch.int32)[0] ^= 1
        return str(caught.value)

    (line,) = set(ranks(3, train))
    assert line.startswith("after iteration 4 the networks of rank 2 differ from the others'")
    assert line.endswith("go on from the last checkpoint, of iteration 2")
    assert not list((tmp_path / "run" / "checkpoints").glob("*_000004*"))


def test_the_mistake_of_one_rank_is_everyones(ranks: Ranks) -> None:
    def build(group: Group) -> str:
        def part() -> int:
            if group.rank == 1:
                raise UserError("no such device")
            return 1

        with pytest.raises(UserError) as caught:
            group.together(part)
        assert group.together(lambda: group.rank) == group.rank
        return str(caught.value)

    assert ranks(3, build) == ["rank 1: no such device"] * 3

    def led(group: Group) -> type:
        with pytest.raises(CheckpointError, match=r"^none$"):
            group.lead(lambda: (_ for _ in ()).throw(CheckpointError("none")))
        return group.lead(lambda: type(group))

    assert len(set(ranks(3, led))) == 1


# ------------------------------------------------------------------------------------------------------ who is who, and where


def test_robots_are_shared_out_without_gaps() -> None:
    assert [env_ids(5, "global", rank, 3) for rank in range(3)] == [range(2), range(2, 4), range(4, 5)]
    assert [env_ids(5, "per_rank", rank, 3) for rank in range(3)] == [range(5), range(5, 10), range(10, 15)]
    with pytest.raises(UserError, match=r"^env.num_envs: 5 for 6 ranks: .*raise it, or start fewer$"):
        env_ids(5, "global", 0, 6)


def test_whose_robots_they_are_follows_from_where_they_run() -> None:
    cpu, cuda, auto = torch.device("cpu"), torch.device("cuda:1"), "distributed.num_envs_scope=auto"
    assert num_envs_scope(page(auto), cpu) == "global"
    assert num_envs_scope(page(auto), cuda) == "per_rank"
    assert [num_envs_scope(page(f"distributed.num_envs_scope={scope}"), cpu) for scope in ("per_rank", "global")] == [
        "per_rank",
        "global",
    ]
    # what a rank makes of the page
    second = Group()
    second.rank, second.size = second.local_rank, second.local_size = 1, 2
    given = "distributed.learning_rate_rule=linear", "ppo.schedule=linear", "ppo.learning_rate=1e-3"
    ppo = training._own_page(page(*given, "ppo.final_learning_rate=2e-4"), second, "per_rank").ppo
    assert (ppo.learning_rate, ppo.final_learning_rate) == (2e-3, 4e-4)


def test_the_learning_rate_follows_the_batch_if_it_is_told_to() -> None:
    assert [learning_rate_factor(rule, "per_rank", 4) for rule in ("none", "sqrt", "linear")] == [1.0, 2.0, 4.0]
    assert [learning_rate_factor(rule, "global", 4) for rule in ("none", "sqrt", "linear")] == [1.0, 1.0, 1.0]


def test_a_rank_alone_on_its_machine_has_the_gpu_that_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes no `cuda` without a number for a device to be set."""
    given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    joined = join(page("distributed.backend=gloo").distributed, lambda local_rank: torch.device("cuda"))
    assert (joined.rank, joined.size) == (0, 1)
    joined.close()


def test_every_rank_of_a_machine_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, cuda = page().distributed, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert rank_device(torch.device("cuda:1"), 0, settings) == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert rank_device(torch.device("cpu"), 2, settings) == torch.device("cpu")
    assert rank_device(cuda, 1, settings) == torch.device("cuda:1")
    with pytest.raises(UserError, match="this machine has 2 GPUs for 3 ranks; start torchrun with --nproc-per-node 2"):
        rank_device(cuda, 2, settings)
    with pytest.raises(UserError, match="cuda:0: one GPU for several ranks; take cuda"):
        rank_device(torch.device("cuda:0"), 0, settings)
    assert rank_device(cuda, 2, page("distributed.backend=gloo").distributed) == torch.device("cuda:0")
    with pytest.raises(UserError, match=r"distributed.backend: nccl: the networks are on the CPU"):
        meeting.backend_of(page("distributed.backend=nccl").distributed, torch.device("cpu"))


def test_without_torchrun_there_is_one_process_and_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    group = join(page().distributed, lambda local_rank: pytest.fail("not asked for"))
    assert type(group) is Group and (group.rank, group.size, group.waited()) == (0, 1, 0.0)
    assert group.gather("x") == ["x"] and group.table([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert launchers(group) == [] and reports(UserError("x"))


def test_stock_rsl_rl_learns_in_one_process_only(ranks: Ranks, tmp_path: Path) -> None:
    def build(group: Group) -> str:
        with pytest.raises(UserError) as caught:
            trainer(group, tmp_path / "run", "train.learner=rsl_rl.algorithms:PPO")
        return str(caught.value)

    (line,) = set(ranks(2, build))
    assert line == "train.learner: rsl_rl.algorithms:PPO: it trains in one process; leave the key out, or torchrun"


def test_an_attempt_does_not_meet_the_dead_of_the_one_before() -> None:
    """torchrun's store outlives a restart, with what the dead have written."""
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

    store, names = HashStore(), []

    def attempt(delay: float) -> None:
        found: dict[int, str] = {}

        def rank(number: int) -> None:
            time.sleep(delay * number)  # rank 0 is there first, and finds its predecessor's companions
            found[number] = meeting.name_this_attempt(store, number, 3, 20.0)

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3 and len(set(found.values())) == 1
        names.extend(set(found.values()))

    for delay in (0.0, 0.1, 0.1):
        attempt(delay)
    assert len(set(names)) == 3
    with pytest.raises(RuntimeError, match=r"^rank 1, 2 did not come within 0 s$"):
        meeting.name_this_attempt(store, 0, 3, 0.2)


# ------------------------------------------------------------------------------------------------------------ real processes

#: What a rank does before its code.
JOIN = """
import os, signal, sys, time
import torch
from embodied_rl.config.page import DistributedSettings
from embodied_rl.learn.ranks.group import join, reports
group = join(DistributedSettings(timeout_s={patience!r}), lambda local_rank: torch.device("cpu"))
group.settle()
"""
STORES: list[Any] = []


@pytest.fixture
def processes(fork: Fork) -> Callable[..., list[Any]]:
    """`processes(code)`: ranks that run it, connected by gloo; `apart`, each takes itself for alone on its machine."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    def start(code: str, patience: float = 60.0, size: int = 2, *, apart: bool = False) -> list[Any]:
        # as torchrun does, this process keeps the store
        STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        settings = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(STORES[-1].port)}
        if apart:
            settings |= {"LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
        own = [{"RANK": str(rank), "LOCAL_RANK": "0" if apart else str(rank)} for rank in range(size)]
        text = JOIN.format(patience=patience) + textwrap.dedent(code)
        return [fork(text, settings | one) for one in own]

    return start


def outcome(rank: Any) -> tuple[int, str]:
    """Exit code and errors of a rank, without what gloo itself prints."""
    code, _, errors = rank.outcome()
    return code, "\n".join(line for line in errors.splitlines() if "/gloo/" not in line and "ProcessGroup" not in line)


@pytest.mark.parametrize("apart", [False, True])
def test_processes_add_up_exchange_and_measure_how_long_they_wait(processes: Any, *, apart: bool) -> None:
    code = """
    total = torch.arange(5.0) * (group.rank + 1)
    group.sum(total)
    for size in (1, 70_000, 3, 200_000):  # more than there is room for, and less again
        for repetition in range(20):
            part = torch.full((size,), 10.0 * repetition + group.rank, dtype=torch.float64)
            group.sum(part)
            assert bool((part == 20.0 * repetition + 1.0).all()), (size, repetition)
    part = torch.ones(3, 4)[:, ::2]
    group.sum(part)
    assert bool((part == 2.0).all())
    group.waited()
    if group.rank == 1:
        time.sleep(0.5)
        group.send({"x": torch.ones(3)}, 0)
    else:
        assert group.receive(1)["x"].sum() == 3.0
    assert total.tolist() == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert group.gather(group.rank) == [0, 1] and group.table([1.0, group.rank]).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert group.broadcast("a" if group.rank == 0 else "b") == "a"
    assert (group.waited() > 0.4) == (group.rank == 0) and group.waited() == 0.0
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
    said = [reports(ValueError(text)) for text in ("same", f"of {group.rank}")]
    print(said)
    assert group.table([float(said[0])]).sum() == 1.0 and said[1]
    group.close()
    """
    assert [outcome(rank) for rank in processes(code, apart=apart)] == [(0, "")] * 2
    assert not list(Path("/dev/shm").glob("embodied_rl_*"))


def test_a_rank_that_hangs_is_found_and_named(processes: Any) -> None:
    """Rank 1 sleeps while the others wait in the third collective; one of them says so, and all of them end."""
    started = processes(
        """
        for _ in range(2):
            group.sum(torch.ones(4))
        if group.rank == 1:
            time.sleep(600)
        group.sum(torch.ones(4))
        """,
        patience=1.0,
        size=3,
    )
    try:
        (code, errors), (other, others) = outcome(started[0]), outcome(started[2])
        assert code == other == 1
        (line,) = (errors + others).splitlines()
        pid = started[1].process.pid
        assert line.startswith(
            f"rank 1 ({os.uname().nodename}, pid {pid}) hangs: not at collective 3 yet, where others wait for 1 s"
        )
    finally:
        started[1].process.kill()
        started[1].process.join()


@pytest.mark.parametrize("apart", [False, True])
def test_a_rank_that_dies_ends_the_others_with_a_line(processes: Any, *, apart: bool) -> None:
    started = processes(
        """
        from embodied_rl import cli
        from embodied_rl.errors import UserError
        group.sum(torch.ones(4))
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            group.sum(torch.ones(4))
        except UserError as error:
            cli._tell(error)
            sys.exit(2)
        """,
        apart=apart,
    )
    (code, errors), (killed, _) = [outcome(rank) for rank in started]
    assert (code, killed) == (2, -9)
    assert errors.startswith("the connection to another rank broke off: ") and errors.endswith("; torchrun says which one failed")
    assert ("Connection" if apart else "rank 1 is gone") in errors and ".cc" not in errors
    assert "\n" not in errors
