"""IMPALA against its paper's sums, written out by hand in double precision."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import training
from embodied_rl.config import ConfigError, load
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.errors import UserError
from embodied_rl.inspection import inspect
from embodied_rl.learn import gradient_steps, impala
from embodied_rl.learn.actor_critic import ActorCritic
from embodied_rl.learn.advantages import vtrace
from embodied_rl.learn.impala import IMPALA
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.stale import compare
from embodied_rl.vector_env import ActionSpace

STEPS, ENVS, ACTIONS = 7, 6, 4
SIZES = {"actor": 5, "critic": 3}
MIRRORS = {
    "actor": (torch.tensor([1, 0, 2, 4, 3]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])),
    "critic": (torch.tensor([0, 2, 1]), torch.tensor([-1.0, 1.0, 1.0])),
    "actions": (torch.tensor([2, 3, 0, 1]), torch.tensor([-1.0, 1.0, -1.0, 1.0])),
}
GAMMA, LAMBDA, VALUE, ENTROPY = 0.9, 0.8, 0.6, 0.02
BASE = {"actor_hidden_dims": (8,), "critic_hidden_dims": (6,), "gamma": GAMMA, "lam": LAMBDA, "value_loss_coef": VALUE}
BASE |= {"entropy_coef": ENTROPY, "num_mini_batches": 1, "schedule": "constant"}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(
    kind: type[ActorCritic] = IMPALA, *, discrete: bool = False, envs: int = ENVS, group: Group | None = None, **changes: Any
) -> Any:
    torch.manual_seed(3)
    obs = {name: torch.zeros(envs, size) for name, size in SIZES.items()}
    page, mirrors = PPOSettings.model_validate(BASE | changes), {n: (i, s.double()) for n, (i, s) in MIRRORS.items()}
    made = kind(obs, ActionSpace(ACTIONS, discrete), page, mirrors, 3, reduce=(group or Group()).sum)
    for model, name in ((made.actor, "actor"), (made.critic, "critic")):
        if page.obs_normalization:
            model.obs_normalizer.update(2.0 + 3.0 * torch.randn(50, SIZES[name]))  # pyright: ignore
    return made


@torch.no_grad()
def stale(made: Any, seed: int = 0, apart: float = 0.3) -> Rollout:
    """What a policy did that says something else; robot 1 falls, robot 2 times out, two transitions of robot 4 mean nothing."""
    torch.manual_seed(seed)
    normal = lambda *shape: 2.0 + 3.0 * torch.randn(*shape)  # noqa: E731
    obs = {name: normal(STEPS, ENVS, size) for name, size in SIZES.items()}
    ends: dict[str, Any] = {name: torch.zeros(STEPS, ENVS).bool() for name in ("terminated", "truncated")}
    ends["terminated"][2, 1] = ends["truncated"][3, 2] = ends["truncated"][6, 5] = True
    valid = torch.ones(STEPS, ENVS).bool()
    valid[[3, 6], 4], ends["terminated"][[3, 6], 4] = False, True
    policy = made.policy
    memory = tuple(0.5 * torch.randn_like(part) for part in policy.start(ENVS, "cpu"))
    output = policy.outputs(obs["actor"], ends["terminated"] | ends["truncated"], memory)
    output = output + apart * torch.randn_like(output)
    std = None if policy.std is None else policy.std + 0.1
    mu = policy.distribution(output, std)
    noise = torch.randn(STEPS, ENVS, ACTIONS) if policy.std is not None else torch.rand(STEPS, ENVS, ACTIONS)
    actions = mu.sample(noise)
    return Rollout(
        obs=obs,
        actions=actions,
        output=output,
        std=std,
        rewards=torch.randn(STEPS, ENVS),
        **ends,
        valid=valid,
        final_obs={"critic": normal(STEPS, ENVS, SIZES["critic"])},
        last_obs={name: normal(ENVS, size) for name, size in SIZES.items()},
        memory=memory,
        log_prob=mu.log_prob(actions),
        staleness=torch.ones(ENVS),
    )


def reflected(name: str, values: Tensor) -> Tensor:
    index, sign = MIRRORS[name]
    return values[..., index] * sign


def mirrored(rollout: Rollout) -> Rollout:
    """The rollout as it looks in a mirror; what was as likely is as likely there."""
    each = lambda obs: {name: reflected(name, value) for name, value in obs.items()}  # noqa: E731
    obs, last, final = map(each, (rollout.obs, rollout.last_obs, rollout.final_obs))
    return dataclasses.replace(rollout, obs=obs, last_obs=last, final_obs=final, actions=reflected("actions", rollout.actions))


def by_hand(made: Any, rollout: Rollout) -> Tensor:
    """The sum over valid transitions of L, of the first fragment to the last robot, as the paper writes it.

    v_s = V(x_s) + sum_{t >= s} gamma^(t - s) (prod_{s <= i < t} c_i) rho_t (r_t + gamma V(x_t+1) - V(x_t)), until the end of the
    episode or the first transition that means nothing; gradients flow through log pi, V(x_s) and H alone.
    """
    assert rollout.log_prob is not None
    done = rollout.terminated | rollout.truncated
    output = made.policy.outputs(rollout.obs["actor"], done, rollout.memory)
    pi = made.policy.distribution(output)
    log_pi, entropy = pi.log_prob(rollout.actions), pi.entropy()
    value = lambda obs: made.critic.mlp(made.critic.obs_normalizer(obs))[..., 0]  # noqa: E731
    v = value(rollout.obs["critic"])
    held = v.detach()
    last, final = value(rollout.last_obs["critic"]).detach(), value(rollout.final_obs["critic"]).detach()
    rho = (log_pi - rollout.log_prob).exp().clamp(max=1.0).detach()
    total = torch.zeros(())
    for robot in range(ENVS):
        after: list[float] = [0.0] * (STEPS + 1)  # of each step: V of the state that it led to
        for t in range(STEPS):
            following = last[robot] if t == STEPS - 1 else held[t + 1, robot]
            after[t] = float(following)
            if done[t, robot]:
                after[t] = float(final[t, robot]) if rollout.truncated[t, robot] else 0.0
        delta = lambda t, robot=robot, after=after: (  # noqa: E731
            float(rho[t, robot]) * (float(rollout.rewards[t, robot]) + GAMMA * after[t] - float(held[t, robot]))
        )

        def target(s: int, robot: int = robot, delta: Callable[[int], float] = delta) -> float:
            found, factor = float(held[s, robot]), 1.0
            for t in range(s, STEPS):
                if not rollout.valid[t, robot]:
                    break
                found += factor * delta(t)
                if done[t, robot]:
                    break
                factor *= GAMMA * LAMBDA * float(rho[t, robot])
            return found

        for s in range(STEPS):
            if not rollout.valid[s, robot]:
                continue
            goes_on = not done[s, robot] and s + 1 < STEPS
            beyond = LAMBDA * (target(s + 1) - float(held[s + 1, robot])) if goes_on else 0.0
            advantage = float(rollout.rewards[s, robot]) + GAMMA * (after[s] + beyond) - float(held[s, robot])
            total = total - float(rho[s, robot]) * advantage * log_pi[s, robot]
            total = total + VALUE * (target(s) - v[s, robot]).square() - ENTROPY * entropy[s, robot]
    return total


def gradient(made: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """The loss and its gradient over all trajectories, as the learner finds them, summed."""
    made._prepare(rollout, compare(rollout, made.policy))
    everything = torch.arange(rollout.rewards.shape[1])
    loss, _ = made._loss(everything)
    made.steps.rows[len(everything)] = everything
    made.steps.gradients(len(everything))
    return loss.detach(), made.steps._gradient.clone()


VARIANTS = [{}, {"discrete": True}, {"rnn_type": "gru", "rnn_hidden_dim": 4}, {"rnn_type": "lstm", "rnn_hidden_dim": 4}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_loss_and_its_gradient_are_the_papers(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_steps, "_PART", 2 * STEPS)  # two robots at a time: a part is counted in transitions
    made = learner(**changes)
    rollout = stale(made)
    ratio = compare(rollout, made.policy).ratio
    assert float((ratio > 1.0).double().mean()) > 0.2 and float((ratio < 0.9).double().mean()) > 0.2
    loss, found = gradient(made, rollout)
    expected = by_hand(made, rollout)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(expected, made.steps.parameters)])
    torch.testing.assert_close(found, slopes, rtol=1e-10, atol=1e-12)
    assert float(made.steps.sums[0]) == STEPS * ENVS - 2


def test_with_augmentation_it_is_the_mean_of_the_trajectory_and_its_image() -> None:
    made = learner(symmetry="augmentation", entropy_coef=0.0)
    rollout = stale(made)
    _, found = gradient(made, rollout)
    halves = [by_hand(made, one) + ENTROPY * entropy(made, one) for one in (rollout, mirrored(rollout))]
    slopes = torch.autograd.grad((halves[0] + halves[1]) / 2.0, made.steps.parameters)
    torch.testing.assert_close(found, torch.cat([slope.flatten() for slope in slopes]), rtol=1e-10, atol=1e-12)


def entropy(made: Any, rollout: Rollout) -> Tensor:
    pi, _ = made.policy(rollout.obs["actor"].flatten(0, 1))
    return (pi.entropy() * rollout.valid.flatten()).sum()


def test_vtrace_is_the_papers_sum() -> None:
    """v_s = V_s + sum_t gamma^(t - s) (prod c) rho_t delta_t, each end and each step by itself."""
    torch.manual_seed(0)
    rewards, values, ratio = torch.randn(9, 4), torch.randn(9, 4), 2.0 * torch.rand(9, 4)
    done, last = torch.rand(9, 4) < 0.2, torch.randn(4)
    _, targets = vtrace(rewards, values, done, last, ratio, GAMMA, LAMBDA)
    rho, following = ratio.clamp(max=1.0), torch.cat((values[1:], last[None]))
    for s in range(9):
        for robot in range(4):
            found, factor = values[s, robot], 1.0
            for t in range(s, 9):
                delta = rewards[t, robot] + GAMMA * following[t, robot] * ~done[t, robot] - values[t, robot]
                found = found + factor * rho[t, robot] * delta
                if done[t, robot]:
                    break
                factor = factor * GAMMA * LAMBDA * rho[t, robot]
            torch.testing.assert_close(targets[s, robot], found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [PPO, IMPALA])
def test_edges_of_a_fragment(kind: type[ActorCritic], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward on the last step alone is in the targets; at a time limit they are r + gamma V(final observation)."""
    made = learner(kind, value_loss_coef=1.0)
    rollout = stale(made)
    rollout.rewards.zero_()
    rollout.valid[:], rollout.terminated[:], rollout.truncated[:] = True, False, False
    rollout.truncated[3, 2] = True
    seen: list[Tensor] = []

    def targets(rewards: Tensor) -> Tensor:
        rollout.rewards = rewards
        if kind is PPO:
            made._prepare(rollout, compare(rollout, made.policy))
            return made._batch.columns(made._batch.table)["return"].clone()
        seen.clear()
        monkeypatch.setattr(impala, "vtrace", lambda *given: seen.append(vtrace(*given)[1]) or vtrace(*given))
        gradient(made, rollout)
        return seen[0]

    without, on_the_last = targets(torch.zeros(STEPS, ENVS)), torch.zeros(STEPS, ENVS)
    on_the_last[-1] = 10.0
    moved = targets(on_the_last) - without
    rho = compare(rollout, made.policy).ratio.clamp(max=1.0)
    factor = torch.ones(ENVS)
    for step in reversed(range(STEPS)):
        torch.testing.assert_close(moved[step], 10.0 * rho[step] * factor, rtol=0.0, atol=1e-6)
        # what came before the time limit is another episode's
        factor = factor * GAMMA * LAMBDA * rho[step] * ~rollout.truncated[step - 1]
    value = lambda obs: made.critic.mlp(made.critic.obs_normalizer(obs[None]))[0, 0].detach()  # noqa: E731
    now, then = value(rollout.obs["critic"][3, 2]), value(rollout.final_obs["critic"][3, 2])
    rewards = torch.zeros(STEPS, ENVS)
    rewards[3, 2] = 2.0
    expected = now + rho[3, 2] * (2.0 + GAMMA * then - now)
    torch.testing.assert_close(targets(rewards)[3, 2], expected, rtol=0.0, atol=1e-6)


