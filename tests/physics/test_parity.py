"""Every engine against mj_step, robot by robot: 200 random states and controls, outputs poisoned first.

Tolerances and what explains an outlier are benchmarks/parity/engines.py's, where they are justified.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

PAIRS = 200
MODULES = {"native": "mujoco", "warp": "mujoco_warp", "mjx": "mujoco.mjx"}


CASES = [
    # engine, robot, collisions, solver, share of outliers that their reason may take, and which reasons there may be
    ("native", "go2", "full", "page", 0.0, ()),
    ("native", "go1", "full", "page", 0.0, ()),
    ("native", "a1", "full", "page", 0.0, ()),
    ("native", "anymal_c", "full", "page", 0.0, ()),
    ("warp", "go2", "full", "converged", 0.0, ()),
    ("warp", "go2", "feet", "page", 0.01, ("cut short",)),
    ("warp", "go1", "full", "converged", 0.08, ("steep capsule", "rounding")),
    pytest.param("warp", "go1", "full", "elliptic", 0.0, (), marks=pytest.mark.slow),
    pytest.param("warp", "go1", "feet", "page", 0.02, ("cut short",), marks=pytest.mark.slow),
    pytest.param("warp", "go2", "full", "page", 0.12, ("cut short",), marks=pytest.mark.slow),
    # what mjx compiles for a whole robot takes a minute; test_engines.py holds a small machine against mj_step
    pytest.param("mjx", "go2", "feet", "page", 0.0, (), marks=pytest.mark.slow),
    pytest.param("mjx", "go1", "feet", "page", 0.0, (), marks=pytest.mark.slow),
    pytest.param("mjx", "go2", "full", "converged", 0.08, ("edge", "rounding"), marks=pytest.mark.slow),
]


def check(parity: ModuleType, engine: str, robot: str, device: str, collisions: str, solver: str) -> tuple[float, set[str]]:
    """Share of the outliers and their reasons; whatever has none fails."""
    pytest.importorskip(MODULES[engine])
    overrides = {"page": (), "converged": parity.CONVERGED, "elliptic": (*parity.CONVERGED, "physics.cone=elliptic")}[solver]
    comparison = parity.compare(engine, robot, device, PAIRS, collisions, overrides)
    # the pairs show what they are meant to: contacts, flight, saturated motors
    touching = comparison.expected["foot_contact"].any(1).mean()
    assert 0.1 < touching < 0.9
    torque = np.abs(comparison.expected["joint_torque"]) / np.array(comparison.scene.robot.effort_limit)
    assert torque.max() <= 1.0 + 1e-9 and (torque > 1.0 - 1e-9).mean() > 0.05
    assert all(np.isfinite(error).all() for error in comparison.errors.values())
    unexplained = {
        index: {n: e[index] for n, e in comparison.errors.items()} for index, why in comparison.reasons.items() if not why
    }
    assert unexplained == {}
    return len(comparison.outliers) / PAIRS, set(comparison.reasons.values())


@pytest.mark.parametrize(("engine", "robot", "collisions", "solver", "share", "reasons"), CASES)
def test_a_control_step_equals_mj_step(
    parity: ModuleType, engine: str, robot: str, collisions: str, solver: str, share: float, reasons: tuple[str, ...]
) -> None:
    outliers, why = check(parity, engine, robot, "cpu", collisions, solver)
    assert outliers <= share and why <= set(reasons)


@pytest.mark.gpu
@pytest.mark.parametrize("robot", ["go2", "go1"])
def test_a_control_step_on_the_gpu_equals_mj_step(parity: ModuleType, robot: str) -> None:
    outliers, why = check(parity, "warp", robot, "cuda", "full", "converged")
    assert outliers <= 0.08 and why <= {"steep capsule", "rounding"}


def test_an_error_is_seen(parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds what it is there to find: an output that is not filled, a contact that is missed, a wrong torque."""
    step = parity._engine_step

    def wrong(physics: object, pairs: object) -> dict[str, np.ndarray]:
        found = step(physics, pairs)
        found["frame_pos"][3] = np.inf
        found["foot_contact"][5, 0] = 1.0 - found["foot_contact"][5, 0]
        found["joint_torque"][7, 2] += 2 * parity.TOLERANCES["joint_torque"]
        found["qvel"][9, 4] = np.nan
        return found

    monkeypatch.setattr(parity, "_engine_step", wrong)
    comparison = parity.compare("native", "go2", "cpu", 12)
    assert comparison.outliers.tolist() == [3, 5, 7, 9]


def test_a_difference_that_hangs_on_rounding_is_told_from_one_that_does_not(parity: ModuleType) -> None:
    comparison = parity.compare("native", "go2", "cpu", 2, "feet", parity.CONVERGED)
    scene, settings, pairs = comparison.scene, comparison.settings, comparison.pairs
    stance = torch.tensor(scene.model.qpos0, dtype=torch.float32)
    stance[list(scene.qpos_address)] = torch.tensor(scene.robot.default_joint_pos)
    stance[2] -= parity._lowest(scene.model, stance.double().numpy())
    pairs.qvel.zero_()
    pairs.ctrl[:] = stance[list(scene.qpos_address)]

    def feet(gap: float) -> list[float]:
        pairs.qpos[:] = stance
        pairs.qpos[:, 2] += gap
        return parity.mj_step(scene, settings, *parity._row(pairs, 0))["foot_contact"].tolist()

    # feet that fall from a height where they begin to touch in this substep and not in the next, to the last bit of float32
    low, high = 0.0, 0.05
    while (middle := 0.5 * (low + high)) not in (low, high) and high - low > 1e-8:
        low, high = (middle, high) if feet(middle) == feet(low) else (low, middle)
    assert feet(low) != feet(high)
    feet(low)
    assert parity.explanation(comparison, 0) == "rounding"
    feet(0.05)
    assert parity.explanation(comparison, 0) == ""


def test_the_table_has_a_row_for_each_measurement(parity: ModuleType) -> None:
    comparison = parity.compare("native", "go2", "cpu", 4)
    result = parity.measure("native", "go2", "cpu", comparison, "full")
    head, rule, row = (line.split(" | ") for line in parity.table([result]).splitlines())
    assert len(head) == len(rule) == len(row)
    assert "native" in row[0] and row[1] == "go2 full" and row[-1].startswith("0")
    assert set(result["errors"]) == set(parity.TOLERANCES)
