from __future__ import annotations

import itertools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from embodied_rl import machine
from embodied_rl.learn.cpu import perceptron


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    if reason := machine.cpp_error():
        pytest.skip(reason)


def mlp(*widths: int, activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), activation()]
    return nn.Sequential(*modules[:-1])


def frozen_of(module: nn.Module) -> perceptron.FrozenPerceptron:
    """The module with its present weights, by perceptron.cpp."""
    frozen = perceptron.FrozenPerceptron(module)
    assert frozen.fuses
    return frozen


@pytest.mark.parametrize("rows", [1, 7, 191, 192, 193, 1000])
@pytest.mark.parametrize("widths", [(47, 128, 128, 12), (60, 128, 128, 1), (3, 5), (1, 1, 1), (16, 24, 40, 8, 33)])
@pytest.mark.parametrize("activation", [nn.ELU, nn.ReLU, nn.Tanh])
@torch.no_grad()
def test_outputs_are_those_of_double_precision(activation: type[nn.Module], widths: tuple[int, ...], rows: int) -> None:
    frozen = frozen_of(mlp(*widths, activation=activation))
    x = 2.0 * torch.randn(rows, widths[0])
    exact = mlp(*widths, activation=activation).double()
    torch.testing.assert_close(frozen(x).double(), exact(x.double()), rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_columns_of_a_table() -> None:
    module = mlp(5, 8, 2)
    frozen, table = frozen_of(module), torch.randn(54, 11)
    torch.testing.assert_close(frozen(table[:, 3:8]), module(table[:, 3:8]), rtol=1e-5, atol=1e-6)
    flipped = table.T[:5].T.flip(0).T.contiguous().T  # no unit stride
    assert flipped.stride(-1) != 1
    torch.testing.assert_close(frozen(flipped), module(flipped), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "ends"), [(nn.ELU, [torch.inf, -1.0]), (nn.ReLU, [torch.inf, 0.0]), (nn.Tanh, [1.0, -1.0])]
)
def test_the_activation_from_end_to_end(activation: type[nn.Module], ends: list[float]) -> None:
    module = mlp(1, 1, 1, activation=activation)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float(parameter.dim() == 2))
        frozen = frozen_of(module)
        x = torch.cat((torch.linspace(-100.0, 12.0, 20_001), torch.tensor([-1e30, -1e-30, 0.0, 1e-30, 1e30])))[:, None]
        torch.testing.assert_close(frozen(x).double(), activation()(x.double()), rtol=2.5e-7, atol=1e-7)
        near = torch.linspace(-1e-3, 1e-3, 1001)[:, None]
        torch.testing.assert_close(frozen(near).double(), activation()(near.double()), rtol=5e-7, atol=1e-12)
        far = frozen(torch.tensor([[torch.inf], [-torch.inf], [torch.nan]]))[:, 0]
    assert far[:2].tolist() == ends and bool(far[2].isnan())


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ELU(alpha=0.5), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ELU()),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.ELU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)).double(),
    ],
    ids=["sigmoid", "mixed", "alpha", "ends in an activation", "no bias", "double"],
)
def test_what_it_does_not_know_stays_torchs(module: nn.Sequential) -> None:
    frozen, x = perceptron.FrozenPerceptron(module, helpers=1), torch.randn(5, 3).to(next(module.parameters()).dtype)
    frozen.refresh()
    assert perceptron.layers_of(module) == [] and torch.equal(frozen(x), module(x))


def test_without_a_compiler_it_stays_torchs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(machine, "cpp_error", lambda: "there is no C++ compiler: g++ is not on the PATH")
    perceptron.load_library.cache_clear()
    module = mlp(3, 4, 2)
    with caplog.at_level(logging.WARNING, "embodied_rl"):
        assert not perceptron.FrozenPerceptron(module).fuses
    perceptron.load_library.cache_clear()
    assert caplog.messages == [
        "there is no C++ compiler: g++ is not on the PATH: the networks are computed layer by layer, and updates take twice as "
        "long; `embodied-rl doctor` says more"
    ]


def test_a_source_that_does_not_build_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "perceptron.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(perceptron, "_SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    perceptron.load_library.cache_clear()
    module = mlp(3, 4, 2)
    assert not perceptron.FrozenPerceptron(module).fuses
    perceptron.load_library.cache_clear()
    assert "perceptron.cpp does not build" in caplog.text
    assert os.listdir(tmp_path / "cache" / "embodied_rl") == []


@pytest.mark.parametrize("rows", [1, 96, 97, 1000])
def test_frozen_answers_do_not_depend_on_helpers_or_on_the_rows_beside(rows: int) -> None:
    module = mlp(47, 128, 128, 12)
    alone, helped = perceptron.FrozenPerceptron(module), perceptron.FrozenPerceptron(module, helpers=3)
    x = torch.randn(rows, 60)[:, 5:52]  # rows apart
    with torch.no_grad():
        for network in (alone, helped):
            network.refresh()
        y = alone(x)
        torch.testing.assert_close(y, module(x), rtol=1e-5, atol=2e-6)
        for _ in range(50):
            assert torch.equal(helped(x), y)
        assert torch.equal(torch.cat([alone(part) for part in x.split(7)]), y)


def test_frozen_weights_are_those_of_the_last_refresh() -> None:
    module, x = mlp(4, 8, 2), torch.randn(3, 4)
    frozen = perceptron.FrozenPerceptron(module)
    with torch.no_grad():
        before = frozen(x)
        torch.testing.assert_close(before, module(x), rtol=1e-5, atol=1e-6)
        module.get_parameter("0.weight").mul_(2.0)
        assert torch.equal(frozen(x), before)
        frozen.refresh()
        torch.testing.assert_close(frozen(x), module(x), rtol=1e-5, atol=1e-6)


def test_many_threads_may_ask_at_once() -> None:
    module = mlp(47, 128, 128, 12)
    frozen, x = perceptron.FrozenPerceptron(module, helpers=2), torch.randn(1000, 47)
    frozen.refresh()
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        y = frozen(x)

        def ask(_: int) -> bool:
            with torch.no_grad():
                return torch.equal(frozen(x), y)

        assert all(threads.map(ask, range(200)))


def test_a_compiler_takes_it_whole() -> None:
    module, x = mlp(4, 8, 2), torch.randn(3, 4)
    frozen = perceptron.FrozenPerceptron(module)
    frozen.refresh()
    with torch.no_grad():
        compiled = torch.compile(lambda x: frozen(x + 1.0) * 2.0, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), 2.0 * module(x + 1.0), rtol=1e-5, atol=1e-6)
