from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from embodied_rl import paths
from embodied_rl.config import ConfigError, Entry, config_names, load, override
from embodied_rl.config.page import Page


@pytest.mark.parametrize("name", config_names())
def test_shipped_pages(name: str, tmp_path: Path) -> None:
    page = load(name)
    assert page.name == name
    assert page == load(paths.shipped("configs") / f"{name}.yaml")
    run = tmp_path / "config.yaml"
    run.write_text(page.to_yaml(), encoding="utf-8")
    assert load(run) == page
    assert override(page, []) == page
    assert override(page, [f"env.seed={page.env.seed + 1}"]) != page


def test_defaults_are_filled_in(folder: Path) -> None:
    page = load("page.yaml")
    assert (page.name, page.robot, page.terms) == ("page", str(folder / "dog"), (str(folder / "own_terms.py"),))
    assert page.actions == {"joint_target": Entry(term="joint_target", params={"scale": 0.5, "clip": None})}
    assert page.observations["actor"]["height"].params == {"group": "feet"}
    assert page.env.final_obs_groups == ("actor",)  # there is no critic
    assert page.control_dt == pytest.approx(0.02)


def test_values_have_the_types_of_their_terms(folder: Path) -> None:
    page = load(
        "page.yaml",
        [
            "rewards.effort={weight: -1, std: 2, each: [1, 2], norm: l1}",
            "commands.speed={forward: [0, 1]}",
            "rewards.alive.weight=1",
        ],
    )
    params = {"std": 2.0, "norm": "l1", "each": (1.0, 2.0), "signed": False}
    assert page.rewards["effort"] == Entry(term="effort", params=params, weight=-1.0)
    assert page.rewards["alive"] == Entry(term="alive", params={}, weight=1.0)
    assert [type(number) for number in page.rewards["effort"].params["each"]] == [float, float]
    assert page.commands["speed"].params == {"forward": (0.0, 1.0)}


def test_an_observation_has_its_extras(folder: Path) -> None:
    extras = "{noise: 0.1, scale: 2, clip: [-5, 5], delay: [0, 1], history: 3, group: thighs}"
    entry = load("page.yaml", [f"observations.actor.height={extras}"]).observations["actor"]["height"]
    assert entry == Entry(
        term="height", params={"group": "thighs"}, noise=0.1, scale=2.0, clip=(-5.0, 5.0), delay=(0, 1), history=3
    )


def test_one_term_twice(folder: Path) -> None:
    page = load("page.yaml", ["terminations={tilt: {}, tilt_strict: {term: tilt, limit: 0.5}}"])
    assert [(name, one.term, one.params["limit"]) for name, one in page.terminations.items()] == [
        ("tilt", "tilt", 1.0),
        ("tilt_strict", "tilt", 0.5),
    ]


def test_a_page_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValidationError):
        load("page.yaml").env.num_envs = 3


def test_the_resolved_page_stands_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load("page.yaml", ["rewards.effort={weight: -1e-4, std: 1}", "terminations.strict={term: tilt, limit: .5}"])
    run = folder / "runs" / "config.yaml"
    run.parent.mkdir()
    run.write_text(page.to_yaml(), encoding="utf-8")
    monkeypatch.chdir("/")
    assert load(run) == page
    keys = [line.partition(":")[0] for line in page.to_yaml().splitlines() if line[0] != " "]
    assert keys == list(Page.model_fields)


def test_extends_merges(folder: Path) -> None:
    (folder / "base.yaml").write_text(
        "name: base_of_all\nterms: [own_terms.py]\nrobot: dog\nactions: {joint_target: {scale: 0.1, clip: 2}}\n"
        "observations: {actor: {height: {noise: 1}}, critic: {height: }}\n"
        "rewards: {effort: {weight: 1, std: 1, each: [1, 2, 3]}, alive: {weight: 1}}\n"
        "env: {num_envs: 8, reward_floor: 0}\nterminations: {tilt: {limit: 0.2}}\nevents: {reset: {}}\n"
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "page.yaml").write_text(
        "extends: ../base.yaml\nactions: {joint_target: {scale: 0.2}}\nobservations: {critic: null}\n"
        "rewards: {effort: {weight: 2, each: [4]}, alive: null}\n"
        "env: {seed: 5, reward_floor: null}\nterminations: {tilt: }\nevents: null\n"
    )
    page = load("sub/page.yaml")
    assert (page.name, page.robot) == ("page", str(folder / "dog"))
    assert page.actions["joint_target"].params == {"scale": 0.2, "clip": 2.0}
    assert list(page.observations) == ["actor"]
    assert page.observations["actor"]["height"].noise == 1.0
    assert list(page.rewards) == ["effort"]
    assert page.rewards["effort"].weight == 2.0
    assert page.rewards["effort"].params["each"] == (4.0,)
    assert (page.env.num_envs, page.env.seed, page.env.reward_floor) == (8, 5, None)
    assert page.terminations["tilt"].params == {"limit": 0.2}
    assert page.events == {}


