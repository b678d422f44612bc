"""The three robots with a velocity command: the last of them is asked to stand."""

from __future__ import annotations

import pytest
import torch

from embodied_rl.mdp.moment import Moment
from embodied_rl.tasks.velocity.command import velocity


@pytest.fixture
def moment(moment: Moment) -> Moment:
    asked = velocity(moment.robot._part, gait_frequency=2.0)
    asked.command = torch.tensor([[1.0, 0.0, 0.0], [0.5, -0.5, 0.2], [0.05, 0.0, 0.05]])
    asked.walks = torch.ones(3)
    asked.still = torch.tensor([0.0, 0.0, 0.2])  # the third robot has been told to stand for 0.2 s
    moment.commands = {"velocity": asked}
    return moment
