"""One exported folder for all: a random network of go2_flat with a history, clips that bite, and unusual statistics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from embodied_rl import make_env
from embodied_rl.config import Page, load
from embodied_rl.deploy import export as export_module
from embodied_rl.deploy.contract import KEY, read_contract, to_yaml
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.policy import Policy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = (
    "env.compile=false",
    "observations.actor.joint_pos.history=3",
    "observations.actor.joint_vel.clip=[-30.0, 30.5]",
    "observations.actor.base_ang_vel.delay=[0, 2]",
    "actions.joint_position.clip=0.6",
    "actions.joint_position.latency=[0, 2]",
    "score.episode_s=1.0",
    "score.unscored_s=0.2",
)


def make_policy(page: Page) -> Policy:
    """A random network of the page, whose normalizer has seen something and whose actions are large."""
    env = make_env.make(page, num_envs=1)
    torch.manual_seed(0)
    actor = build_actor(env.obs, env.action_space, page.ppo)
    env.close()
    with torch.no_grad():
        actor.mlp[-1].weight.mul_(3.0)  # pyright: ignore
    actor.obs_normalizer.update(0.1 + 0.5 * torch.randn(100, actor.obs_dim))  # pyright: ignore
    return policy_of(actor)


@pytest.fixture(scope="session")
def page() -> Page:
    return load("go2_flat", PAGE)


@pytest.fixture(scope="session")
def policy(page: Page) -> Policy:
    return make_policy(page)


@pytest.fixture(scope="session")
def exported(page: Page, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_module.export(policy, page, tmp_path_factory.mktemp("run") / "exported", git_commit=COMMIT, episodes=4)


@pytest.fixture
def planted(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """`planted(runner=(old, new), contract=change, network=data)`: a copy of the folder with a mistake in it."""

    def plant(
        runner: tuple[str, str] | None = None,
        contract: Callable[[dict[str, Any]], Any] | None = None,
        network: bytes | None = None,
    ) -> Path:
        folder = tmp_path / "planted"
        shutil.copytree(exported, folder)
        if runner:
            text = (folder / "run_policy.py").read_text()
            assert runner[0] in text, runner[0]
            (folder / "run_policy.py").write_text(text.replace(*runner))
        if contract:
            rewrite(folder, contract)
        if network:
            (folder / "policy.onnx").write_bytes(network)
        return folder

    return plant


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, for_people: bool = True) -> None:
    """Change a folder's contract, in the network and in contract.yaml."""
    agreed = read_contract(folder / "policy.onnx")
    change(agreed)
    model = onnx.load(folder / "policy.onnx")
    onnx.helper.set_model_props(model, {KEY: json.dumps(agreed)})
    onnx.save(model, folder / "policy.onnx")
    if for_people:
        (folder / "contract.yaml").write_text(to_yaml(agreed))
