from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rsl_rl.runners import DistillationRunner, OnPolicyRunner
from tensordict import TensorDict
from torch import Tensor

from embodied_rl import make_env, runs, training
from embodied_rl.adapters.rsl_rl import RslRlEnv, runner_config
from embodied_rl.config import Page, load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rsl_rl_ppo import with_mirrored
from embodied_rl.learn.run import Run

ENVS = 16
ITERATIONS = 2


@pytest.fixture(scope="module")
def page() -> Page:
    small = [
        "actor_hidden_dims=[32, 16]",
        "critic_hidden_dims=[24]",
        "learning_rate=5e-4",
        "schedule=adaptive",
        # few gradients: for each, rsl_rl asks our environment for its mirror
        "num_learning_epochs=2",
        "num_mini_batches=2",
    ]
    return load(
        "go2_flat", ["env.compile=false", "train.steps=8", f"env.num_envs={ENVS}", *(f"ppo.{setting}" for setting in small)]
    )


@pytest.fixture
def env(page: Page) -> Iterator[Env]:
    env = make_env.make(page)
    yield env
    env.close()


@pytest.fixture(scope="module")
def trained(page: Page, tmp_path_factory: pytest.TempPathFactory) -> OnPolicyRunner:
    """The stock runner after two iterations, its checkpoint and event file on disk."""
    env = make_env.make(page)
    torch.manual_seed(0)
    runner = OnPolicyRunner(RslRlEnv(env), runner_config(page), str(tmp_path_factory.mktemp("rsl_rl")), "cpu")
    runner.learn(ITERATIONS, init_at_random_ep_len=True)
    return runner


def saved(runner: OnPolicyRunner) -> Path:
    return Path(runner.logger.log_dir) / f"model_{ITERATIONS - 1}.pt"  # pyright: ignore[reportArgumentType]


def our_learner(env: Env) -> PPO:
    return PPO(env.obs, env.action_space, env.page.ppo, env.mirror_maps(), seed=1)


def their_actions(runner: OnPolicyRunner, obs: TensorDict) -> Tensor:
    with torch.inference_mode():
        return runner.get_inference_policy("cpu")(obs)


def same_state(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[row][name]) for row, state in ours.items() for name, value in state.items()
    )


def test_the_stock_runner_trains(trained: OnPolicyRunner, page: Page) -> None:
    assert saved(trained).is_file()
    assert trained.alg.learning_rate != page.ppo.learning_rate  # adapted to the KL
    normalizer = trained.alg.actor.obs_normalizer
    assert normalizer.count == ITERATIONS * ENVS * page.train.steps  # pyright: ignore
    assert trained.alg.get_policy().output_std.isfinite().all()


def test_its_log_has_our_metrics(trained: OnPolicyRunner) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(trained.logger.log_dir).Reload()
    scalars = events.Tags()["scalars"]
    assert {"Metrics/lin_vel_error", "Episode_Termination/tilt", "Physics/unstable", "Loss/value"} <= set(scalars)
    assert len(events.Scalars("Metrics/lin_vel_error")) == ITERATIONS


def test_their_checkpoint_loads_in_our_learner(trained: OnPolicyRunner, env: Env) -> None:
    learner = our_learner(env)
    learner.load_state_dict(checkpoint.read(saved(trained)))
    obs = RslRlEnv(env).get_observations()
    actor, critic = learner.actor, learner.critic
    with torch.inference_mode():
        assert torch.equal(actor.mlp(actor.obs_normalizer(obs["actor"])), their_actions(trained, obs))
        assert torch.equal(critic.mlp(critic.obs_normalizer(obs["critic"])), trained.alg.critic(obs))
    assert float(learner.steps.rate) == pytest.approx(trained.alg.learning_rate, rel=1e-6)  # a tensor here, float32
    assert same_state(learner.steps.optimizer.state_dict()["state"], trained.alg.optimizer.state_dict()["state"])


def test_their_policy_runs_in_ours(trained: OnPolicyRunner, env: Env, tmp_path: Path) -> None:
    run = Run.create(env.page, tmp_path / "run")
    (run.checkpoints / saved(trained).name).write_bytes(saved(trained).read_bytes())
    loaded = runs.load(run.path)
    obs = RslRlEnv(env).get_observations()
    assert torch.equal(loaded.policy(obs["actor"]), their_actions(trained, obs))
    env.step(loaded.policy(env.obs))
    assert loaded.iteration == ITERATIONS - 1