def test_what_acted_just_now_is_learned_from_as_it_is() -> None:
    """Without staleness mu is the policy itself: what was noted beside it changes nothing."""
    ends = []
    for noted in (True, False):
        made = learner(num_mini_batches=3)
        rollout = stale(made, apart=0.0)
        rollout.std = made.policy.std.detach().clone()
        rollout.log_prob = made.policy.distribution(rollout.output, rollout.std).log_prob(rollout.actions).detach()
        rollout.staleness = torch.zeros(ENVS) if noted else None
        rollout.log_prob = rollout.log_prob if noted else None
        metrics = made.update(rollout, 0)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in made.steps.parameters]))
        assert ("policy_mean/importance" in rollout.totals) == noted and metrics["Loss/skipped"] == 0.0
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)


def test_each_minibatch_is_of_whole_trajectories_with_the_targets_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen, values = learner(num_mini_batches=3, learning_rate=0.05, gamma=0.99), [], []
    rollout = stale(made)
    gradients = made.steps.gradients
    made.steps.gradients = lambda size: (seen.append(made.steps.rows[size].tolist()), gradients(size))
    monkeypatch.setattr(impala, "vtrace", lambda *given: values.append(given[1].clone()) or vtrace(*given))
    before = made._values(rollout.obs["critic"])
    metrics = made.update(rollout, 0)
    assert sorted(robot for rows in seen for robot in rows) == list(range(ENVS)) and [len(rows) for rows in seen] == [2, 2, 2]
    torch.testing.assert_close(values[0], before[:, seen[0]])
    assert float((values[2] - before[:, seen[2]]).detach().abs().max()) > 1e-2  # those of the critic by then
    assert made.gradient_steps == 3 and made.skipped(metrics) == 0.0 and metrics["Loss/kl"] > 0.0


