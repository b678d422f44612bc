"""The little of torch that the worker uses, on NumPy: see README.md."""

import numpy

__version__ = "stand-in"
float32 = numpy.float32


class Tensor:
    """An array, and what the worker does with one."""

    def __init__(self, array):
        self.array = array

    def copy_(self, other):
        assert other.array.shape == self.array.shape, (other.array.shape, self.array.shape)
        self.array[...] = other.array
        return self

    def cpu(self):
        return self

    def to(self, device):
        assert device == "cpu", device
        return self

    def numpy(self):
        return self.array


def from_numpy(array):
    return Tensor(array)


def zeros(shape, dtype, device):
    assert device == "cpu", device
    return Tensor(numpy.zeros(shape, dtype))
