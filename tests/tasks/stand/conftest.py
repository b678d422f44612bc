"""The three robots with a pose command."""

from __future__ import annotations

import pytest
import torch

from embodied_rl.mdp.moment import Moment
from embodied_rl.tasks.stand.command import pose

# robot 2, rolled by 30 degrees to the right, is asked for just that
ASKED = [[0.28, 0.0, 0.0], [0.2, 0.1, -0.2], [0.3, torch.pi / 6, 0.0]]


@pytest.fixture
def moment(moment: Moment) -> Moment:
    asked = pose(moment.robot._part, height=(0.2, 0.32))
    asked.command = torch.tensor(ASKED)
    moment.commands = {"pose": asked}
    return moment