def test_invalid_transitions_change_nothing() -> None:
    ends = []
    for garbage in (0.0, 50.0):
        made = learner(num_mini_batches=2)
        rollout = stale(made)
        for step, robot in ((3, 4), (6, 4)):
            rollout.rewards[step, robot] = garbage
            rollout.actions[step, robot] += 0.01 * garbage
            rollout.final_obs["critic"][step, robot] = garbage
        ends.append((made.update(rollout, 0), torch.cat([one.detach().flatten() for one in made.steps.parameters])))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-12)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-12, atol=1e-14)


def columns(whole: Rollout, robots: list[int]) -> Rollout:
    """The part of some robots."""
    assert whole.log_prob is not None and whole.staleness is not None
    each = lambda obs: {name: value[:, robots] for name, value in obs.items()}  # noqa: E731
    names = ("actions", "output", "rewards", "terminated", "truncated", "valid", "log_prob")
    return dataclasses.replace(
        whole,
        obs=each(whole.obs),
        final_obs=each(whole.final_obs),
        last_obs={name: value[robots] for name, value in whole.last_obs.items()},
        staleness=whole.staleness[robots],
        totals={},
        **{name: getattr(whole, name)[:, robots] for name in names},
    )


def test_ranks_learn_what_one_process_learns_from_all_their_trajectories(ranks: Any) -> None:
    alone = learner()
    whole = stale(alone)
    expected = alone.update(copy.deepcopy(whole), 0)

    def rank(group: Group) -> tuple[dict[str, float], Tensor]:
        shares = [[0, 3, 4], [1, 2, 5]]
        torch.set_default_dtype(torch.float64)
        made = made_by[group.rank]
        made._reduce = made.steps._reduce = group.sum
        metrics = made.update(columns(whole, shares[group.rank]), 0)
        return metrics, torch.cat([parameter.detach().flatten() for parameter in made.steps.parameters])

    made_by = [learner(envs=3) for _ in range(2)]
    for metrics, weights in ranks(2, rank):
        assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(
            weights, torch.cat([p.detach().flatten() for p in alone.steps.parameters]), rtol=1e-9, atol=1e-12
        )