def test_our_checkpoint_loads_in_theirs(env: Env, tmp_path: Path) -> None:
    run = Run.create(env.page, tmp_path / "run")
    trainer = training.make_trainer(env.page, run)
    for _ in trainer.train(1):
        pass
    runner = OnPolicyRunner(RslRlEnv(env), runner_config(env.page), str(tmp_path / "theirs"), "cpu")
    runner.load(str(run.checkpoint(1)))
    obs = RslRlEnv(env).get_observations()
    assert torch.equal(their_actions(runner, obs), runs.load(run.path).policy(obs["actor"]))
    assert runner.current_learning_iteration == 1
    ours = trainer.learner
    assert isinstance(ours, PPO)
    assert runner.alg.learning_rate == float(ours.steps.rate)
    assert same_state(runner.alg.optimizer.state_dict()["state"], ours.steps.optimizer.state_dict()["state"])
    steps = int(next(iter(ours.steps.optimizer.state.values()))["step"])
    runner.learn(1)
    per_iteration = env.page.ppo.num_learning_epochs * env.page.ppo.num_mini_batches
    assert int(next(iter(runner.alg.optimizer.state.values()))["step"]) == steps + per_iteration


def test_what_step_returns_is_not_overwritten(env: Env) -> None:
    adapter = RslRlEnv(env)
    obs, rewards, dones, extras = adapter.step(torch.zeros(ENVS, env.num_actions))
    kept = copy.deepcopy((obs.to_dict(), rewards, dones, extras["time_outs"]))
    assert torch.equal(obs["actor"], env.obs["actor"])
    for value in (*env.buffers.values(), *env.obs.values(), *env.final_obs.values()):
        value.copy_(torch.ones_like(value) if value.dtype == torch.bool else torch.full_like(value, 99))
    results = (*obs.to_dict().values(), rewards, dones, extras["time_outs"])
    for now, then in zip(results, (*kept[0].values(), *kept[1:]), strict=True):
        assert torch.equal(now, then)


def test_time_outs_are_dones_and_falls_no_time_outs(env: Env) -> None:
    adapter = RslRlEnv(env)
    lengths = torch.ones(ENVS, dtype=torch.long)
    lengths[3] = env.max_episode_length - 1
    adapter.episode_length_buf = lengths
    assert adapter.episode_length_buf is env.buffers["episode_length"]
    qpos = env.physics.qpos.clone()
    qpos[5, 3:7] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # on its back
    env.physics.write(torch.arange(ENVS) == 5, qpos=qpos)
    _, _, dones, extras = adapter.step(torch.zeros(ENVS, env.num_actions))
    assert dones.nonzero().flatten().tolist() == [3, 5]
    assert extras["time_outs"].nonzero().flatten().tolist() == [3]


def test_metrics_come_once_an_iteration(env: Env) -> None:
    adapter = RslRlEnv(env)
    logs = ["log" in adapter.step(torch.zeros(ENVS, env.num_actions))[3] for _ in range(16)]
    assert [step for step, log in enumerate(logs, start=1) if log] == [8, 16]


def test_the_configuration_is_the_pages_and_stays_so(page: Page, env: Env) -> None:
    before = page.to_yaml()
    OnPolicyRunner(RslRlEnv(env), runner_config(page), None, "cpu")
    config = runner_config(page)
    assert config == runner_config(page)
    assert page.to_yaml() == before
    assert config["actor"]["hidden_dims"] == [32, 16]
    assert config["algorithm"]["learning_rate"] == 5e-4
    assert config["obs_groups"] == {"actor": ["actor"], "critic": ["critic"]}


@pytest.mark.parametrize("symmetry", ["augmentation", "mirror_loss"])
def test_symmetry_is_passed_on(symmetry: str, env: Env, page: Page) -> None:
    changed = {"symmetry": symmetry, "mirror_loss_coeff": 0.5}
    mirrored = page.model_copy(update={"ppo": page.ppo.model_copy(update=changed)})
    runner = OnPolicyRunner(RslRlEnv(env), runner_config(mirrored), None, "cpu")
    assert runner.alg.symmetry is not None
    assert runner.alg.symmetry.use_data_augmentation == (symmetry == "augmentation")
    assert runner.alg.symmetry.use_mirror_loss == (symmetry == "mirror_loss")
    runner.learn(1)


def test_mirrored_rows_stand_below(env: Env) -> None:
    adapter = RslRlEnv(env)
    obs, actions = with_mirrored(adapter, adapter.get_observations(), torch.rand(ENVS, env.num_actions))
    assert obs is not None and actions is not None
    assert torch.equal(obs["actor"][:ENVS], env.obs["actor"])
    # what is mirrored twice is what it was
    again, back = with_mirrored(adapter, obs[ENVS:], actions[ENVS:])
    assert again is not None and back is not None
    torch.testing.assert_close(again["critic"][ENVS:], env.obs["critic"])
    torch.testing.assert_close(back[ENVS:], actions[:ENVS])
    # base_ang_vel is a pseudovector: rolling and yawing change sign, pitching does not
    torch.testing.assert_close(obs["actor"][ENVS:, :3], env.obs["actor"][:, :3] * torch.tensor([-1.0, 1.0, -1.0]))


