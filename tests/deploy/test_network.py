from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # noqa: TID253  every test here needs it
import pytest
import torch

from embodied_rl.config import load
from embodied_rl.deploy import network
from embodied_rl.deploy.contract import DeployError
from embodied_rl.deploy.network import make_network, memory_parts, usual_obs
from embodied_rl.learn.policy import Player, Policy

from .conftest import make_policy

STEPS = 150


@pytest.fixture(scope="module")
def session(exported: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported / "policy.onnx")


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_number_of_rows(rows: int, session: onnxruntime.InferenceSession, policy: Policy) -> None:
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, result.name) == ("obs", "actions")
    obs = usual_obs(policy, 7)[:rows]
    actions = np.asarray(session.run(["actions"], {"obs": obs.numpy()})[0])
    np.testing.assert_allclose(actions, Player(policy)(obs).numpy(), atol=1e-5, rtol=0)
    alone = np.vstack([np.asarray(session.run(None, {"obs": row[None].numpy()})[0]) for row in obs])
    np.testing.assert_allclose(actions, alone, atol=1e-6, rtol=0)


def test_the_normalizer_is_inside_and_stays_as_it_is(policy: Policy, session: onnxruntime.InferenceSession) -> None:
    before = {name: value.clone() for name, value in policy.normalizer.state_dict().items()}
    raw = 3.0 + 5.0 * usual_obs(policy, 16)  # far from what it has seen
    wanted = policy.network((raw - policy.normalizer.mean) / (policy.normalizer.std + policy.normalizer.eps))  # pyright: ignore
    actions = np.asarray(session.run(None, {"obs": raw.numpy()})[0])
    np.testing.assert_allclose(actions, wanted.detach().numpy(), atol=1e-4)
    make_network(policy, {})
    assert all(torch.equal(value, before[name]) for name, value in policy.normalizer.state_dict().items())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recurrent_policy_is_torchs_through_resets(kind: str) -> None:
    sizes = ["ppo.rnn_hidden_dim=16", "ppo.rnn_num_layers=2", "ppo.symmetry=none", "env.compile=false"]
    policy = make_policy(load("go2_flat", [f"ppo.rnn_type={kind}", *sizes]))
    session = onnxruntime.InferenceSession(make_network(policy, {}))
    parts = memory_parts(policy)
    assert [(part["input"], part["output"]) for part in parts] == [("h", "next_h"), ("c", "next_c")][: len(parts)]
    assert [one.name for one in session.get_outputs()] == ["actions", *(part["output"] for part in parts)]
    player, rows = Player(policy), 3
    obs = usual_obs(policy, STEPS * rows).view(STEPS, rows, -1)
    memory = {part["input"]: np.zeros((part["shape"][0], rows, part["shape"][2]), np.float32) for part in parts}
    first = None
    for step in range(STEPS):
        wanted = player(obs[step]).numpy()
        actions, *after = session.run(None, {"obs": obs[step].numpy(), **memory})
        np.testing.assert_allclose(np.asarray(actions), wanted, atol=1e-5, rtol=0)
        done = np.array([step % 97 == 96, step % 31 == 30, False])
        player.forget(torch.from_numpy(done))
        memory = {
            name: np.where(done[None, :, None], np.float32(0), np.array(one)) for name, one in zip(memory, after, strict=True)
        }
        first = actions if first is None else first
    # an episode's first action is that of any other's
    again = session.run(None, {"obs": obs[0].numpy(), **{name: np.zeros_like(one) for name, one in memory.items()}})[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(first))


def test_no_path_of_this_machine_is_in_the_file(exported: Path) -> None:
    assert not re.search(rb"site-packages|\.py\b|" + str(Path.home()).encode() + rb"/", (exported / "policy.onnx").read_bytes())


def test_it_is_quiet(
    policy: Policy, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    make_network(policy, {})
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert recwarn.list == []


def test_a_wrong_network_is_not_written(exported: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported / "policy.onnx")
    (mean,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("_mean"))
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + np.float32(1e-3), mean.name))
    monkeypatch.setattr(network, "_to_onnx", lambda *_: model)
    with pytest.raises(DeployError, match=r"^the exported network differs from torch by \S+, more than 1e-05: nothing"):
        make_network(policy, {})
