"""Soft actor-critic: whole updates against Stable-Baselines3's, and each of its parts against numbers by hand."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.config.sac import SACSettings
from embodied_rl.errors import UserError
from embodied_rl.learn.copies import plain_copy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.sac import SAC
from embodied_rl.learn.sac_networks import bound_of
from embodied_rl.learn.twin_critic import Returns, TwinCritic
from embodied_rl.vector_env import ActionSpace

ENVS, OBS, ACTIONS = 4, 3, 1
STOCK = {
    "critic": "mse",
    "alpha": 1.0,
    "layer_norm": False,
    "scale_rewards": False,
    "obs_normalization": False,
    "learning_starts": 0,
}


def settings(**own: Any) -> SACSettings:
    return SACSettings(
        **{"actor_hidden_dims": (32, 32), "critic_hidden_dims": (32, 32), "batch_size": 64, "replay_size": 4000} | own
    )


def learner(*, bound: float = 2.0, envs: int = ENVS, **own: Any) -> SAC:
    torch.manual_seed(0)
    obs = {"actor": torch.zeros(envs, OBS)}
    mirrors = {
        "actor": (torch.tensor([0, 2, 1]), torch.tensor([1.0, -1.0, -1.0])),
        "actions": (torch.tensor([0]), -torch.ones(1)),
    }
    return SAC(obs, torch.full((ACTIONS,), bound), settings(**own), mirrors, seed=1)


def rollout(steps: int = 40, envs: int = ENVS, seed: int = 0, bound: float = 2.0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    ends = torch.rand(steps, envs, generator=generator)
    return Rollout(
        obs={"actor": draw(steps, envs, OBS)}, actions=bound * torch.tanh(draw(steps, envs, ACTIONS)),
        output=draw(steps, envs, 2), std=None, rewards=draw(steps, envs), terminated=ends < 0.1, truncated=ends > 0.9,
        valid=torch.ones(steps, envs, dtype=torch.bool), final_obs={"actor": draw(steps, envs, OBS)},
        last_obs={"actor": draw(envs, OBS)},
    )  # fmt: skip


class Theirs:
    """Stable-Baselines3's SAC with the weights of ours, on the batches and the noise that ours had."""

    def __init__(self, ours: SAC) -> None:
        gym, stock = (pytest.importorskip(name) for name in ("gymnasium", "stable_baselines3"))
        from stable_baselines3.common.logger import Logger

        page = ours.page
        self.algorithm = stock.SAC(
            "MlpPolicy", gym.make("Pendulum-v1"), policy_kwargs={"net_arch": {"pi": [32, 32], "qf": [32, 32]}}, device="cpu",
            learning_starts=0, ent_coef=f"auto_{page.alpha}", target_entropy=page.target_entropy * ACTIONS, tau=page.tau,
        )  # fmt: skip
        self.algorithm._logger = Logger(None, [])
        mlp, policy = ours.actor.mlp, self.algorithm.policy
        layers = [module for module in mlp if isinstance(module, torch.nn.Linear)]
        heads = list(zip((policy.actor.mu, policy.actor.log_std), (slice(0, ACTIONS), slice(ACTIONS, None)), strict=True))
        with torch.no_grad():
            for mine, their in zip(layers, (policy.actor.latent_pi[0], policy.actor.latent_pi[2]), strict=False):
                their.load_state_dict(mine.state_dict())
            for head, rows in heads:
                head.load_state_dict({"weight": layers[-1].weight[rows], "bias": layers[-1].bias[rows]})
            for critic in (policy.critic, policy.critic_target):
                for index, network in enumerate(critic.q_networks):
                    for place, layer in enumerate(module for module in network if isinstance(module, torch.nn.Linear)):
                        layer.weight.copy_(ours.critic.twin.weights[place][index])
                        layer.bias.copy_(ours.critic.twin.biases[place][index, 0])
        self.policy = policy

    def update(self, ours: SAC, monkeypatch: pytest.MonkeyPatch) -> None:
        batch, noise = ours.batches.batch, list(ours.batches.noise.flip(0).clone())  # theirs takes the actor's first
        assert batch is not None
        data = SimpleNamespace(
            observations=batch.obs["actor"],
            actions=batch.actions,
            next_observations=batch.next_obs["actor"],
            rewards=batch.rewards[:, None],
            dones=(batch.discount == 0).float()[:, None],
            discounts=None,
        )
        self.algorithm.replay_buffer = SimpleNamespace(sample=lambda *_, **__: data)
        monkeypatch.setattr(
            torch.distributions.Normal, "rsample", lambda normal, shape=(): normal.mean + normal.stddev * noise.pop(0)
        )
        monkeypatch.setattr(self.policy.actor.action_dist, "epsilon", 1e-12)
        self.algorithm.train(gradient_steps=1, batch_size=len(data.observations))
        monkeypatch.undo()

    def apart(self, ours: SAC) -> float:
        """The largest difference of a parameter."""
        layers = [module for module in ours.actor.mlp if isinstance(module, torch.nn.Linear)]
        latent, actor = self.policy.actor.latent_pi, self.policy.actor
        pairs = [(layers[0].weight, latent[0].weight), (layers[1].bias, latent[2].bias)]
        pairs += [(layers[2].weight, torch.cat((actor.mu.weight, actor.log_std.weight)))]
        pairs += [(ours.temperature["log_alpha"], self.algorithm.log_ent_coef[0])]
        for mine, critic in ((ours.critic.twin, self.policy.critic), (ours.target, self.policy.critic_target)):
            for index, network in enumerate(critic.q_networks):
                for place, layer in enumerate(module for module in network if isinstance(module, torch.nn.Linear)):
                    pairs += [(mine.weights[place][index], layer.weight), (mine.biases[place][index, 0], layer.bias)]
        return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("fused", [True, False])
