"""Checkpoints: written whole or not at all, read without running code, by one process or many.

    checkpoints/model_000050.pt            the learner and the list of shards; written last, so that it stands for the whole
    checkpoints/envs_000050_0_of_2.pt      the robots of rank 0, by global env id
    checkpoints/envs_000050_1_of_2.pt

The first is what the learner's `state_dict` gives, with `iter` and `infos`: of PPO rsl_rl's layout (`actor_state_dict`,
`critic_state_dict`, `optimizer_state_dict`), which its runner loads.  Beside it stand `shards`, the manifest: name, hash and env
ids of each; and `format`, theirs.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import pickle
import re
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.learn.damage import find_damage, find_missing, is_stretched
from embodied_rl.learn.ranks.group import Group

log = logging.getLogger("embodied_rl")

#: Of the robots' state in a checkpoint, raised when its parts get other names or meanings.
FORMAT = 3
#: Most parts of a file, and bytes of the list of what is in them: of thousands of layers and ranks, and quickly gone through.
_MAX_PARTS, _MAX_LIST = 20_000, 2 << 20
_AGES = ("age", "episode_length", "episode_begin")


class CheckpointError(UserError):
    """The file is no checkpoint of this package or rsl_rl, or cannot be written; one line."""


class DamagedError(CheckpointError):
    """It cannot be read as it is, or says what cannot be; the one before it may do."""


def save(path: Path, state: dict) -> str:
    """Write to a temporary file, sync it, rename it: a crash leaves the old file or the new one.

    Returns:
        The SHA-256 of what was written.

    Raises:
        CheckpointError: it cannot be written, or could not be read again; what was there is still there.
    """
    data = pack(state)
    if excess := _find_excess(data):
        raise CheckpointError(f"{path}: not written: {excess}")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # a full disk needs the room
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: not written ({error.strerror})") from error
    return hashlib.sha256(data).hexdigest()


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """Read the learner's part of a checkpoint; only tensors and plain values, so that a stranger's file runs no code.

    Raises:
        DamagedError: truncated, empty, malicious, something else altogether, or with values that cannot be.
    """
    if not path.is_file():
        raise DamagedError(f"{path}: no such checkpoint")
    state = _load(path, _read_bytes(path), device)
    if missing := find_missing(state):
        raise DamagedError(f"{path}: not a checkpoint: {', '.join(missing)} missing")
    if fault := find_damage(state):
        raise damaged(path, fault)
    return state


def damaged(path: Path, fault: str) -> DamagedError:
    """Say of a checkpoint what in it cannot be."""
    fault = " ".join(fault.split())  # names in it are a stranger's, and may be long
    return DamagedError(
        f"{path}: damaged: {fault if len(fault) < 300 else fault[:297] + '...'}; use an earlier checkpoint of the run"
    )


class Merit(NamedTuple):
    """What makes one checkpoint better than another: the larger tuple."""

    verified: bool
    """Whether a training has passed with it: on seeds that it was not chosen by, too."""
    evaluated: bool
    passed: bool
    value: float
    """The score's margin where it was evaluated, else the mean reward of the episodes before it; -inf where none had ended."""


def merit(state: dict) -> Merit:
    """Say how good a checkpoint is: by its evaluation, and where it has none, by its reward."""
    infos = state.get("infos") or {}
    verified = infos.get("verified") is True
    if (score := infos.get("score")) is not None:
        return Merit(verified, True, score["passed"], float(score["margin"]))
    reward = float(infos.get("mean_reward", math.nan))
    return Merit(verified, False, False, -math.inf if math.isnan(reward) else reward)


def pack(state: dict) -> bytes:
    """Serialize a state as `save` writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict:
    """Read what `pack` gave, on the CPU."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _load(path: Path, data: bytes, device: torch.device | str = "cpu") -> Any:
    try:
        if fault := _find_excess(data):
            raise damaged(path, fault)
        # torch.load passes over the check sums, and would read flipped bits as weights
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except DamagedError:
        raise
    except pickle.UnpicklingError:
        raise DamagedError(
            f"{path}: refused: it holds more than tensors and plain values, so reading it could run code"
        ) from None
    except Exception as error:  # what a damaged file makes the readers raise is anyone's guess
        reason = "truncated or damaged" if data else "empty"
        raise DamagedError(f"{path}: {reason} ({type(error).__name__}); use an earlier checkpoint of the run") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}); use an earlier checkpoint of the run") from None
    except MemoryError:
        raise DamagedError(f"{path}: larger than this machine's memory; use an earlier checkpoint of the run") from None