def test_it_goes_on_from_its_state() -> None:
    whole, first, second = learner(), learner(), learner()
    for made in (whole, first):
        made.update(stale(made), 0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    rollout = stale(whole, seed=1)
    assert whole.update(rollout, 1) == second.update(rollout, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole.steps.parameters, second.steps.parameters, strict=True))


@pytest.mark.parametrize("works", [True, False])
def test_an_update_is_the_same_whether_it_can_be_captured_or_not(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The CPU stands for a GPU: a capture runs nothing, a replay runs it once."""

    def graph(function: Any, device: torch.device, physics: Any, *, what: str) -> Any:
        if not works:
            raise UserError(f"physics.graph: {what} cannot be captured here: why; set physics.graph=false")
        return function

    monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
    learners = [learner(num_mini_batches=2) for _ in range(2)]
    learners[1].steps.captures = True
    for iteration in range(2):
        metrics = [made.update(stale(made, seed=iteration), iteration) for made in learners]
        assert metrics[0] == metrics[1]
    assert learners[1].steps.captures is works and len(learners[1].steps.graphs) == 2 * works


# ------------------------------------------------------------------------------------------------------------- as a page's


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ppo.num_learning_epochs=2", "ppo.num_learning_epochs: 2 is not read by train.learner: impala, which makes one pass"),
        ("ppo.clip_param=0.1", "which clips no ratio to the policy before; leave it out, or at 0.2"),
        ("ppo.use_clipped_value_loss=false", "which clips no value; leave it out, or at true"),
        ("ppo.reshuffle=true", "leave it out, or at false"),
        ("ppo.normalize_advantage=none", 'which finds advantages anew in every minibatch; leave it out, or at "rollout"'),
        ("ppo.symmetry=mirror_loss", 'ppo.symmetry: "mirror_loss" is not there with train.learner: impala; take augmentation'),
    ],
)
def test_what_it_does_not_read_is_refused(change: str, said: str) -> None:
    others = ["ppo.mirror_loss_coeff=0.5"] if "mirror_loss" in change else []
    with pytest.raises(ConfigError, match=re.escape(said)):
        load("go2_flat", ["train.learner=impala", "ppo.use_clipped_value_loss=true", change, *others])


def test_the_correction_of_ppo_is_not_its() -> None:
    given = ["train.learner=impala", "ppo.use_clipped_value_loss=true", "train.overlap=true", "train.correction=none"]
    with pytest.raises(ConfigError, match=r'train\.correction: "none" is only read with .* by learner: ppo; leave it out'):
        load("go2_flat", given)


def test_an_empty_minibatch_is_refused() -> None:
    changes = ["train.learner=impala", "ppo.use_clipped_value_loss=true", "env.num_envs=4", "ppo.num_mini_batches=5"]
    with pytest.raises(UserError, match=r"5 is more than an iteration's 4 robots, which IMPALA's minibatches share out"):
        inspect(load("go2_flat", changes))
    pooled = ["train.learner=impala", "pool.mode=async", "pool.workers=2", "pool.shard_size=1", "env.num_envs=8"]
    with pytest.raises(UserError, match=r"5 is more than an iteration's 4 robots"):  # half of them, batch_share
        inspect(load("go2_flat", [*pooled, "ppo.use_clipped_value_loss=true", "ppo.num_mini_batches=5"]))


def test_a_run_and_its_resumption(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    small = ["env.compile=false", "env.num_envs=8", "train.steps=4", "physics.num_threads=1", "ppo.actor_hidden_dims=[8]"]
    given = [
        *small,
        "ppo.critic_hidden_dims=[8]",
        "train.learner=impala",
        "ppo.use_clipped_value_loss=true",
        "train.save_every=1",
    ]
    made = training.start(load("go2_flat", given), tmp_path / "run")
    assert type(made.learner) is IMPALA
    (metrics,) = made.train(1)
    assert {"Loss/policy", "Loss/value", "Loss/entropy", "Loss/kl", "Loss/explained_variance"} <= metrics.keys()
    resumed = training.resume(str(tmp_path / "run"), "go2_flat")
    assert resumed.iteration == 1 and len(list(resumed.train(2))) == 1
