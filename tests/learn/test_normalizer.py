from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rsl_rl.modules import EmpiricalNormalization

from embodied_rl.learn.normalizer import learn_statistics


def batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Far from zero, so that sums of squares would lose digits."""
    torch.manual_seed(seed)
    return [1e3 + 0.5 * k + (1.0 + k) * torch.randn(6, 50, 4) for k in range(count)]


def test_the_moments_are_those_of_everything_seen() -> None:
    normalizer, seen = EmpiricalNormalization(4), batches(5)
    for obs in seen:
        learn_statistics(normalizer, obs, torch.ones(6, 50))
    everything = torch.cat(seen).double().flatten(0, 1)
    torch.testing.assert_close(normalizer.mean, everything.mean(0).float(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(normalizer.std, everything.std(0, correction=0).float(), rtol=1e-5, atol=0.0)
    assert int(normalizer.count) == len(everything)


def test_rows_without_weight_are_not_seen() -> None:
    with_garbage, without = EmpiricalNormalization(4), EmpiricalNormalization(4)
    (obs,) = batches(1)
    weight = torch.ones(6, 50)
    weight[2, :10] = 0.0
    spoiled = torch.where(weight[..., None] > 0, obs, 1e6)
    learn_statistics(with_garbage, spoiled, weight)
    learn_statistics(without, obs, weight)
    assert all(torch.equal(a, b) for a, b in zip(with_garbage.buffers(), without.buffers(), strict=True))
    assert int(without.count) == 290


def test_a_graph_that_read_the_statistics_reads_the_new_ones() -> None:
    """rsl_rl's own update gives the deviation a new address."""
    normalizer = EmpiricalNormalization(4)
    before = {name: buffer.data_ptr() for name, buffer in normalizer.named_buffers()}
    learn_statistics(normalizer, batches(1)[0], torch.ones(6, 50))
    assert before == {name: buffer.data_ptr() for name, buffer in normalizer.named_buffers()}
    assert normalizer.mean.abs().min() > 900.0


def test_processes_learn_what_one_would() -> None:
    """Three processes with unequal shares, one thread each, that add up what they reduce."""
    (obs,) = batches(1)
    one, shares = EmpiricalNormalization(4), obs.split((13, 30, 7), dim=1)
    learn_statistics(one, obs, torch.ones(6, 50))
    meeting, pool = threading.Barrier(3), [torch.zeros(0)] * 3

    def process(rank: int) -> EmpiricalNormalization:
        def reduce(tensor: torch.Tensor) -> None:
            pool[rank] = tensor.clone()
            meeting.wait()
            tensor.copy_(torch.stack(pool).sum(0))
            meeting.wait()

        normalizer = EmpiricalNormalization(4)
        learn_statistics(normalizer, shares[rank], torch.ones(shares[rank].shape[:2]), reduce)
        return normalizer

    with ThreadPoolExecutor(3) as threads:
        several = list(threads.map(process, range(3)))
    for normalizer in several:
        for mine, theirs in zip(normalizer.buffers(), one.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0.0)
        assert all(torch.equal(a, b) for a, b in zip(normalizer.buffers(), several[0].buffers(), strict=True))


def test_nothing_is_learned_from_nothing() -> None:
    normalizer = EmpiricalNormalization(4)
    learn_statistics(normalizer, batches(1)[0], torch.zeros(6, 50))
    assert (
        int(normalizer.count) == 0 and torch.equal(normalizer.mean, torch.zeros(4)) and torch.equal(normalizer.std, torch.ones(4))
    )


def test_rows_without_weight_may_hold_anything() -> None:
    (obs,) = batches(1)
    weight = torch.ones(6, 50)
    weight[2, :10] = 0.0
    for odd in (float("nan"), float("inf"), 3e38):
        spoiled, without = EmpiricalNormalization(4), EmpiricalNormalization(4)
        learn_statistics(spoiled, torch.where(weight[..., None] > 0, obs, odd), weight)
        learn_statistics(without, obs, weight)
        assert all(torch.equal(a, b) for a, b in zip(spoiled.buffers(), without.buffers(), strict=True))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 1e30])
def test_a_batch_whose_sums_are_not_finite_is_left_out(odd: float) -> None:
    """1e30 is finite, and its square is not."""
    normalizer, expected = EmpiricalNormalization(4), EmpiricalNormalization(4)
    first, second = batches(2)
    for one in (normalizer, expected):
        learn_statistics(one, first, torch.ones(6, 50))
    second[3, 7, 1] = odd
    learn_statistics(normalizer, second, torch.ones(6, 50))
    assert all(torch.equal(a, b) for a, b in zip(normalizer.buffers(), expected.buffers(), strict=True))
