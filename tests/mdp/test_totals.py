from __future__ import annotations

import torch

from embodied_rl.mdp.totals import Totals


def test_numbers_and_wholes_of_a_share_go_to_the_name_that_a_robot_counts_for() -> None:
    totals = Totals(["steps", "error/e"], [["a"], ["x", "y", "z"]], 4, torch.device("cpu"))
    totals.columns.copy_(
        torch.tensor(
            [
                [1.0, 0.5, 2.0, 4.0, 1.0, 1.0],
                [1.0, 0.5, 2.0, 4.0, 0.0, 1.0],
                [1.0, 0.0, 1.0, 1.0, 1.0, 1.0],
                [1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
            ]
        )
    )
    totals.cells.copy_(torch.tensor([[0, 2], [0, 2], [0, 0], [0, 1]]))
    totals.add()
    kept = totals.save()
    totals.add()
    twice = totals.drain()
    assert twice == {
        "steps": 8.0,
        "error/e": 2.0,
        "share/a": 10.0,
        "share_of/a": 20.0,
        "share/x": 2.0,
        "share_of/x": 2.0,
        "share/y": 0.0,
        "share_of/y": 0.0,
        "share/z": 2.0,
        "share_of/z": 4.0,
    }
    assert set(totals.drain().values()) == {0.0}
    totals.load(kept)
    assert totals.drain() == {name: value / 2 for name, value in twice.items()}


def test_without_shares_there_are_none() -> None:
    totals = Totals(["steps"], [], 3, torch.device("cpu"))
    totals.columns.fill_(1.0)
    totals.add()
    assert totals.drain() == {"steps": 3.0}
