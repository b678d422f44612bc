"""Between the simulator's tensors and torch's: see README.md."""

from torch import Tensor

from isaacgym.gymapi import GymError
from isaacgym.gymapi import Tensor as GymTensor


def wrap_tensor(tensor):
    return Tensor(tensor.array)


def unwrap_tensor(tensor):
    if not tensor.array.flags.c_contiguous:
        raise GymError("Input tensor must be contiguous")
    return GymTensor(tensor.array)
