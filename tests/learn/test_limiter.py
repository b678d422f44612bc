"""The limiter: neither side runs away, and never do both stand still."""

from __future__ import annotations

import random

import pytest

from embodied_rl.errors import UserError
from embodied_rl.learn.limiter import Limiter


def test_no_setting_that_is_allowed_lets_both_sides_wait() -> None:
    draw = random.Random(0)
    refused = 0
    for _ in range(1000):
        batch, fragment, warm_up = draw.randint(1, 512), draw.randint(1, 5000), draw.randint(0, 10_000)
        ratio = 10.0 ** draw.uniform(-3.0, 3.0)
        step = batch + fragment * ratio
        tolerance = draw.choice([None, step * draw.uniform(0.3, 3.0)])
        try:
            limiter = Limiter(ratio, batch=batch, fragment=fragment, warm_up=warm_up, tolerance=tolerance)
        except UserError:
            assert tolerance is not None and 2.0 * tolerance < step
            refused += 1
            continue
        for _ in range(300):
            rows = draw.randint(1, fragment)
            able = [limiter.may_insert(fragment), limiter.may_draw()]
            assert any(able)
            if able[0] and (not able[1] or draw.random() < 0.5):
                limiter.inserted += rows
            else:
                limiter.drawn += batch
            if limiter.inserted >= limiter.warm_up + fragment:
                assert -limiter.tolerance <= limiter.lead <= limiter.tolerance + fragment * ratio
    assert 20 < refused < 400


def test_a_band_too_narrow_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(
        UserError, match=r"sac.insert_tolerance: 100: .* of 256 rows, .* 64 .* samples_per_insert: 8, are 768, .* at least 384"
    ):
        Limiter(8.0, batch=256, fragment=64, warm_up=1000, tolerance=100.0)


def test_nothing_is_drawn_before_the_warm_up_nor_after_a_new_beginning() -> None:
    limiter = Limiter(2.0, batch=8, fragment=4, warm_up=20)
    assert not limiter.may_draw() and limiter.may_insert(4)
    limiter.inserted = 20
    assert limiter.may_draw()
    limiter.drawn = 16
    assert not limiter.may_draw() and limiter.may_insert(4)
    limiter.begin_anew()
    limiter.inserted = 19
    assert not limiter.may_draw()
