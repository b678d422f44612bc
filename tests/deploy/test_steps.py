from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embodied_rl.config import Page, load, override
from embodied_rl.deploy.export import export
from embodied_rl.deploy.golden import golden_page, states_of
from embodied_rl.deploy.place import place
from embodied_rl.deploy.sim2sim import Export
from embodied_rl.learn.policy import Player, Policy
from embodied_rl.make_env import make

from .conftest import PAGE, make_policy

MEMORY = ["ppo.rnn_hidden_dim=16", "ppo.symmetry=none"]
SLOW = pytest.mark.slow  # test_network.py holds the network itself to torch's


@pytest.mark.parametrize("kind", ["none", "gru", pytest.param("lstm", marks=SLOW)])
def test_500_steps_with_resets_are_torchs(kind: str, exported: Path, page: Page, policy: Policy, tmp_path: Path) -> None:
    """The runner beside the environment, state by state: histories, memory, clocks and last actions through episodes' ends."""
    if kind != "none":
        page = load("go2_flat", [*PAGE, f"ppo.rnn_type={kind}", *MEMORY])
        policy = make_policy(page)
        exported = export(policy, page, tmp_path / "exported", episodes=0)
    runner = Export(exported)
    env = make(override(golden_page(page), ["env.episode_s=1.3", "commands.velocity.resample_s=[0.3, 0.5]"]))
    robot, player = runner.runner.Simulation(runner.policy, runner.model), Player(policy)
    base, ends = runner.model.body("base").id, 0
    for _ in range(500):
        (qpos,), (qvel,) = states_of(env)
        place(robot.model, robot.data, base, runner.policy.joints, qpos, qvel)
        command = {name: term.command[0].numpy() for name, term in env.terms.commands.items()}
        seen = runner.policy.observe(robot.read(), command)
        np.testing.assert_allclose(seen, env.obs["actor"][0].numpy(), atol=1e-5)
        actions, wanted = runner.policy.infer(seen), player(env.obs)
        np.testing.assert_allclose(actions, wanted[0].numpy(), atol=1e-5)
        runner.policy.targets(actions)
        result = env.step(wanted)
        done = result.terminated | result.truncated
        player.forget(done)
        if done[0]:
            runner.policy.reset()
            ends += 1
    assert ends >= 7
    env.close()