def test_random_network_distillation_runs(page: Page, env: Env) -> None:
    """rsl_rl's curiosity, on our environment: the agent's reward grows by what the predictor does not know yet."""
    config = runner_config(page)
    config["obs_groups"]["rnd_state"] = ["critic"]
    rnd = {
        "num_outputs": 4,
        "predictor_hidden_dims": [16],
        "target_hidden_dims": [16],
        "weight": 1.0,
        "state_normalization": True,
    }
    config["algorithm"]["rnd_cfg"] = rnd
    runner = OnPolicyRunner(RslRlEnv(env), config, None, "cpu")
    assert runner.alg.rnd is not None
    predictor = copy.deepcopy(runner.alg.rnd.predictor.state_dict())
    runner.learn(2)
    assert (runner.alg.intrinsic_rewards > 0).all()
    moved = [not torch.equal(value, predictor[name]) for name, value in runner.alg.rnd.predictor.state_dict().items()]
    assert all(moved)


def test_a_policy_of_ours_teaches_a_student(page: Page, env: Env, tmp_path: Path) -> None:
    """rsl_rl's distillation: the teacher sees what the critic sees, here a policy trained on that group."""
    torch.manual_seed(0)
    teacher = PPO({"actor": env.obs["critic"]}, env.action_space, page.ppo, {}, seed=1)
    checkpoint.save(tmp_path / "teacher.pt", teacher.state_dict() | {"iter": 0, "infos": {}})
    config = runner_config(page)
    actor = config.pop("actor") | {"distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 0.1}}
    config |= {"student": actor, "teacher": actor, "obs_groups": {"student": ["actor"], "teacher": ["critic"]}}
    config["algorithm"] = {"class_name": "Distillation", "num_learning_epochs": 4, "gradient_length": 4}
    runner = DistillationRunner(RslRlEnv(env), config, None, "cpu")
    runner.load(str(tmp_path / "teacher.pt"))
    obs = RslRlEnv(env).get_observations()

    def apart() -> float:
        with torch.inference_mode():
            student, taught = runner.alg.student, runner.alg.teacher
            assert torch.equal(taught(obs), teacher.actor.mlp(teacher.actor.obs_normalizer(obs["critic"])))
            return float((student(obs) - taught(obs)).square().mean())

    before = apart()
    runner.learn(20)
    assert apart() < 0.5 * before


@pytest.mark.parametrize(
    "counts", [3, [0] * ENVS, torch.zeros(ENVS), torch.zeros(ENVS, 1).long(), torch.zeros(1).long(), torch.full((ENVS,), -1)]
)
def test_what_counts_no_steps_is_a_line(env: Env, counts: Any) -> None:
    adapter = RslRlEnv(env)
    before = adapter.episode_length_buf.clone()
    with pytest.raises(UserError, match=r"episode_length_buf: .* is given; whole numbers \(16,\) from 0 up are wanted$"):
        adapter.episode_length_buf = counts
    assert torch.equal(adapter.episode_length_buf, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda actions: actions.numpy(), "actions: ndarray is given, and a torch.Tensor is wanted"),
        (lambda actions: actions.tolist(), "actions: list is given, and a torch.Tensor is wanted"),
        (lambda actions: actions.to(torch.complex64), "actions: torch.complex64 torch.strided on cpu; a dense tensor of real"),
        (lambda actions: actions.to_sparse(), "actions: torch.float32 torch.sparse_coo on cpu; a dense tensor of real"),
        (lambda actions: actions[:1], "actions of shape (1, 12) are given"),
    ],
)
def test_actions_that_are_none_are_a_line(env: Env, change: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        RslRlEnv(env).step(change(torch.zeros(ENVS, 12)))
    assert str(caught.value).startswith(said)


def test_an_environment_that_is_closed_says_so(page: Page) -> None:
    env = make_env.make(page)
    env.close()
    env.close()
    with pytest.raises(UserError, match=r"^the environment is closed; make another one$"):
        RslRlEnv(env).step(torch.zeros(ENVS, 12))


def test_what_is_no_environment_of_ours(page: Page) -> None:
    with pytest.raises(UserError, match=r"env: Page is given, and what embodied_rl.make gives is wanted"):
        RslRlEnv(page)  # pyright: ignore[reportArgumentType]
