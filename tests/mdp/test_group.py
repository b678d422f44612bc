"""What happens to an observation between its term and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from embodied_rl.mdp.group import ObservationGroup, ObservationTerm
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.state import Memory

#: The greatest number that `random.uniform` gives.
LARGEST = 1.0 - 2.0**-24


def _term(name: str = "value", size: int = 2, **options) -> ObservationTerm:
    mirror = options.pop("mirror", "scalar")
    given = {"noise": None, "offset": 0.0, "dropout": 0.0, "scale": 1.0, "clip": None, "delay": (0, 0), "history": 1} | options
    for key in ("noise", "scale"):
        given[key] = None if given[key] is None else torch.tensor(given[key])

    def function(env):
        return env.values[name]

    function.mirror = mirror
    return ObservationTerm(name=name, path=f"observations.actor.{name}", function=function, params={}, size=size, **given)


class Harness:
    """A group whose terms' values are set by hand."""

    def __init__(self, terms: Sequence[ObservationTerm], count: int = 4) -> None:
        self.group = ObservationGroup("actor", list(terms))
        self.count, self.values = count, {}
        memory = Memory(count, torch.device("cpu"))
        for term in terms:
            memory.add(term.path, term)
        self.buffers = memory.tensors
        self.block = torch.rand(count, 64, generator=torch.Generator().manual_seed(0))

    def compute(self, values, *, fresh: Sequence[int] | None = (), noisy: bool = False) -> torch.Tensor:
        """`values`: a number for all, or a tensor, or a dict of them by term; `fresh`: rows, None to read only."""
        values = values if isinstance(values, dict) else {"value": values}
        sizes = {term.name: term.size for term in self.group.terms}
        whole = {n: torch.as_tensor(v).float().expand(self.count, sizes[n]) for n, v in values.items()}
        env = SimpleNamespace(values=whole, draw=Draw(self.block), num_envs=self.count)
        rows = None if fresh is None else torch.isin(torch.arange(self.count), torch.tensor(fresh, dtype=torch.int64))
        observed = self.group.compute(cast(Moment, env), noisy=noisy, fresh=rows)
        assert observed.shape == (self.count, self.group.size)
        self.used = env.draw.used
        return observed


ALL = (0, 1, 2, 3)


def test_terms_stand_side_by_side_in_the_pages_order():
    harness = Harness([_term("b", 1), _term("a", 2, scale=3.0)])
    assert harness.compute({"a": torch.tensor([1.0, 2.0]), "b": -5.0})[1].tolist() == [-5.0, 3.0, 6.0]
    assert harness.used == 0


def test_clip_bounds_the_value_before_its_scale():
    harness = Harness([_term(clip=(-1.0, 2.0), scale=0.25)])
    assert harness.compute(torch.tensor([-7.0, 7.0]))[0].tolist() == [-0.25, 0.5]


def test_noise_is_uniform_within_its_half_width_and_scaled_with_the_value():
    harness = Harness([_term(size=2, noise=0.3, scale=2.0)], count=20_000)
    noise = harness.compute(5.0, noisy=True) / 2.0 - 5.0
    assert harness.used == 2
    assert -0.3 <= noise.min() < -0.299 and 0.299 < noise.max() <= 0.3 + 1e-6
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), rtol=0, atol=0.005)
    torch.testing.assert_close(noise.var(0), torch.full((2,), 0.03), rtol=0.03, atol=0)  # 0.6^2 / 12
    assert torch.equal(harness.compute(5.0, noisy=False), torch.full((20_000, 2), 10.0))


def test_coarse_noise_has_256_values_in_the_same_range():
    harness = Harness([_term(size=50, noise=0.5, coarse=True)], count=64)
    noise = harness.compute(0.0, noisy=True)
    steps = ((noise / 0.5 + 1.0) * 128.0 - 0.5).round(decimals=3)
    assert torch.equal(steps, steps.round()) and 0 <= steps.min() < 4 and 251 < steps.max() <= 255
    assert len(steps.unique()) > 250 and abs(float(noise.mean())) < 0.01
    apart = noise - noise.mean(0)
    mixed = (apart.T @ apart / 64.0).fill_diagonal_(0.0).abs() / noise.var()
    assert mixed.max() < 0.6  # three come from one word, and know nothing of each other
    assert harness.used == 17


def test_an_offset_is_drawn_for_an_episode_and_is_all_numbers():
    harness = Harness([_term(size=3, offset=0.2, scale=2.0)], count=20_000)
    everybody = tuple(range(20_000))
    first = harness.compute(5.0, fresh=everybody, noisy=True) / 2.0 - 5.0
    assert harness.used == 1 and torch.equal(first, first[:, :1].expand(-1, 3))
    assert -0.2 <= first.min() < -0.199 and 0.199 < first.max() <= 0.2 + 1e-6 and abs(float(first.mean())) < 0.005
    harness.block = harness.block.flip(0)
    later = harness.compute(5.0, fresh=everybody[:10_000], noisy=True) / 2.0 - 5.0
    assert torch.equal(later[10_000:], first[10_000:]) and not torch.equal(later[:10_000], first[:10_000])
    last = harness.compute(5.0, fresh=None, noisy=False)  # what a time-out bootstraps from is seen through the same sensor
    torch.testing.assert_close(last / 2.0 - 5.0, later)


def test_numbers_that_are_missing_read_0_in_each_step_anew():
    harness = Harness([_term(size=30, noise=0.1, dropout=0.25, clip=(1.0, 9.0))], count=2000)
    seen = harness.compute(5.0, noisy=True)
    missing = seen == 1.0  # 0, within the clip
    assert abs(float(missing.float().mean()) - 0.25) < 0.01 and bool((seen[~missing] > 4.8).all())
    assert missing.float().mean(0).std() < 0.02 and harness.used == 30 + 30
    assert torch.equal(harness.compute(5.0, noisy=False), torch.full((2000, 30), 5.0))


