from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from embodied_rl import runs, training
from embodied_rl.config import load
from embodied_rl.learn import checkpoint
from embodied_rl.learn.checkpoint import CheckpointError, Checkpoints
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.run import Run, RunError

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1"),
    *("train.steps=4", "ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "train.save_every=1"),
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
    for _ in training.start(load("go2_flat", SMALL), folder).train(3):
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


def listing(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


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
        (torch.zeros(3), "not a checkpoint: *_state_dict of a network, iter missing"),
        ({"weight": torch.zeros(3), "iter": 7}, "not a checkpoint: *_state_dict of a network missing"),
        ({"optimizer_state_dict": {}, "iter": 7}, "not a checkpoint: *_state_dict of a network missing"),
        (
            {**state(), "actor_state_dict": 3},
            "damaged: actor_state_dict: 3, and no values by name; use an earlier checkpoint of the run",
        ),
        ({**state(), "iter": "seven"}, "not a checkpoint: iter missing"),
    ],
)
def test_tensors_that_are_no_checkpoint(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt") == said


def test_a_full_disk_leaves_the_old_file_and_no_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "checkpoints" / "model_000003.pt"
    before, names = path.read_bytes(), listing(run)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(os, "fsync", full)
        checkpoint.save(path, state())
    assert str(caught.value) == f"{path}: not written (No space left on device)"
    assert path.read_bytes() == before and listing(run) == names
    assert runs.load(run).checkpoint == path


def test_what_a_crash_leaves_behind_passes_for_no_checkpoint_and_is_removed(run: Path) -> None:
    """Killed between any two steps of writing the fourth: half a shard, a shard, half a learner."""
    folder = run / "checkpoints"
    half = (folder / "envs_000003_0_of_1.pt").read_bytes()[:700]
    (folder / "envs_000004_1_of_2.tmp").write_bytes(half)
    (folder / "envs_000004_0_of_2.pt").write_bytes(half)
    (folder / "model_000004.tmp").write_bytes((folder / "model_000003.pt").read_bytes()[:1000])
    assert runs.load(run).iteration == 3
    trainer = training.resume(str(run), "go2_flat")
    assert trainer.iteration == 3
    list(trainer.train(3))
    assert listing(run) == [*(f"envs_00000{n}_0_of_1.pt" for n in (1, 2, 3)), *(f"model_00000{n}.pt" for n in (1, 2, 3))]


def test_robots_of_another_version_are_not_gone_on_from_and_its_policy_loads(run: Path) -> None:
    path = run / "checkpoints" / "model_000003.pt"
    state = checkpoint.read(path)
    del state["format"]  # as they were before there were formats
    checkpoint.save(path, state)
    said = (
        r"saved by another version of embodied_rl \(format 1, this one goes on from \d\); go on with that version, or train anew"
    )
    with pytest.raises(CheckpointError, match=said) as caught:
        training.resume(str(path), "go2_flat")
    assert "\n" not in str(caught.value)
    assert runs.load(path).iteration == 3


TORN = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from embodied_rl.learn.checkpoint import Checkpoints, read
from embodied_rl.learn.ranks.group import Group

folder = Path(sys.argv[1])

def content(iteration):
    envs = {"state": torch.full((64, 400), float(iteration))}
    layer = {"weight": torch.full((300, 100), float(iteration))}
    learner = {f"{name}_state_dict": layer for name in ("actor", "critic", "optimizer")}
    return learner | {"iter": iteration, "infos": {}}, envs

def whole():
    \"\"\"The iteration of the newest checkpoint, all of whose parts are of that iteration.\"\"\"
    checkpoints = Checkpoints(folder, Group())
    path = max(folder.glob("model_*.pt"), default=None)
    if path is None:
        return 0
    state = read(path)
    ((_, envs),) = checkpoints.read_envs(path, state, range(64))
    assert envs["state"].unique().tolist() == state["critic_state_dict"]["weight"].unique().tolist() == [float(state["iter"])]
    return state["iter"]

torn = before = 0
random.seed(1)
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        checkpoints, iteration = Checkpoints(folder, Group(), keep=2), before
        checkpoints.begin(iteration)
        while True:
            iteration += 1
            checkpoints.save(*content(iteration), first=0)
    # in the course of one that is not the next, which is whole then: every process gets on
    target = before + random.randint(2, 4)
    while not list(folder.glob(f"*_{target:06d}*")):
        time.sleep(0.0005)
    time.sleep(random.uniform(0.0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    orphans = {path.name[5:11] for path in folder.glob("envs_*.pt")} - {path.name[6:12] for path in folder.glob("model_*.pt")}
    torn += bool(orphans or list(folder.glob("*.tmp")))
    now = whole()
    assert now >= before
    before = now
print(torn, before)
"""


def test_no_kill_at_whatever_moment_leaves_a_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    """25 processes that do nothing but save are killed; what is found is whole, and no older than what was found before."""
    done = subprocess.run([sys.executable, "-c", TORN, str(tmp_path), "25"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    torn, iteration = map(int, done.stdout.split())
    assert torn >= 5 and iteration >= 25  # many died in the middle of it


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Group(), keep=2)
    foreign = tmp_path / "model_000001.pt"
    torch.save(state(), foreign)
    checkpoints.begin(1)
    envs = {"state": torch.zeros(3, 1)}

    def save(iteration: int, reward: float) -> list[str]:
        checkpoints.save(state() | {"iter": iteration}, envs, 0, reward)
        models = [path.name for path in tmp_path.glob("model_*.pt") if path != foreign]
        shards = [path.name for path in tmp_path.glob("envs_*.pt")]
        assert {name[6:12] for name in models} == {name[5:11] for name in shards}
        return sorted(str(int(name[6:12])) for name in models)

    assert save(2, float("nan")) == ["2"]
    assert save(3, 5.0) == ["2", "3"]
    assert save(4, 1.0) == ["3", "4"]
    assert save(5, float("nan")) == ["3", "4", "5"]
    assert save(6, 2.0) == ["3", "5", "6"]
    checkpoints = Checkpoints(tmp_path, Group(), keep=2)  # another process
    checkpoints.begin(6)
    assert save(7, 6.0) == ["6", "7"]
    assert save(8, 0.0) == ["7", "8"]
    assert save(9, 0.0) == ["7", "8", "9"]
    assert foreign.exists()


def test_the_best_by_name(run: Path) -> None:
    for iteration, reward in ((1, 3.0), (2, 4.0), (3, float("nan"))):
        path = run / "checkpoints" / f"model_{iteration:06d}.pt"
        content = checkpoint.read(path)
        content["infos"]["mean_reward"] = reward
        checkpoint.save(path, content)
    assert runs.load(run / "best").iteration == 2
    (run / "checkpoints" / "model_000002.pt").write_bytes(b"")
    assert runs.load(f"{run}/best").iteration == 1
    (run / "checkpoints" / "model_000001.pt").unlink()
    with pytest.raises(RunError, match=r"/best: no checkpoint yet that knows its reward or was evaluated$"):
        runs.load(run / "best")


def score(margin: float, *, passed: bool) -> dict:
    return {"score": {"figures": {"fall_rate": 0.0}, "margin": margin, "passed": passed}}


#: From the worst to the best.
MERITS = [
    *({}, {"mean_reward": 1.0}, {"mean_reward": 9.0}),
    *(score(-float("inf"), passed=False), score(0.3, passed=False), score(0.1, passed=True), score(0.2, passed=True)),
    score(0.0, passed=True) | {"verified": True},
]


def test_the_best_is_by_score_where_there_is_one(tmp_path: Path) -> None:
    """A passed one before one of a larger margin, and any before one of a mere reward; by name, and by what is kept."""
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, Group(), keep=1)
    checkpoints.begin(0)
    for iteration, infos in enumerate([*MERITS, *reversed(MERITS)], 1):
        reward = infos.get("mean_reward", float("nan"))
        checkpoints.save(state() | {"iter": iteration, "infos": infos}, {"state": torch.zeros(3, 1)}, 0, reward)
        best = min(iteration, 9)  # of two equals the later one
        assert {path.name for path in folder.glob("model_*")} == {f"model_{of:06d}.pt" for of in (best, iteration)}
        if iteration > 1:
            assert Run(tmp_path).best_checkpoint() == checkpoints.path(best)


def test_the_policy_that_has_passed_once_is_kept_and_the_best_once_it_has_on_other_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, Group(), keep=1)
    checkpoints.begin(0)

    def save(iteration: int, infos: dict) -> list[int]:
        checkpoints.save(state() | {"iter": iteration, "infos": infos}, {"state": torch.zeros(3, 1)}, 0)
        assert len(list(folder.glob("envs_*"))) == len(list(folder.glob("model_*")))
        return sorted(int(path.name[6:12]) for path in folder.glob("model_*"))

    assert save(1, score(0.9, passed=False)) == [1]
    assert save(2, score(0.1, passed=True) | {"candidate": 2}) == [2]
    assert save(3, score(0.2, passed=True) | {"candidate": 2}) == [2, 3]
    assert save(4, {"candidate": 2}) == [2, 3, 4]
    checkpoints.note_verified(2)
    assert save(5, score(0.5, passed=True)) == [2, 5]
    assert Run(tmp_path).best_checkpoint() == checkpoints.path(2)
    again = Checkpoints(folder, Group(), keep=1)  # another process
    again.begin(5)
    again.save(state() | {"iter": 6, "infos": score(0.9, passed=True)}, {"state": torch.zeros(3, 1)}, 0)
    assert Run(tmp_path).best_checkpoint() == checkpoints.path(2)
    with pytest.raises(CheckpointError, match=r"model_000005.pt: no such checkpoint$"):
        again.note_verified(5)


def test_a_future_that_was_given_up_does_not_come_back(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever goes on from the first checkpoint and is killed before the next one goes on from the first again."""
    trainer = training.resume(str(run / "checkpoints" / "model_000001.pt"), "go2_flat", ["train.save_every=10"])
    for _ in trainer.train(5):
        break
    assert training.resume(str(run), "go2_flat").iteration == 1
    aside = run / "checkpoints" / "superseded"
    assert sorted(path.name for path in aside.glob("model_*")) == ["model_000002.pt", "model_000003.pt"]
    assert len(list(aside.glob("envs_*"))) == 2
    assert f"moved to {aside}" in caplog.text


def test_a_damaged_newest_checkpoint_is_passed_over(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = run / "checkpoints" / "model_000003.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    loaded = runs.load(run)
    assert loaded.iteration == 2 and loaded.checkpoint.name == "model_000002.pt"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith(f"{newest}: truncated or damaged")

    trainer = training.resume(str(run), "go2_flat")
    assert trainer.iteration == 2
    for _ in trainer.train(3):
        pass
    assert runs.load(run).iteration == 3  # the damaged file has given way to a whole one


def test_a_damaged_checkpoint_that_was_named_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "model_000002.pt"
    path.write_bytes(b"")
    for read in (lambda: runs.load(path), lambda: training.resume(str(path), "go2_flat")):
        with pytest.raises(CheckpointError, match="empty"):
            read()


def test_a_run_without_a_whole_checkpoint(run: Path) -> None:
    for path in (run / "checkpoints").glob("model_*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model_000001\.pt: empty"):
        runs.load(run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    for read in (lambda: runs.load(run), lambda: training.resume(str(run), "go2_flat")):
        with pytest.raises(RunError, match="no checkpoint yet"):
            read()


def test_a_damaged_shard_sends_a_run_to_the_checkpoint_before(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = run / "checkpoints" / "envs_000003_0_of_1.pt"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert training.resume(str(run), "go2_flat").iteration == 2
    assert "goes on with its own page" in caplog.messages[0]  # the small one
    assert caplog.messages[1].startswith(f"{shard}: damaged (another hash than model_000003.pt says); use an earlier checkpoint")
    assert runs.load(run).iteration == 3  # its policy is as good as ever
    with pytest.raises(CheckpointError, match="remove the file, and its robots start fresh"):
        training.resume(str(run / "checkpoints" / "model_000003.pt"), "go2_flat")
    shard.unlink()
    caplog.clear()
    trainer = training.resume(str(run), "go2_flat")
    assert trainer.iteration == 3
    assert caplog.messages[1:] == [f"{run}/checkpoints/model_000003.pt: holds no state of 4 of 4 robots; they start fresh"]


def test_no_shard_may_run_code(run: Path) -> None:
    shard, trace = run / "checkpoints" / "envs_000003_0_of_1.pt", run / "trace"
    torch.save({"first": 0, "envs": Malice(trace)}, shard)
    model = run / "checkpoints" / "model_000003.pt"
    content = checkpoint.read(model)
    content["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    checkpoint.save(model, content)
    with pytest.raises(CheckpointError, match="could run code"):
        training.resume(str(model), "go2_flat")
    assert not trace.exists()


def test_a_shard_is_looked_for_beside_its_checkpoint_and_nowhere_else(run: Path) -> None:
    model = run / "checkpoints" / "model_000003.pt"
    (run / "envs_000003_0_of_1.pt").write_bytes((run / "checkpoints" / "envs_000003_0_of_1.pt").read_bytes())
    (run / "checkpoints" / "envs_000003_0_of_1.pt").unlink()
    content = checkpoint.read(model)
    content["shards"][0]["name"] = "../envs_000003_0_of_1.pt"
    checkpoint.save(model, content)
    assert Checkpoints(run / "checkpoints", Group()).read_envs(model, content, range(4)) == []


def test_an_actor_of_another_page(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "actor_hidden_dims" in text
    page = load(str(run / "config.yaml"), ["ppo.actor_hidden_dims=[8, 8]"])
    (run / "config.yaml").write_text(page.to_yaml())
    with pytest.raises(CheckpointError, match=r"its actor is not the one that .*config\.yaml describes"):
        runs.load(run)
