"""Tests that need a GPU run on one that is played, where there is none; see played_gpu/played_gpu.py for what that shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def run(*command: str) -> str:
    """What it prints, in a process that has the played GPU."""
    path = os.pathsep.join(filter(None, (str(TESTS / "played_gpu"), os.environ.get("PYTHONPATH"))))
    given = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=TESTS.parent, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def pytest_on_it(*arguments: str) -> None:
    said = run("-m", "pytest", "-p", "played_gpu", "-p", "no:cacheprovider", "-q", "-m", "gpu", *arguments)
    assert " passed" in said and "skipped" not in said, said[-2000:]


PLAY = """
import played_gpu, copy, torch
from played_tensors import PlayedTensor, waits

def refused(function, match):
    try:
        function()
    except RuntimeError as error:
        assert match in str(error), error
    else:
        raise AssertionError(match)

def captured(function):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph

given, out, count = torch.arange(3.0, device="cuda"), torch.zeros(3, device="cuda"), 2.0
assert given.device == torch.device("cuda", 0) and given.tolist() == [0.0, 1.0, 2.0]

# devices
refused(lambda: given + torch.zeros(3), "two devices, cuda:0 and cpu")
refused(lambda: torch.nn.Linear(3, 2).to("cuda")(torch.zeros(1, 3)), "two devices")
assert (given + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0] and given[[2, 0]].tolist() == [2.0, 0.0]
assert torch.empty(2, pin_memory=True)[1:].is_pinned() and not torch.empty(2).is_pinned()

# a capture does nothing; its graph has the numbers of the capture, and the memory
graph = captured(lambda: out.copy_(given * count + 1.0))
assert out.tolist() == [0.0, 0.0, 0.0]
given.fill_(5.0); count = 100.0; graph.replay()
assert out.tolist() == [11.0, 11.0, 11.0]
given = torch.ones(3, device="cuda"); graph.replay()
assert out.tolist() == [11.0, 11.0, 11.0]

# what a capture refuses
generator = torch.Generator("cuda")
for what, match in (
    (lambda: given.sum().item(), "not permitted when stream is capturing"),
    (lambda: given.cpu(), "not permitted"),
    (lambda: given[given > 0.0], "not permitted"),
    (lambda: torch.cuda.synchronize(), "not permitted"),
    (lambda: given.copy_(torch.ones(3)), "unless the CPU tensor is pinned"),
    (lambda: torch.tensor(1.0, device="cuda"), "unless the CPU tensor is pinned"),
    (lambda: given.uniform_(generator=generator), "generator that is not registered"),
):
    refused(lambda: captured(what), match)
captured(lambda: given.copy_(torch.ones(3, pin_memory=True)))
captured(lambda: given.__setitem__(given > 0.0, 2.0))

# waiting is counted
before = waits.count
given.sum().item(), given.cpu(), (given + 1.0).sum()
assert waits.count == before + 2

# gradients, an optimizer, generators and copies are those of the CPU
torch.manual_seed(0)
here = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ELU(), torch.nn.Linear(4, 1))
there, seen = copy.deepcopy(here).to("cuda"), torch.randn(5, 3)
assert all(isinstance(one, PlayedTensor) and one.is_leaf for one in there.parameters())
for net, values in ((here, seen), (there, seen.to("cuda"))):
    step = torch.optim.Adam(net.parameters(), fused=True)
    for _ in range(3):
        step.zero_grad(); net(values).square().sum().backward(); step.step()
for one, other in zip(here.parameters(), copy.deepcopy(there).parameters()):
    assert torch.equal(one, other.cpu())
assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(7)),
                   torch.empty(3, device="cuda").uniform_(generator=generator.manual_seed(7)).cpu())
for kind in (torch.nn.GRU, torch.nn.LSTM):
    here, answers = kind(3, 4, 2), []
    there = copy.deepcopy(here).to("cuda")
    for net in (here, there):
        answer = net(seen[:, None].to("cuda") if net is there else seen[:, None])[0]
        answers.append((answer, torch.autograd.grad(answer.square().sum(), list(net.parameters()))))
    torch.testing.assert_close(answers[0][0], answers[1][0].cpu())
    for one, other in zip(answers[0][1], answers[1][1]):
        torch.testing.assert_close(one, other.cpu())
print("as it should be")
"""


def test_it_is_played_well() -> None:
    assert run("-c", PLAY).strip().endswith("as it should be")


def test_learners_and_terms_on_it() -> None:
    some = "(soft and prioritized) or terms or (learns_what and true)"
    pytest_on_it("tests/learn/test_gpu.py", "tests/mdp/test_bind.py", "-k", some)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["learn", "mdp", "physics", "played_gpu", "pools", "test_cuda_graph.py", "test_step_path.py"])
def test_all_that_need_a_gpu_pass_on_it(where: str) -> None:
    pytest.importorskip("mujoco_warp")
    pytest_on_it(f"tests/{where}")