def test_extends_finds_shipped_pages(tmp_path: Path) -> None:
    name = config_names()[0]
    for extends in (name, f"{name}.yaml"):
        (tmp_path / "mine.yaml").write_text(f"extends: {extends}\nenv: {{seed: 77}}\n")
        page = load(tmp_path / "mine.yaml")
        assert page.model_copy(update={"name": name, "env": page.env.model_copy(update={"seed": load(name).env.seed})}) == load(
            name
        )
        assert page.env.seed == 77


def test_overrides_are_yaml_and_the_last_wins(folder: Path) -> None:
    changes = [
        "env.num_envs=3",
        "env.num_envs=4",
        "ppo.learning_rate=3e-4",
        "ppo.actor_hidden_dims=[8, 8]",
        "env.compile=false",
    ]
    page = load("page.yaml", changes)
    assert (page.env.num_envs, page.ppo.learning_rate, page.ppo.actor_hidden_dims) == (4, 3e-4, (8, 8))
    assert page.env.compile is False
    assert page == override(load("page.yaml"), changes)


def test_an_override_takes_a_term_away(folder: Path) -> None:
    page = load("page.yaml", ["terminations.tilt="])
    assert list(page.terminations) == ["tilt"]
    assert override(page, ["terminations.tilt=null"]).terminations == {}


def test_an_override_does_not_change_its_page(folder: Path) -> None:
    page = load("page.yaml", ["rewards.alive.weight=1"])
    override(page, ["rewards.alive.weight=2", "rewards.effort={weight: 1, std: 1}"])
    assert {name: entry.weight for name, entry in page.rewards.items()} == {"alive": 1.0}


def test_own_terms_join_the_shipped(tmp_path: Path) -> None:
    name = config_names()[0]
    (tmp_path / "mine.py").write_text("@reward()\ndef my_own_reward(env, *, gain: float = 2.0): ...\n")
    page_file = tmp_path / "mine.yaml"
    page_file.write_text(f"extends: {name}\nterms: [mine.py]\nrewards: {{my_own_reward: {{weight: 1}}}}\n")
    page = load(page_file)
    assert page.rewards["my_own_reward"].params == {"gain": 2.0}
    assert page.rewards.keys() - load(name).rewards.keys() == {"my_own_reward"}


def test_every_problem_is_told(folder: Path) -> None:
    (folder / "page.yaml").write_text(
        "terms: [own_terms.py]\nrobot: dg\nactions: {}\nobservations: {critic: {}}\nppo: {gamma: 2, lam: x}\nvido: {}\n"
    )
    with pytest.raises(ConfigError) as error:
        load("page.yaml", ["env.seed=-1", "rewards.aliv.weight=1"])
    places = [f"{problem.place}: {problem.path}" for problem in error.value.problems]
    assert places == [
        "page.yaml:6: vido",
        "page.yaml:2: robot",
        'override "env.seed=-1": env.seed',
        'override "rewards.aliv.weight=1": rewards.aliv',
        "page.yaml:5: ppo.gamma",
        "page.yaml:5: ppo.lam",
        "page.yaml:3: actions",
        "page.yaml:4: observations",
        "page.yaml:4: observations.critic",
    ]
    assert str(error.value).count("\n") == len(places) - 1


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from embodied_rl import config; from embodied_rl.config.json_schema import json_schema\n"
        "config.load(config.config_names()[0]); json_schema()\n"
        "print([m for m in ('torch', 'numpy', 'mujoco', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