def test_noise_comes_before_the_clip():
    harness = Harness([_term(noise=0.5, clip=(-1.0, 1.0))], count=500)
    noisy = harness.compute(1.0, noisy=True)
    assert noisy.max() == 1.0 and noisy.min() < 0.75


def test_every_term_has_noise_of_its_own():
    harness = Harness([_term("a", noise=1.0), _term("b", noise=1.0), _term("c")])
    observed = harness.compute({"a": 0.0, "b": 0.0, "c": 0.0}, noisy=True)
    assert harness.used == 4
    assert len(observed[:, :4].unique()) == 16 and not observed[:, 4:].any()


def test_history_puts_the_oldest_first():
    harness = Harness([_term(size=2, history=3)])
    first = harness.compute(torch.tensor([1.0, -1.0]), fresh=ALL)
    assert first[2].tolist() == [1.0, -1.0] * 3  # the past is filled with the present
    harness.compute(torch.tensor([2.0, -2.0]))
    assert harness.compute(torch.tensor([3.0, -3.0]))[2].tolist() == [1.0, -1.0, 2.0, -2.0, 3.0, -3.0]
    assert harness.compute(torch.tensor([4.0, -4.0]))[2].tolist() == [2.0, -2.0, 3.0, -3.0, 4.0, -4.0]


def test_history_keeps_the_noise_that_was_seen():
    harness = Harness([_term(size=1, history=2, noise=1.0)])
    seen = harness.compute(0.0, fresh=ALL, noisy=True)[:, 1]
    assert torch.equal(harness.compute(5.0)[:, 0], seen)


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_delay_shows_what_was_true_then(lag, history):
    harness = Harness([_term(size=1, delay=(lag, lag), history=history)])
    harness.compute(0.0, fresh=ALL)
    for step in range(1, 12):
        expected = [max(step - lag - back, 0) for back in range(history - 1, -1, -1)]
        assert harness.compute(float(step))[3].tolist() == expected


def test_delays_are_drawn_from_the_range_and_kept_for_the_episode():
    harness = Harness([_term(size=1, delay=(1, 4))], count=4000)
    harness.compute(0.0, fresh=range(4000))
    shown = torch.stack([harness.compute(float(step))[:, 0] for step in range(1, 9)])
    lags = torch.arange(1.0, 9.0)[5:, None] - shown[5:]
    assert torch.equal(lags[0], lags[1]) and torch.equal(lags[0], lags[2])
    values, counts = lags[0].unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0, 4.0] and counts.min() > 850
    # a new episode draws a new one, for its row alone
    harness.block = torch.full_like(harness.block, 0.9)
    harness.compute(100.0, fresh=[7])
    after = [harness.compute(float(step))[:, 0] for step in range(101, 106)]
    assert after[-1][7] == 101.0
    others = torch.arange(4000) != 7
    assert torch.equal(after[-1][others], 105.0 - lags[0][others])


def test_a_delay_reaches_into_the_episode_and_not_before_it():
    harness = Harness([_term(size=1, delay=(2, 2), history=2)])
    for step in range(5):
        harness.compute(float(step), fresh=ALL if step == 0 else ())
    observed = harness.compute(50.0, fresh=[1])
    assert observed.tolist() == [[2.0, 3.0], [50.0, 50.0], [2.0, 3.0], [2.0, 3.0]]
    assert harness.compute(51.0)[1].tolist() == [50.0, 50.0]
    harness.compute(52.0)
    assert harness.compute(53.0)[:2].tolist() == [[50.0, 51.0], [50.0, 51.0]]


def test_the_terminal_reading_advances_nothing():
    harness = Harness([_term(size=1, delay=(0, 3), history=2, noise=0.5)])
    harness.compute(0.0, fresh=ALL)
    for step in range(1, 6):
        before = {name: buffer.clone() for name, buffer in harness.buffers.items()}
        terminal = harness.compute(float(step), fresh=None)
        assert harness.used == 0  # neither noise nor delays are drawn
        for name, buffer in harness.buffers.items():
            assert torch.equal(buffer, before[name]), name
        assert torch.equal(terminal, harness.compute(float(step)))


@pytest.mark.parametrize("delay", [(1, 2), (3, 4)])
def test_the_greatest_random_number_is_the_greatest_delay(delay):
    harness = Harness([_term(size=1, delay=delay)])
    harness.block = torch.full_like(harness.block, LARGEST)
    harness.compute(0.0, fresh=ALL)
    for step in range(1, 9):
        observed = harness.compute(float(step))
    assert observed[0, 0] == 8.0 - delay[1]


def test_the_mirror_turns_every_value_of_a_history():
    harness = Harness([_term("a", 1), _term("v", 3, history=2, mirror="vector"), _term("j", 2, mirror="joints")])
    mirrors = {
        "scalar": (torch.arange(1), torch.ones(1)),
        "vector": (torch.arange(3), torch.tensor([1.0, -1.0, 1.0])),
        "joints": (torch.tensor([1, 0]), torch.tensor([-1.0, 1.0])),
    }
    obs = torch.arange(1.0, 10.0)
    expected = [1.0, 2.0, -3.0, 4.0, 5.0, -6.0, 7.0, -9.0, 8.0]
    index, sign = harness.group.mirror_map(lambda term: mirrors[term.function.mirror])
    assert (obs[index] * sign).tolist() == expected
