from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from embodied_rl import factory
from embodied_rl.config import load
from embodied_rl.learn import checkpoint
from embodied_rl.learn.checkpoint import CheckpointError
from embodied_rl.learn.run import RunError

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1"),
    *("ppo.num_steps_per_env=4", "ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "ppo.save_interval=1"),
]


class Malice:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "run")


def state() -> dict:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    models = {"actor_state_dict": layer.state_dict(), "critic_state_dict": layer.state_dict()}
    return models | {"optimizer_state_dict": optimizer.state_dict(), "iter": 7, "infos": {"env_steps": 5}}


def refusal(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    checkpoint.save(tmp_path / "whole.pt", state())
    return (tmp_path / "whole.pt").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("run") / "run"
    for _ in factory.start(load("go2_flat", SMALL), folder).train(3):
        pass
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for path in (finished / "config.yaml", *finished.glob("checkpoints/*.pt")):
        (folder / path.relative_to(finished)).write_bytes(path.read_bytes())
    return folder


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    saved = state()
    checkpoint.save(tmp_path / "model.pt", saved)
    read = checkpoint.read(tmp_path / "model.pt")
    assert read["iter"] == 7 and read["infos"] == {"env_steps": 5}
    assert torch.equal(read["actor_state_dict"]["weight"], saved["actor_state_dict"]["weight"])
    assert torch.equal(read["optimizer_state_dict"]["state"][0]["exp_avg"], saved["optimizer_state_dict"]["state"][0]["exp_avg"])


def test_truncated_anywhere(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "model.pt"
    for length in [*range(1, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refusal(path).startswith("truncated or damaged"), length


def test_flipped_bits_do_not_pass_for_weights(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "model.pt"
    weight = state()["actor_state_dict"]["weight"].numpy().tobytes()
    checkpoint.save(path, state() | {"actor_state_dict": {"weight": torch.frombuffer(bytearray(weight), dtype=torch.float32)}})
    data = bytearray(path.read_bytes())
    data[data.index(weight) + 1] ^= 0x10
    path.write_bytes(data)
    assert refusal(path).startswith("truncated or damaged")


@pytest.mark.parametrize("damage", [b"no checkpoint", b"\x80\x02", b"PK\x03\x04" + bytes(60), bytes(1000)])
def test_garbage(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(damage)
    assert refusal(path).startswith("truncated or damaged")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    assert refusal(tmp_path / "model.pt").startswith("empty")


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.pt") == "no such checkpoint"
    assert refusal(tmp_path) == "no such checkpoint"


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "garbage")
    assert refusal(path).startswith("truncated or damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"garbage")
        archive.writestr("archive/version", b"3")
    assert refusal(path).startswith(("refused", "truncated or damaged"))


def test_malice_in_a_pickle(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    path.write_bytes(pickle.dumps(state() | {"infos": Malice(trace)}))
    refusal(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # so it would have


@pytest.mark.parametrize("zipped", [True, False])
def test_malice_in_a_checkpoint(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    torch.save(state() | {"infos": Malice(trace)}, path, _use_new_zipfile_serialization=zipped)
    line = refusal(path)
    assert not trace.exists()
    assert not zipped or line == "refused: it holds more than tensors and plain values, so reading it could run code"
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "actor_state_dict, critic_state_dict, optimizer_state_dict, iter missing"),
        ({"weight": torch.zeros(3)}, "actor_state_dict, critic_state_dict, optimizer_state_dict, iter missing"),
        ({**state(), "actor_state_dict": torch.zeros(3)}, "actor_state_dict missing"),
        ({**state(), "iter": "seven"}, "iter missing"),
    ],
)
def test_tensors_that_are_no_checkpoint(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt") == f"not a checkpoint: {said}"


def test_a_crash_while_saving_leaves_the_old_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "checkpoints" / "model_000003.pt"
    before = path.read_bytes()

    def crash(content: object, file: object) -> None:
        file.write(b"half a check")  # pyright: ignore[reportAttributeAccessIssue]
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", crash)
        checkpoint.save(path, state())
    assert path.read_bytes() == before
    assert len(list((run / "checkpoints").iterdir())) == 4  # what was half written lies there ...
    assert factory.load(run).checkpoint == path  # ... and passes for no checkpoint


def test_a_damaged_newest_checkpoint_is_passed_over(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = run / "checkpoints" / "model_000003.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    loaded = factory.load(run)
    assert loaded.iteration == 2 and loaded.checkpoint.name == "model_000002.pt"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith(f"{newest}: truncated or damaged")

    trainer = factory.resume(str(run), "go2_flat")
    assert trainer.iteration == 2
    for _ in trainer.train(3):
        pass
    assert factory.load(run).iteration == 3  # the damaged file has given way to a whole one


def test_a_damaged_checkpoint_that_was_named_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "model_000002.pt"
    path.write_bytes(b"")
    for read in (lambda: factory.load(path), lambda: factory.resume(str(path), "go2_flat")):
        with pytest.raises(CheckpointError, match="empty"):
            read()


def test_a_run_without_a_whole_checkpoint(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model_000001\.pt: empty"):
        factory.load(run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="no checkpoint yet"):
        factory.load(run)


def test_an_actor_of_another_page(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "actor_hidden_dims" in text
    page = load(str(run / "config.yaml"), ["ppo.actor_hidden_dims=[8, 8]"])
    (run / "config.yaml").write_text(page.to_yaml())
    with pytest.raises(CheckpointError, match=r"its actor is not the one that .*config\.yaml describes"):
        factory.load(run)
