"""What the README shows works as it is written."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from embodied_rl import make_env, rotations
from embodied_rl.config import load
from embodied_rl.paths import PACKAGE

README = PACKAGE.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs a source checkout")


def example(language: str, containing: str) -> str:
    """The README's one block of code in that language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if containing in block)
    return block


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page and the terms of the README, in a folder of their own; the robot is one that is there."""
    (tmp_path / "my_terms.py").write_text(example("python", "@reward"))
    text, found = re.subn(r"^robot: .*$", "robot: go2", example("yaml", "my_terms.py"), flags=re.MULTILINE)
    assert found == 1
    (tmp_path / "my_page.yaml").write_text(text)
    return tmp_path / "my_page.yaml"


@torch.no_grad()
def test_the_example_of_own_terms_trains_compiled(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # traced as it is for a training; what would then be built of it is not the page's
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    quiet = ["env.num_envs=3", "env.compile=true", "env.random_episode_phase=false", "physics.num_threads=1", "events.push=null"]
    env = make_env.make(load(str(page), quiet))
    env.step(torch.zeros(3, env.num_actions))
    assert not env.result.terminated.any() and not env.result.truncated.any()
    found = env.buffers["reward_terms"][:, [term.name for term in env.terms.rewards].index("my_reward")]
    velocity = rotations.rotate_inverse(env.physics.qpos[:, 3:7], env.physics.qvel[:, :3])[:, 1]
    torch.testing.assert_close(found, 0.5 * torch.exp(-((velocity / 0.2) ** 2)) * env.step_dt)
    env.close()


def test_files_that_are_linked_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links and [link for link in links if not (README.parent / link).exists()] == []