def _find_excess(data: bytes) -> str:
    """Say what in an archive would take more time or memory than any checkpoint does; empty where nothing would."""
    # the number of parts from where it stands: listing a million takes a minute
    end = data.rfind(b"PK\5\6")
    large = data.rfind(b"PK\6\6", 0, max(end, 0))
    count = int.from_bytes(data[end + 10 : end + 12], "little") if end >= 0 else 0
    if count == 0xFFFF and large >= 0:
        count = int.from_bytes(data[large + 32 : large + 40], "little")
    if count > _MAX_PARTS:
        return f"{count} parts, and at most {_MAX_PARTS} are possible"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:  # what is small here could be large there
                return f"{part.filename}: compressed, which torch does not do"
            if part.filename.endswith(".pkl") and part.file_size > _MAX_LIST:
                return f"{part.filename}: {part.file_size} bytes, and at most {_MAX_LIST} are possible"
    return ""


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Checkpoints:
    """The checkpoints of a run, which all ranks write and read together.

    Args:
        folder: where they lie; ranks that do not see rank 0's send it their part.
        group: the processes that train.
        keep: how many of the last ones are kept, beside the best one and that of the policy that has passed once.
    """

    def __init__(self, folder: Path, group: Group, keep: int = 5) -> None:
        self.folder, self._group, self._keep = folder, group, keep
        self._visible = self._is_visible()
        self._merits: dict[int, Merit] = {}

    def path(self, iteration: int) -> Path:
        """Where the checkpoint after so many iterations lies."""
        return self.folder / f"model_{iteration:06d}.pt"

    def begin(self, iteration: int) -> None:
        """Clear the way for a run that goes on from here.

        What a killed process left half written is removed.  Checkpoints of later iterations, of a future that was given up or
        damaged, move to `superseded`, so that the newest one is always of this run.
        """
        self._group.lead(lambda: self._begin(iteration))

    def save(self, learner: dict, envs: dict[str, Tensor], first: int, mean_reward: float = math.nan) -> Path:
        """Write one; every rank calls it.

        Args:
            learner: its state, with `iter` and `infos`; rank 0's is written.
            envs: this rank's robots, each (N, ...); none where they are lost, and whoever goes on begins with fresh ones.
            first: the global id of the first of them.
            mean_reward: of the episodes since the checkpoint before.

        Raises:
            CheckpointError: it cannot be written; those before are untouched.
        """
        iteration, group = int(learner["iter"]), self._group
        path, name = self.path(iteration), f"envs_{iteration:06d}_{group.rank}_of_{group.size}.pt"
        part = {"name": name, "first": first, "envs": envs}
        try:
            if self._visible:
                shards = group.gather(group.together(lambda: self._write(part)))
            else:
                if group.rank:
                    group.send(pack(part), 0)
                shards = group.lead(lambda: self._write_all(part))
            shards = [shard for shard in shards if shard]
            infos = (learner.get("infos") or {}) | {"mean_reward": mean_reward}
            group.lead(lambda: self._commit(path, learner | {"infos": infos, "shards": shards, "format": FORMAT}))
        except CheckpointError:
            group.lead(lambda: self._discard(iteration))
            raise
        return path

    def note_verified(self, iteration: int) -> None:
        """Note in a checkpoint that a training has passed with its policy, which makes it the best; every rank calls it.

        Raises:
            CheckpointError: it is gone, damaged, or cannot be written.
        """
        path = self.path(iteration)
        note = lambda state: self._commit(path, state | {"infos": state["infos"] | {"verified": True}})  # noqa: E731
        self._group.lead(lambda: note(read(path)))

    def read_envs(self, path: Path, state: dict, env_ids: range) -> list[tuple[int, dict[str, Tensor]]]:
        """Read the saved robots among `env_ids`, as (first global id, each (n, ...)); shards that are gone are left out.

        Args:
            path: of the checkpoint; every rank asks, each for its own robots.
            state: what `read` gave of it.
            env_ids: global ids.

        Raises:
            CheckpointError: a shard is damaged, or of another version of this package.
        """
        shards = list(state.get("shards") or [])
        if shards and (found := state.get("format", 1)) != FORMAT:
            raise CheckpointError(
                f"{path}: its robots were saved by another version of embodied_rl (format {found}, this one goes on from "
                f"{FORMAT}); go on with that version, or train anew: `eval`, `play` and `export` take its policy as it is"
            )
        if self._visible:
            return self._group.together(lambda: list(self._parts(path, shards, env_ids)))
        wanted = self._group.gather(env_ids)
        if self._group.rank:
            found = self._group.receive(0)
        else:  # rank by rank, so that no more than one part is in memory
            found = self._packed_parts(path, shards, wanted[0])
            for rank in range(1, self._group.size):
                self._group.send(self._packed_parts(path, shards, wanted[rank]), rank)

        def opened() -> list[tuple[int, dict[str, Tensor]]]:
            if isinstance(found, CheckpointError):
                raise found
            return [(first, unpack(envs)) for first, envs in found]

        return self._group.together(opened)

    def _is_visible(self) -> bool:
        """Whether every rank sees rank 0's folder."""
        if self._group.size == 1:
            return True
        token = self._group.lead(lambda: uuid.uuid4().hex)
        file = self.folder / f".{token}"
        with suppress(OSError):  # a full disk holds an empty file more, or the ranks send
            if self._group.rank == 0:
                file.touch()
        self._group.gather(None)
        visible = all(self._group.gather(file.exists()))
        if self._group.rank == 0:
            file.unlink(missing_ok=True)
        return visible

    def _write(self, part: dict) -> dict:
        """Write a shard, where there are robots; its line in the manifest."""
        if not part["envs"]:
            return {}
        digest = save(self.folder / part["name"], {"first": part["first"], "envs": part["envs"]})
        count = len(next(iter(part["envs"].values())))
        return {"name": part["name"], "sha256": digest, "first": part["first"], "count": count}

    def _write_all(self, own: dict) -> list[dict]:
        """Write rank 0's shard and those that the others send; all are received, come what may."""
        shards, failure = [], None
        for rank in range(self._group.size):
            part = unpack(self._group.receive(rank)) if rank else own
            try:
                if failure is None:
                    shards.append(self._write(part))
            except CheckpointError as error:
                failure = error
        if failure is not None:
            raise failure
        return shards

    def _commit(self, path: Path, state: dict) -> None:
        """Write what stands for the whole, and only then let go of older ones."""
        save(path, state)
        self._merits[int(state["iter"])] = merit(state)
        best = max(self._merits, key=lambda iteration: (self._merits[iteration], iteration))
        candidate = (state.get("infos") or {}).get("candidate")
        for iteration in sorted(self._merits)[: -self._keep]:
            if iteration not in (best, candidate):
                with suppress(OSError):
                    self.path(iteration).unlink(missing_ok=True)  # first: what is left is no checkpoint
                    del self._merits[iteration]
                    self._discard(iteration)

    def _discard(self, iteration: int) -> None:
        """Remove the shards of a checkpoint that does not stand."""
        if not self.path(iteration).exists():
            for shard in self.folder.glob(f"envs_{iteration:06d}_*.pt"):
                _remove(shard)

    def _begin(self, iteration: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: no folder, and none can be made ({error.strerror}); move it away") from None
        for leftover in self.folder.glob("*.tmp"):
            _remove(leftover)
        models = {of: path for path in self.folder.glob("model_*.pt") if (of := _iteration_of(path)) is not None}
        for shard in self.folder.glob("envs_*.pt"):
            if (found := re.match(r"envs_(\d+)_", shard.name)) and int(found[1]) not in models:
                _remove(shard)
        for of, path in models.items():
            if of > iteration:
                self._set_aside(path, of)
            else:
                with suppress(CheckpointError):
                    state = read(path)
                    if "shards" in state:  # a stranger's file is not ours to remove
                        self._merits[of] = merit(state)

    def _set_aside(self, path: Path, iteration: int) -> None:
        """Move a checkpoint, and its shards, to where none is looked for."""
        aside = self.folder / "superseded"
        try:
            aside.mkdir(exist_ok=True)
            for file in (path, *self.folder.glob(f"envs_{iteration:06d}_*.pt")):
                file.replace(aside / file.name)
        except OSError as error:
            raise CheckpointError(
                f"{path}: of a later iteration than this run goes on from, and cannot be moved to {aside} ({error.strerror}); "
                "move one of them away"
            ) from None
        log.warning("%s: of a later iteration than this run goes on from; moved to %s", path, aside)

    def _parts(self, path: Path, shards: list[dict], env_ids: range) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Find what shards hold of some robots."""
        for shard in shards:
            first, count = int(shard["first"]), int(shard["count"])
            begin, end = max(first, env_ids.start), min(first + count, env_ids.stop)
            file = path.parent / Path(shard["name"]).name
            if begin < end and file.is_file():
                data = _read_bytes(file)
                if hashlib.sha256(data).hexdigest() != shard["sha256"]:
                    raise DamagedError(
                        f"{file}: damaged (another hash than {path.name} says); use an earlier checkpoint of the run, or remove "
                        "the file, and its robots start fresh"
                    )
                envs = _robots(file, _load(file, data), count)
                yield from _sound(file, begin, {name: value[begin - first : end - first] for name, value in envs.items()})

    def _packed_parts(self, path: Path, shards: list[dict], env_ids: range) -> list[tuple[int, bytes]] | CheckpointError:
        try:
            return [(first, pack(envs)) for first, envs in self._parts(path, shards, env_ids)]
        except CheckpointError as error:
            return error


def _robots(file: Path, content: Any, count: int) -> dict[str, Tensor]:
    """Take the robots out of a shard's content, each (count, ...)."""
    envs = content.get("envs") if isinstance(content, dict) else None
    if not isinstance(envs, dict) or not envs:
        raise damaged(file, "it holds no robots")
    for name, value in envs.items():
        rows = value.shape[0] if isinstance(value, Tensor) and value.dim() else 0
        if rows != count:
            raise damaged(file, f"envs.{name}: {rows} robots, and its checkpoint says {count}")
        if is_stretched(value):
            raise damaged(file, f"envs.{name}: shape {tuple(value.shape)}, and the file holds less")
        if name in _AGES and bool((value < 0).any()):
            raise damaged(file, f"envs.{name}: below 0, and it counts steps")
    return envs


def _sound(file: Path, first: int, envs: dict[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Leave out robots with a state that is not finite, of what is simulated and seen; they start fresh."""
    good = torch.ones(len(next(iter(envs.values()))), dtype=torch.bool)
    for name, value in envs.items():
        if name.startswith(("physics.", "obs.", "policy.")) and value.is_floating_point():
            finite = value.isfinite().flatten(1).all(1) if value.dim() > 1 else value.isfinite()
            if not bool(finite.all()):
                log.warning("%s: %s of %d robots is not finite; they start fresh", file, name, int((~finite).sum()))
            good &= finite
    if bool(good.all()):
        runs = [(0, len(good))]
    else:
        edges = torch.nn.functional.pad(good.int(), (1, 1)).diff().nonzero().flatten().tolist()
        runs = list(zip(edges[::2], edges[1::2], strict=True))
    for begin, end in runs:
        yield first + begin, {name: value[begin:end].clone() for name, value in envs.items()}


def _remove(leftover: Path) -> None:  # a folder is a person's, and stays
    if leftover.is_symlink() or not leftover.is_dir():
        leftover.unlink(missing_ok=True)


def _iteration_of(path: Path) -> int | None:
    found = re.fullmatch(r"model_(\d+)\.pt", path.name)
    return int(found[1]) if found else None
