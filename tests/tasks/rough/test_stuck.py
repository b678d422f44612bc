from __future__ import annotations

from types import SimpleNamespace

import torch

from embodied_rl.mdp.state import Memory
from embodied_rl.tasks.rough.terminations import stuck

DT = 0.1


def test_who_does_not_get_on_where_it_was_told_to_is_stuck() -> None:
    """One goes on, one turns around in place, one is told to stand, one is asked for too little."""
    term, memory = stuck(None, within=0.3, after_s=1.0, speed=0.3), Memory(4, torch.device("cpu"))
    memory.add("terminations.stuck", term)
    place = torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 0.0], [3.0, 3.0]])
    command = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.2, 0.0, 1.0]])

    def step(number: int) -> list[bool]:
        place[0, 0] += 0.05
        place[1] = torch.tensor([5.0, 5.0]) + 0.1 * torch.tensor([float(number % 2), 0.0])
        env = SimpleNamespace(robot=SimpleNamespace(base_pos_w=place), command=lambda name: command, step_dt=DT)
        term.update(env)  # pyright: ignore[reportArgumentType]
        return term(env).tolist()  # pyright: ignore[reportArgumentType]

    seen = [step(number) for number in range(14)]
    assert not any(any(one) for one in seen[:9]) and seen[12] == [False, True, False, False]
    memory.begin(torch.tensor([False, True, False, False]))
    assert not any(any(step(number)) for number in range(8))
    assert stuck.time_out  # pyright: ignore[reportAttributeAccessIssue]