def test_ten_whole_updates_are_stable_baselines3s(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    ours = learner(**STOCK)
    ours._fused = ours._fused if fused else None
    theirs = Theirs(ours)
    assert theirs.apart(ours) == 0.0
    ours.replay.insert(rollout())
    for count in range(1, 11):
        ours.batches.generator.manual_seed(count)
        ours._update()
        theirs.update(ours, monkeypatch)
        assert theirs.apart(ours) < 1e-5
    moved = ours.critic.twin.weights[1].detach() - learner(**STOCK).critic.twin.weights[1].detach()
    assert float(moved.abs().max()) > 1e-3  # ten steps of 3e-4


# -------------------------------------------------------------------------------------------------- what +-1 of an action is


def test_what_an_output_of_one_means_is_said_or_refused() -> None:
    assert bound_of(ActionSpace(2, bound=(1.5, 3.0)), settings()) == [1.5, 3.0]
    assert bound_of(ActionSpace(2, bound=(1.5, math.inf)), settings(action_bound=0.5)) == [0.5, 0.5]
    with pytest.raises(UserError, match=r"sac.action_bound: null: actions 1, 2 of 3 have no bound .* like action_bound: 1.0"):
        bound_of(ActionSpace(3, bound=(1.0, math.inf, math.inf)), settings())
    with pytest.raises(UserError, match=r"train.learner: sac: actions are choices, .*; take ppo"):
        bound_of(ActionSpace(2, discrete=True), settings())


def test_policy_warm_up_replay_and_export_have_one_mapping() -> None:
    sac = learner(bound=2.5, learning_starts=100)
    obs, noise = torch.randn(2000, OBS), torch.randn(2000, ACTIONS)
    pi, _ = sac.policy(obs)
    assert torch.allclose(sac.policy.deploy()(obs), pi.mode, atol=1e-6)
    sac.actor.squash.uniform.fill_(1.0)
    warm = pi.sample(noise).detach()  # uniform, of the whole range
    assert float(warm.abs().max()) <= 2.5 and float(warm.detach().std()) == pytest.approx(2.5 / math.sqrt(3.0), rel=0.05)
    given = rollout(bound=2.5)
    given.actions = warm[:160].view(40, ENVS, ACTIONS)
    sac.replay.insert(given)
    sac.batches.uniform.copy_((torch.arange(64) + 0.5) / 160)
    sac.batches.draw()
    assert sac.batches.batch is not None
    lane, number = sac.batches.batch.numbers
    assert torch.allclose(2.5 * sac.batches.batch.actions, given.actions[number, lane], atol=1e-6)
    assert float(sac.batches.batch.actions.abs().max()) <= 1.0


# ---------------------------------------------------------------------------------------------- distributions over returns


@pytest.mark.parametrize("atoms", [51, 101])
def test_projected_returns_have_mass_one_and_keep_their_mean(atoms: int) -> None:
    returns = Returns(atoms, 5.0)
    apart, certain = 10.0 / (atoms - 1), torch.zeros(atoms)
    certain[(atoms - 1) // 2] = 1.0  # the return that follows is 0: the target is the reward
    at = [0.0, apart, 3.0 * apart, 0.3 * apart, -1.7 * apart, 5.0, -5.0, 5.0 - 0.5 * apart, 4.9999995]
    rewards = torch.tensor([*at, 7.0, -700.0])
    found = returns.project(certain.expand(len(rewards), -1), rewards, torch.ones(len(rewards)))
    assert torch.allclose(found.sum(1), torch.ones(len(rewards)), atol=1e-6)
    assert torch.allclose((found * returns.atoms).sum(1), rewards.clamp(-5.0, 5.0), atol=1e-5)
    assert int((found[0] > 0).sum()) == 1 and int((found[5] > 0).sum()) == 1  # at an atom: it alone
    # of a distribution that stays inside, the mean goes where it should
    probabilities = torch.softmax(torch.randn(200, atoms, generator=torch.Generator().manual_seed(0)), dim=-1)
    rewards, discount = torch.rand(200) - 0.5, torch.full((200,), 0.8)
    found = returns.project(probabilities, rewards, discount)
    assert torch.allclose(found.sum(1), torch.ones(200), atol=1e-6)
    wanted = rewards + discount * (probabilities * returns.atoms).sum(1)
    assert torch.allclose((found * returns.atoms).sum(1), wanted, atol=1e-5)


def test_both_critics_are_perceptrons_of_their_own() -> None:
    torch.manual_seed(0)
    twin, x = TwinCritic(5, (16, 8), 3, "relu", layer_norm=True), torch.randn(7, 5)
    for index in range(2):
        y = x
        for place in range(3):
            y = y @ twin.weights[place][index].T
            if place < 2:
                y = torch.nn.functional.layer_norm(y, y.shape[-1:]) * twin.gains[place][index, 0]
            y = y + twin.biases[place][index, 0]
            y = torch.relu(y) if place < 2 else y
        assert torch.allclose(twin(x)[index], y, atol=1e-6)
    assert not torch.equal(twin(x)[0], twin(x)[1])


# ------------------------------------------------------------------------------------------------------------- the whole


def _first_target(given: Rollout) -> tuple[SAC, float]:
    """What the critics are to say of the first row of three steps of one robot, which a target sums."""
    sac = learner(**STOCK, n_steps=3, gamma=0.9, envs=1)
    sac.replay.insert(given)
    sac.batches.draw()
    assert sac.batches.batch is not None and int(sac.batches.batch.numbers[1][0]) == 0
    return sac, float(sac._target(sac.batches.batch, sac.batches.noise[0])[0])


@torch.no_grad()
def test_a_time_limit_bootstraps_from_its_final_observation_and_an_end_from_nothing() -> None:
    given = rollout(3, 1)
    ends, never, rewards = torch.tensor([[False], [True], [False]]), torch.zeros(3, 1, dtype=torch.bool), given.rewards[:, 0]
    given.terminated, given.truncated = never, ends
    sac, found = _first_target(given)
    obs = given.final_obs["actor"][1]
    action, log_prob, _ = sac.actor.act(obs, sac.batches.noise[0, :1])
    value = sac.target(torch.cat((obs, action), dim=-1))[..., 0].amin(0) - sac.temperature["log_alpha"].exp() * log_prob
    assert found == pytest.approx(float(rewards[0] + 0.9 * rewards[1] + 0.81 * value), abs=1e-6)
    given.terminated, given.truncated = ends, never
    assert _first_target(given)[1] == pytest.approx(float(rewards[0] + 0.9 * rewards[1]), abs=1e-6)


@pytest.mark.parametrize(("target", "falls"), [(-20.0, True), (20.0, False)])
def test_alpha_falls_while_the_entropy_is_beyond_its_target_and_rises_below_it(target: float, falls: bool) -> None:
    sac = learner(**STOCK, target_entropy=target, learning_rate=1e-2)
    found = [1.0, *(sac.update(rollout(8, seed=seed), seed)["Loss/alpha"] for seed in range(5))]
    assert all(after < before if falls else after > before for before, after in itertools.pairwise(found)) and min(found) > 0.0


def test_updates_go_by_the_steps_of_all_robots_and_both_ratios_are_told() -> None:
    sac = learner(learning_starts=80, updates=0.5)
    first = sac.update(rollout(10), 0)  # 40 rows
    assert first["Replay/updates_per_vector_step"] == 0.0 and float(sac.actor.squash.uniform) == 1.0
    sac.update(rollout(10), 1)  # there are enough from here on
    metrics = sac.update(rollout(10), 2)
    assert metrics["Replay/updates_per_vector_step"] == 0.5 and metrics["Replay/updates_per_robot_step"] == 0.125
    assert sac.pace.updates == 5 and sac.gradient_steps == 10 and metrics["Replay/rows"] == 120
    assert float(sac.actor.squash.uniform) == 0.0


def test_another_number_of_robots_says_which_ratio_is_held(caplog: pytest.LogCaptureFixture) -> None:
    before, after = learner(updates=2.0), learner(updates=2.0, envs=8)
    after.load_state_dict(before.state_dict())
    assert "sac.updates: 2 for each step of all robots, as before: 0.25 for each step of a robot now, 0.5 before" in caplog.text


def test_statistics_move_once_a_rollout_and_rows_stay_as_they_came() -> None:
    sac = learner(learning_starts=0, updates=3.0)
    given = rollout(10)
    sac.update(given, 0)
    normalizers = sac.actor.obs_normalizer.state_dict(), sac.critic.obs_normalizer.state_dict()
    assert [int(state["count"]) for state in normalizers] == [40, 40]  # and not 30 updates more
    assert torch.equal(sac.replay.obs["actor"][:40].view(10, ENVS, OBS), given.obs["actor"])
    assert torch.equal(normalizers[0]["_mean"], normalizers[1]["_mean"])
    flat = given.obs["actor"].flatten(0, 1)
    assert torch.allclose(normalizers[0]["_mean"][0], flat.mean(0), atol=1e-6)


def test_what_is_drawn_differs_from_update_to_update_and_repeats() -> None:
    def drawn() -> list[Tensor]:
        sac, found = learner(learning_starts=0), []
        draw = sac.batches.draw
        sac.batches.draw = lambda: (draw(), found.append(torch.stack(sac.batches.batch.numbers).clone()))  # pyright: ignore
        for iteration in range(2):
            sac.update(rollout(3, seed=iteration), iteration)
        return found

    one, two = drawn(), drawn()
    assert len(one) == 6 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({tuple(numbers.flatten().tolist()) for numbers in one}) == 6


@pytest.mark.parametrize(
    "own", [{}, {"prioritized": True}, {"symmetry": "augmentation"}, STOCK, {"bfloat16": True}, {"actor_interval": 2}]
)
def test_a_resumed_learner_goes_on_to_the_bit(own: dict[str, Any]) -> None:
    one, two = (learner(**{"learning_starts": 0} | own) for _ in range(2))
    one.update(rollout(6), 0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    two.replay.restore(one.replay.snapshot())
    two.scale.sums.copy_(one.scale.sums)
    metrics = [sac.update(rollout(5, seed=1), 1) for sac in (one, two)]
    assert metrics[0] == metrics[1] and all(math.isfinite(value) for value in metrics[0].values())
    pairs = zip(one.critic.parameters(), two.critic.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_half_of_a_batch_is_shown_in_the_mirror() -> None:
    sac = learner(symmetry="augmentation", obs_normalization=False)
    given = rollout()
    sac.replay.insert(given)
    sac.batches.uniform.copy_((torch.arange(64) + 0.5) / 64)
    sac.batches.draw()
    assert sac.batches.batch is not None
    lane, number = sac.batches.batch.numbers
    obs, own = given.obs["actor"][number, lane], sac.batches.batch.obs["actor"]
    assert torch.equal(own[:32], obs[:32]) and torch.equal(own[32:], obs[32:, [0, 2, 1]] * torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(sac.batches.batch.actions[32:], -given.actions[number, lane][32:] / 2.0)


def test_a_limiter_says_how_many_updates_there_are() -> None:
    sac = learner(samples_per_insert=4.0, learning_starts=40, insert_tolerance=224.0)  # 4 robots x 24 steps at most, 64 a batch
    found = [sac.update(rollout(10, seed=seed), seed) for seed in range(30)]
    assert sac.pace.updates == 76 and sac.pace.limiter is not None and sac.pace.limiter.lead == (1200 - 40) * 4 - 76 * 64
    assert found[-1]["Replay/samples_per_insert"] == pytest.approx(76 * 64 / 1160)
    with pytest.raises(UserError, match=r"sac.insert_tolerance: 10: .*; at least 224"):
        learner(samples_per_insert=4.0, insert_tolerance=10.0)


def test_without_its_replay_a_learner_fills_it_again_before_it_draws(caplog: pytest.LogCaptureFixture) -> None:
    one, two = (learner(learning_starts=40) for _ in range(2))
    for seed in range(3):
        one.update(rollout(10, seed=seed), seed)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    with caplog.at_level("INFO", "embodied_rl"):
        assert two.update(rollout(9), 3)["Replay/updates_per_vector_step"] == 0.0
    assert "goes on with an empty replay (sac.save_replay: false): 40 rows come in before the next update" in caplog.text
    assert float(two.actor.squash.uniform) == 0.0  # with the policy that there is
    assert two.update(rollout(11), 4)["Replay/updates_per_vector_step"] == pytest.approx(10 / 11)


# -------------------------------------------------------------------------------------- priorities from where rows are made


@pytest.mark.parametrize("own", [{"n_steps": 3}, STOCK | {"n_steps": 2}])
def test_priorities_are_the_errors_of_the_critics_about_each_step(own: dict[str, Any]) -> None:
    sac = learner(gamma=0.9, **own)
    sac.update(rollout(30, seed=3), 0)  # so that the scales are not 1
    given, policy = rollout(7), plain_copy(sac.policy)
    found = sac.appraiser().priorities(policy, given)
    critic, divisor = sac.critic, sac.scale.divisor

    @torch.no_grad()
    def values(obs: Tensor, action: Tensor) -> Tensor:
        output = critic.twin(torch.cat((critic.obs_normalizer(obs), action / 2.0), dim=-1))
        return output[..., 0] if sac._returns is None else sac._returns.mean(output)

    for step, robot in itertools.product(range(7), range(ENVS)):
        total, discount, at = 0.0, 1.0, step
        for at in range(step, min(step + sac.page.n_steps, 7)):
            total += discount * float(given.rewards[at, robot])
            discount *= 0.9
            if given.terminated[at, robot] or given.truncated[at, robot]:
                break
        after = given.obs["actor"][at + 1, robot] if at < 6 else given.last_obs["actor"][robot]
        after = given.final_obs["actor"][at, robot] if given.truncated[at, robot] else after
        action = policy(after[None])[0].mode[0]
        wanted = total / divisor
        if not given.terminated[at, robot]:
            wanted = wanted + discount * values(after[None], action[None]).amin()
        error = (wanted - values(given.obs["actor"][step, robot][None], given.actions[step, robot][None])).abs().mean()
        assert float(found[step, robot]) == pytest.approx(float(error), abs=1e-5)


def test_each_row_of_a_replay_is_what_the_simulator_makes_of_its_action(tmp_path: Path) -> None:
    gym = pytest.importorskip("gymnasium")
    source = {"source": "gymnasium:Hopper-v5", "source_options": {"max_episode_steps": 20}}
    own = {
        "env": source | {"num_envs": 3, "final_obs_groups": ["actor"]},
        "train": {"learner": "sac", "steps": 4, "iterations": 60, "device": "cpu"},
        "sac": STOCK | {"learning_starts": 300, "batch_size": 16, "updates": 1, "replay_size": 2000},
    }
    (tmp_path / "page.yaml").write_text(json.dumps(own))
    trainer = training.start(load(tmp_path / "page.yaml"), tmp_path / "run")
    for _ in trainer.train(60):
        pass
    rows = 3 * 4 * 60
    assert isinstance(trainer.learner, SAC)
    row = trainer.learner.replay.draw((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)
    where = list(zip(*(numbers.tolist() for numbers in row.numbers), strict=True))
    places = {place: index for index, place in enumerate(where)}
    assert len(places) == rows
    stock, ends = gym.make("Hopper-v5").unwrapped, {"terminated": 0, "truncated": 0}
    stock.reset(seed=0)
    for index, (lane, number) in enumerate(where):
        obs, following = row.obs["actor"][index].double().numpy(), row.next_obs["actor"][index]
        # the height and the angles, which is all but how far it has come, and the velocities, which are cut off at 10
        if abs(obs[5:]).max() >= 10.0:
            continue
        stock.set_state(np.append(0.0, obs[:5]), obs[5:])
        led_to, reward, terminated, _, _ = stock.step(row.actions[index].double().numpy())
        assert float(row.rewards[index]) == pytest.approx(reward, abs=1e-5)
        assert float(row.discount[index]) == pytest.approx(0.0 if terminated else 0.99)
        ends["terminated"] += terminated
        if not terminated:
            torch.testing.assert_close(following.double(), torch.as_tensor(led_to), atol=1e-5, rtol=0)
            begun = places.get((lane, number + 1))
            ends["truncated"] += begun is not None and not torch.equal(row.obs["actor"][begun], following)
    assert min(ends.values()) > 10, ends


@pytest.mark.parametrize("keeps", [True, False])
def test_a_run_goes_on_with_its_replay_where_the_page_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keeps: bool
) -> None:
    pytest.importorskip("gymnasium")
    caplog.set_level("INFO", "embodied_rl")
    source = {"source": "gymnasium:Pendulum-v1", "source_options": {"max_episode_steps": 7}}
    own = {
        "env": source | {"num_envs": 2, "final_obs_groups": ["actor"]},
        "train": {"learner": "sac", "steps": 5, "iterations": 6, "device": "cpu"},
        "sac": {
            **{"save_replay": keeps, "learning_starts": 8, "batch_size": 16, "replay_size": 400, "n_steps": 2},
            **{"critic": "mse", "scale_rewards": False, "actor_hidden_dims": [8], "critic_hidden_dims": [8]},
        },
    }
    (tmp_path / "page.yaml").write_text(json.dumps(own))
    ends: list[Any] = []
    for stops in ((6,), (3, 6)):
        folder = tmp_path / f"run_{len(stops)}"
        trainer = training.start(load(tmp_path / "page.yaml"), folder)
        for number, iterations in enumerate(stops):
            trainer = training.resume(str(folder)) if number else trainer
            for _ in trainer.train(iterations):
                pass
        ends.append(trainer.learner)
    whole, resumed = ends
    equal = all(torch.equal(a, b) for a, b in zip(whole.critic.parameters(), resumed.critic.parameters(), strict=True))
    assert equal == keeps and ("goes on with an empty replay" in caplog.text) != keeps
    assert torch.equal(whole.replay.written, resumed.replay.written) == keeps
