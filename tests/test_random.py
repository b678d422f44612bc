"""Random numbers: Random123's known answers, their distribution, and that nothing but the counter decides them."""

from __future__ import annotations

import math

import pytest
import torch

from embodied_rl import random

KEY = random.stream_key(1, "test")
IDS = torch.arange(2000)


def _word(value: int) -> torch.Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123, philox2x32 with 10 rounds
        ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = random.philox2x32(_word(counter[0]), _word(counter[1]), _word(key))
    assert tuple(int(word) for word in words) == expected


def _reference_philox(left: int, right: int, key: int) -> tuple[int, int]:
    """Philox2x32-10 on Python's integers, which do not wrap."""
    for _ in range(10):
        product = left * 0xD256D193
        left, right = (product >> 32) ^ key ^ right, product & 0xFFFFFFFF
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return left, right


def test_philox_broadcasts_and_equals_big_integers():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2**32, (3, 50), generator=generator)
    left, right = random.philox2x32(words[0][:, None], words[1][None, :], words[2][:, None])
    assert left.shape == right.shape == (50, 50)
    for i, j in ((0, 0), (3, 41), (49, 7), (20, 20)):
        expected = _reference_philox(int(words[0, i]), int(words[1, j]), int(words[2, i]))
        assert (int(left[i, j]), int(right[i, j])) == expected


def test_streams_differ_by_seed_and_purpose():
    keys = {int(random.stream_key(seed, purpose)) for seed in range(50) for purpose in ("step", "observe", "policy")}
    assert len(keys) == 150
    assert all(0 <= key < 2**32 for key in keys)


def test_uniform_fills_its_range_evenly():
    values = random.uniform(KEY, IDS, 3, 100)
    assert values.shape == (2000, 100) and values.dtype == torch.float32
    assert values.min() >= 0.0 and values.max() < 1.0
    values = values.double().flatten()
    # 2e5 draws: the standard error of the mean is 6.5e-4, of the variance 1.7e-4; four of them are allowed
    assert abs(values.mean() - 1 / 2) < 2.6e-3
    assert abs(values.var() - 1 / 12) < 7e-4
    counts = torch.histc(values, bins=64, min=0.0, max=1.0)
    chi_squared = ((counts - 3125.0) ** 2 / 3125.0).sum()
    assert 25 < chi_squared < 115  # 63 degrees of freedom: 1e-5 and 1 - 1e-4


def test_normal_has_the_normal_moments_and_quantiles():
    values = random.normal(KEY, IDS, 3, 101)
    assert values.shape == (2000, 101) and values.isfinite().all()
    values = values.double().flatten()
    # standard errors over 2e5 draws: 0.0022, 0.0031, 0.0055, 0.011
    assert abs(values.mean()) < 0.009
    assert abs(values.var() - 1.0) < 0.013
    assert abs((values**3).mean()) < 0.035
    assert abs((values**4).mean() - 3.0) < 0.09
    for threshold in (-2.0, -1.0, 0.0, 0.5, 1.5, 2.5):
        expected = 0.5 * math.erfc(-threshold / math.sqrt(2.0))
        assert abs((values < threshold).double().mean() - expected) < 0.005


def test_normal_survives_the_least_and_the_greatest_word(monkeypatch):
    edge = torch.tensor([[0, 0xFFFFFFFF]])
    monkeypatch.setattr(random, "philox2x32", lambda *counters: (edge, edge))
    assert random.normal(KEY, IDS[:1], 0, 4).isfinite().all()
    assert random.uniform(KEY, IDS[:1], 0, 4).max() < 1.0


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_envs_steps_slots_and_streams_are_uncorrelated(draw):
    def centred(values: torch.Tensor) -> torch.Tensor:
        return values.double() - values.double().mean()

    base = draw(KEY, IDS, 3, 40)
    others = {
        "next env": draw(KEY, IDS + 1, 3, 40),
        "next step": draw(KEY, IDS, 4, 40),
        "other stream": draw(random.stream_key(1, "tess"), IDS, 3, 40),
        "other seed": draw(random.stream_key(2, "test"), IDS, 3, 40),
        "next slot": base.roll(1, dims=1),
        "half the slots on": base.roll(20, dims=1),
    }
    for name, other in others.items():
        correlation = (centred(base) * centred(other)).mean() / base.double().var()
        assert abs(correlation) < 0.015, name  # 4 / sqrt(8e4)
        assert not torch.equal(base, other), name


def test_no_number_repeats():
    words = torch.stack(
        random.philox2x32(torch.arange(100)[None, :], torch.arange(100)[:, None], torch.zeros(1, 1, dtype=torch.int64))
    )
    # each pair of words is a permutation of its counter: no two of 10^4 are equal
    assert len(torch.unique(words.flatten(1), dim=1)[0]) == 10_000


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_a_row_does_not_depend_on_the_rows_beside_it(draw):
    steps = torch.arange(2000) * 7 % 900
    together = draw(KEY, IDS, steps, 9)
    rows = torch.tensor([1999, 3, 3, 1024])
    assert torch.equal(draw(KEY, IDS[rows], steps[rows], 9), together[rows])
    assert torch.equal(draw(KEY, IDS[5:6], int(steps[5]), 9), together[5:6])


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_large_ids_and_steps_are_as_good(draw):
    values = draw(KEY, IDS + (2**32 - 5000), torch.full_like(IDS, 2**31), 8)
    assert values.isfinite().all()
    assert len(values.unique()) > 15_500  # of 16000: 24 bits leave a few coincidences


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_no_product_is_left_to_32_bits(draw):
    """Inductor takes the numbers of an arange for indices, which a GPU counts in 32 bits; times the multiplier they need 64."""
    made = []

    def backend(module, inputs):
        made.append(module)
        return module.forward

    torch.compile(lambda key, ids, step: draw(key, ids, step, 33), fullgraph=True, backend=backend)(KEY, IDS, IDS)
    (module,) = made

    def is_index(node):
        """Whether it is an arange, but for its shape."""
        if not isinstance(node, torch.fx.Node) or node.op not in ("call_function", "call_method"):
            return False
        name = getattr(node.target, "__name__", str(node.target))
        return name == "arange" or (name in ("getitem", "unsqueeze", "view", "expand") and is_index(node.args[0]))

    products = [node for node in module.graph.nodes if getattr(node.target, "__name__", "") == "mul"]
    assert len(products) >= 20 and not any(is_index(part) for node in products for part in node.args)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_compiled_equals_eager(draw):
    ages = torch.arange(2000) % 37
    compiled = torch.compile(lambda key, ids, step: draw(key, ids, step, 33), fullgraph=True, dynamic=False)
    for key in (KEY, random.stream_key(5, "other")):
        expected, found = draw(key, IDS, ages, 33), compiled(key, IDS, ages)
        # the integers are exact; the compiler's own logarithm and sine differ in the last bits
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0 if draw is random.uniform else 2e-6)
