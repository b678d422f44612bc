"""What owners remember: names, what begins anew with an episode, and names that clash."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from embodied_rl.errors import UserError
from embodied_rl.mdp.state import Memory, State, where

CPU = torch.device("cpu")


def test_every_part_is_a_tensor_of_its_owner_and_of_the_memory() -> None:
    memory = Memory(3, CPU)
    owner = SimpleNamespace(state={"way": State(), "gait": State((2, 4)), "seen": State(dtype=torch.bool)})
    memory.add("rewards.drift", owner)
    memory.add("", alone := SimpleNamespace(state={"age": State(dtype=torch.int64)}))
    memory.add("rewards.plain", SimpleNamespace())  # remembers nothing
    assert list(memory.tensors) == ["rewards.drift.way", "rewards.drift.gait", "rewards.drift.seen", "age"]
    assert [(one.shape, one.dtype) for one in memory.tensors.values()] == [
        ((3,), torch.float32), ((3, 2, 4), torch.float32), ((3,), torch.bool), ((3,), torch.int64)
    ]  # fmt: skip
    assert owner.gait is memory.tensors["rewards.drift.gait"] and alone.age is memory.tensors["age"]
    assert not any(one.any() for one in memory.tensors.values())


def test_owners_of_one_kind_do_not_share_their_memory() -> None:
    class Drift:
        state = {"way": State()}  # noqa: RUF012  as terms declare it

    memory, first, second = Memory(2, CPU), Drift(), Drift()
    memory.add("rewards.a", first)
    memory.add("rewards.b", second)
    first.way.add_(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    assert memory.tensors["rewards.a.way"].tolist() == [1.0, 1.0] and not memory.tensors["rewards.b.way"].any()


def test_an_episode_begins_with_zeros_or_with_what_was_kept() -> None:
    memory = Memory(3, CPU)
    kinds = {"fresh": State((2,)), "flag": State(dtype=torch.bool), "kept": State((2,), fresh="keep")}
    owner = SimpleNamespace(state=kinds)
    memory.add("events.one", owner)
    for part in kinds:
        getattr(owner, part).fill_(1)
    address = owner.fresh.data_ptr()
    memory.begin(torch.tensor([False, True, False]))
    assert owner.fresh.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]] and owner.flag.tolist() == [True, False, True]
    assert owner.kept.tolist() == [[1.0, 1.0]] * 3
    assert owner.fresh.data_ptr() == address  # a graph reads it there


@pytest.mark.parametrize("taken", ["update", "state"])
def test_a_part_with_the_name_of_something_else_is_one_line(taken: str) -> None:
    owner = SimpleNamespace(update=len, state={taken: State()})
    with pytest.raises(UserError) as error:
        Memory(2, CPU).add("rewards.drift", owner)
    assert str(error.value) == f"rewards.drift: its state {taken!r} has the name of another attribute; rename one of them"


def test_one_name_twice_is_one_line() -> None:
    memory = Memory(2, CPU)
    memory.add("rewards.drift", SimpleNamespace(state={"way": State()}))
    with pytest.raises(UserError, match=r"^rewards\.drift: its state 'way' has the name of another attribute"):
        memory.add("rewards.drift", SimpleNamespace(state={"way": State()}))


def test_rows_are_chosen_whatever_the_shape() -> None:
    rows = torch.tensor([True, False])
    for shape in ((2,), (2, 3), (2, 3, 4)):
        chosen = where(rows, torch.ones(shape), torch.zeros(shape))
        assert chosen[0].all() and not chosen[1].any() and chosen.shape == shape
