"""Broken pages, each with its one clear message."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from embodied_rl.config import ConfigError, load, override

# The page of conftest.py has five lines; what a case adds stands on line 6.
ADDED = {
    "misspelt section": ("rewads: {}", "page.yaml:6: rewads: no such key; did you mean 'rewards'?"),
    "misspelt key": ("ppo: {gama: 1}", "page.yaml:6: ppo.gama: no such key; did you mean 'gamma'?"),
    "no such key": (
        "terrain: {bumps: 3}",
        "page.yaml:6: terrain.bumps: no such key; allowed are 'rows', 'size', 'border', 'cell', 'seed'",
    ),
    "key of a term": (
        "rewards: {alive: {weight: 1, size: 2}}",
        "page.yaml:6: rewards.alive.size: no such key; allowed are 'weight'",
    ),
    "no key allowed": (
        "curriculum: {widen: {by: 2}}",
        "page.yaml:6: curriculum.widen.by: no such key; there are none",
    ),
    "word for a number": ("physics: {dt: fast}", 'page.yaml:6: physics.dt: "fast" is not a number'),
    "boolean for a number": ("physics: {dt: true}", "page.yaml:6: physics.dt: true is not a number"),
    "number for a boolean": ("env: {reward_scale_dt: 1}", "page.yaml:6: env.reward_scale_dt: 1 is not true or false"),
    "yes for true": ("env: {reward_scale_dt: yes}", 'page.yaml:6: env.reward_scale_dt: "yes" is not true or false; write true'),
    "quoted number": ('ppo: {gamma: "1e-3"}', 'page.yaml:6: ppo.gamma: "1e-3" is not a number; leave out the quotes'),
    "quoted boolean": ('ppo: {tf32: "true"}', 'page.yaml:6: ppo.tf32: "true" is not true or false; leave out the quotes'),
    "True": ("ppo: {tf32: True}", 'page.yaml:6: ppo.tf32: "True" is not true or false; write true'),
    "decimal comma": ("ppo:\n  gamma: 0,9", 'page.yaml:7: ppo.gamma: "0,9" is not a number; a decimal has a point: 0.9'),
    "fraction for a count": ("env: {num_envs: 1.5}", "page.yaml:6: env.num_envs: 1.5 is not an integer"),
    "nothing for a number": ("env:\n  num_envs:", "page.yaml:7: env.num_envs: nothing is not an integer"),
    "null for a number": ("env: {num_envs: null}", "page.yaml:6: env.num_envs: null is not an integer"),
    "word for a number or null": (
        "env: {reward_floor: x}",
        'page.yaml:6: env.reward_floor: "x" is not a number or null',
    ),
    "number for words": ("env: {final_obs_groups: [1]}", "page.yaml:6: env.final_obs_groups[0]: 1 is not a string"),
    "word for auto, true, false": (
        "env: {compile: y}",
        "page.yaml:6: env.compile: \"y\" is not one of 'auto', true, false",
    ),
    "too small": ("env: {num_envs: 0}", "page.yaml:6: env.num_envs: 0 is not allowed: at least 1"),
    "too large": ("ppo: {gamma: 1.5}", "page.yaml:6: ppo.gamma: 1.5 is not allowed: at most 1"),
    "not positive": ("physics: {dt: -0.005}", "page.yaml:6: physics.dt: -0.005 is not allowed: at least 1e-05"),
    "infinite": ("env: {episode_s: .inf}", "page.yaml:6: env.episode_s: inf is not a finite number"),
    "NaN weight": (
        "rewards:\n  alive:\n    weight: .nan",
        "page.yaml:8: rewards.alive.weight: nan is not a finite number",
    ),
    "missing weight": ("rewards: {alive: }", "page.yaml:6: rewards.alive.weight: is missing; it must be a number"),
    "missing parameter": (
        "rewards: {effort: {weight: 1}}",
        "page.yaml:6: rewards.effort.std: is missing; it must be a number",
    ),
    "bound of a parameter": (
        "rewards: {effort: {weight: 1, std: 0}}",
        "page.yaml:6: rewards.effort.std: 0 is not allowed: more than 0",
    ),
    "range upside down": (
        "commands: {speed: {forward: [1, -1]}}",
        "page.yaml:6: commands.speed.forward: [1.0, -1.0] is not allowed: low must be at most high",
    ),
    "range of one": (
        "commands: {speed: {forward: [1]}}",
        "page.yaml:6: commands.speed.forward: [1] is not a list of 2 numbers",
    ),
    "range of three": (
        "commands: {speed: {forward: [1, 2, 3]}}",
        "page.yaml:6: commands.speed.forward: [1, 2, 3] is not a list of 2 numbers",
    ),
    "number for a range": (
        "commands: {speed: {forward: 1}}",
        "page.yaml:6: commands.speed.forward: 1 is not a list of 2 numbers",
    ),
    "word in a range": (
        "commands: {speed: {forward: [a, 1]}}",
        'page.yaml:6: commands.speed.forward[0]: "a" is not a number',
    ),
    "width of zero": (
        "ppo: {actor_hidden_dims: [8, 0]}",
        "page.yaml:6: ppo.actor_hidden_dims[1]: 0 is not allowed: at least 1",
    ),
    "no width": (
        "ppo: {actor_hidden_dims: []}",
        "page.yaml:6: ppo.actor_hidden_dims: [] is not allowed: at least 1 value",
    ),
    "choice": (
        "scene: {collisions: fet}",
        "page.yaml:6: scene.collisions: \"fet\" is not one of 'feet', 'full'; did you mean 'feet'?",
    ),
    "choice of a term": (
        "rewards: {effort: {weight: 1, std: 1, norm: max}}",
        "page.yaml:6: rewards.effort.norm: \"max\" is not one of 'l1', 'l2'",
    ),
    "list for a section": ("rewards: [alive]", 'page.yaml:6: rewards: ["alive"] is not a mapping'),
    "null for a section": ("ppo: null", "page.yaml:6: ppo: null is not a mapping"),
    "number for an entry": (
        "rewards: {alive: 1.0}",
        "page.yaml:6: rewards.alive: 1.0 is not a mapping of the term's parameters",
    ),
    "misspelt term": (
        "rewards: {efort: {weight: 1}}",
        "page.yaml:6: rewards.efort: no such term; did you mean 'effort'? (`embodied-rl list --terms rewards` shows all)",
    ),
    "unknown term by name": (
        "events: {twice: {term: jump}}",
        "page.yaml:6: events.twice.term: no such term (`embodied-rl list --terms events` shows all)",
    ),
    "list for a term": (
        "events: {twice: {term: [reset]}}",
        'page.yaml:6: events.twice.term: ["reset"] is not a string',
    ),
    "term of another section": (
        "rewards: {tilt: {weight: 1}}",
        "page.yaml:6: rewards.tilt: no such term here: it belongs to terminations",
    ),
    "duplicate key": (
        "env: {seed: 1}\nppo: {}\nenv: {seed: 2}",
        "page.yaml:8: env: written twice, first at page.yaml:6",
    ),
    "key that is no string": ("env: {1: 2}", "page.yaml:6: env: a key must be a string; put it in quotes"),
    "tab": (
        "env:\n\tseed: 1",
        "page.yaml:7: not valid YAML: found character '\\t' that cannot start any token (indent with spaces)",
    ),
    "null without inheritance": (
        "rewards: {aliv: null, alive: {weight: 1}}",
        "page.yaml:6: rewards.aliv: null, but there is no inherited term to remove",
    ),
    "evaluations of a page without a task": (
        "train: {evaluate_every: 10}",
        "page.yaml:6: train.evaluate_every: 10 needs a task family, by whose score the policy is judged; "
        "write task: NAME, or leave it out",
    ),
    "passing without a task": (
        "train: {stop_when: passed}",
        'page.yaml:6: train.stop_when: "passed" needs a task family, by whose score the policy is judged; '
        "write task: NAME, or leave it out",
    ),
    "schedule of another name": ("ppo: {schedule: fixed}", 'page.yaml:6: ppo.schedule: "fixed" is constant now'),
    "soft actor-critic's key with another learner": (
        "sac: {tau: 0.01}",
        "page.yaml:6: sac.tau: only read with train.learner: sac; leave it out",
    ),
    "soft actor-critic without the policy's last observation": (
        "train: {learner: sac}\nenv: {final_obs_groups: []}",
        "page.yaml:7: env.final_obs_groups: []: train.learner: sac asks what the policy would have done in the last "
        "observation of a time-out, and has none of actor; write final_obs_groups: [actor]",
    ),
    "atoms of a critic that has none": (
        "train: {learner: sac}\nsac: {critic: mse, atoms: 51}",
        "page.yaml:7: sac.atoms: 51 is only read with critic: distributional; leave it out",
    ),
    "a priority that nothing has": (
        "train: {learner: sac}\nsac: {priority_exponent: 0.5}",
        "page.yaml:7: sac.priority_exponent: 0.5 is only read with prioritized: true; leave it out",
    ),
    "rate that no schedule comes to": (
        "ppo: {schedule: adaptive, final_learning_rate: 1.0e-4}",
        "page.yaml:6: ppo.final_learning_rate: 0.0001 is never come to with schedule: adaptive; take linear or hold, "
        "or leave it out",
    ),
    "bonus that no schedule comes to": (
        "ppo: {entropy_schedule: constant, final_entropy_coef: 0.0}",
        "page.yaml:6: ppo.final_entropy_coef: 0 is never come to with entropy_schedule: constant; take linear or hold, "
        "or leave it out",
    ),
    "hold without an end": (
        "ppo: {entropy_schedule: hold}",
        'page.yaml:6: ppo.entropy_schedule: "hold" needs final_entropy_coef, where it ends; add it, or take constant',
    ),
    "hold that nothing reads": (
        "ppo: {hold: 0.25}",
        "page.yaml:6: ppo.hold: only read with schedule: hold or entropy_schedule: hold; leave it out",
    ),
    "learner's number of a curriculum": (
        "curriculum: {ramp: {parameter: ppo.entropy_coeff, end: [0.0]}}",
        'page.yaml:6: curriculum.ramp.parameter: "ppo.entropy_coeff" is none of the learner\'s numbers that may change '
        "during a run; did you mean 'ppo.entropy_coef'? (they are ppo.learning_rate, ppo.entropy_coef, ppo.desired_kl)",
    ),
    "negative number of a curriculum": (
        "curriculum: {ramp: {parameter: ppo.entropy_coef, end: [-0.1]}}",
        "page.yaml:6: curriculum.ramp.end: [-0.1] is negative, which ppo.entropy_coef cannot be",
    ),
    "bonus with two owners": (
        "curriculum: {ramp: {parameter: ppo.entropy_coef, end: [0.0]}}\nppo: {final_entropy_coef: 0.0}",
        'page.yaml:6: curriculum.ramp.parameter: "ppo.entropy_coef" is moved by ppo.final_entropy_coef: 0 already; '
        "leave that key or the curriculum out",
    ),
    "rate with two owners": (
        "curriculum: {ramp: {parameter: ppo.learning_rate, end: [0.0]}}",
        'page.yaml:6: curriculum.ramp.parameter: "ppo.learning_rate" is moved by ppo.schedule: adaptive already; '
        "take constant, or leave the curriculum out",
    ),
    "rate with two owners, of several processes": (
        "curriculum: {ramp: {parameter: ppo.learning_rate, end: [0.0]}}\n"
        "ppo: {schedule: constant}\ndistributed: {learning_rate_rule: sqrt}",
        'page.yaml:6: curriculum.ramp.parameter: "ppo.learning_rate" is moved by distributed.learning_rate_rule: sqrt already; '
        "take none, or leave the curriculum out",
    ),
    "KL that nothing reads": (
        "curriculum: {ramp: {parameter: ppo.desired_kl, end: [0.0]}}\nppo: {schedule: constant}",
        'page.yaml:6: curriculum.ramp.parameter: "ppo.desired_kl" is not read with ppo.schedule: constant; '
        "take adaptive, or leave the curriculum out",
    ),
    "unknown engine": (
        "physics: {engine: bullet}",
        "page.yaml:6: physics.engine: \"bullet\" is not one of 'native', 'warp', 'mjx', 'isaacgym'",
    ),
    "solver the engine lacks": (
        "physics: {engine: warp, solver: pgs}",
        'page.yaml:6: physics.solver: "pgs": the engine warp has no such solver; take another one, or engine: native',
    ),
    "integrator the engine lacks": (
        "physics: {engine: mjx, integrator: implicit}",
        'page.yaml:6: physics.integrator: "implicit": the engine mjx has no such integrator; take another one, or engine: native',
    ),
    "device of the native engine": (
        "physics: {device: cuda}",
        'page.yaml:6: physics.device: "cuda": the engine native runs on the CPU; take engine: warp, or leave the device out',
    ),
    "mirror loss of zero": (
        "ppo: {symmetry: mirror_loss}",
        "page.yaml:6: ppo.mirror_loss_coeff: 0.0 is not allowed with symmetry: mirror_loss; more than 0",
    ),
    "a key of the loop among the learner's": (
        "ppo: {max_iterations: 3}",
        "page.yaml:6: ppo.max_iterations: is train.iterations now",
    ),
    "a learner of no name": (
        "train: {learner: pop}",
        "page.yaml:6: train.learner: \"pop\" is no learner; did you mean 'ppo'? "
        "(ppo, impala, sac, or module:Class, like rsl_rl.algorithms:PPO)",
    ),
    "mirror images of memories": (
        "ppo: {symmetry: augmentation, rnn_type: gru}",
        "page.yaml:6: ppo.symmetry: augmentation needs a policy without memory, of which nobody knows the mirror image; "
        "take symmetry: none, or rnn_type: none",
    ),
    "episode below a step": (
        "env: {episode_s: 0.01}",
        "page.yaml:6: env.episode_s: 0.01 is shorter than one control step of 0.02 s (physics.dt 0.005 x decimation 4)",
    ),
    "unknown final group": (
        "env: {final_obs_groups: [acto]}",
        "page.yaml:6: env.final_obs_groups: \"acto\" is not a group of observations; did you mean 'actor'?",
    ),
    "own page that is gone": ("extends: gone.yaml", "page.yaml:6: extends: gone.yaml: no such file"),
    "misspelt shipped page": ("extends: 5", "page.yaml:6: extends: 5 is not a string"),
    "page of itself": (
        "extends: page.yaml",
        "page.yaml:6: extends: pages extend each other in a circle: page.yaml -> page.yaml",
    ),
}

# Changes to lines of the page: old, new, message.
CHANGED = {
    "missing robot": ("robot: dog\n", "", "page.yaml:1: robot: is missing; it must be a string"),
    "unknown robot": (
        "robot: dog",
        "robot: go22",
        "page.yaml:2: robot: no 'go22', neither a shipped robot nor a folder with robot.yaml; did you mean 'go2'?",
    ),
    "robot that is a number": ("robot: dog", "robot: 2", "page.yaml:2: robot: 2 is not a string"),
    "no action": (
        "{joint_target: {}}",
        "{}",
        "page.yaml:3: actions: a page needs at least one action term, like joint_position: {scale: 0.5}",
    ),
    "number for the groups": (
        "observations:\n  actor: {height: {}}",
        "observations: 5",
        "page.yaml:4: observations: 5 is not a mapping",
    ),
    "no actor": (
        "actor",
        "policy",
        "page.yaml:4: observations: the group 'actor' is missing: it is what the policy sees",
    ),
    "empty group": ("{height: {}}", "{}", "page.yaml:5: observations.actor: a group needs at least one term"),
    "group that is a list": (
        "{height: {}}",
        "[height]",
        'page.yaml:5: observations.actor: ["height"] is not a mapping of terms',
    ),
    "unknown body group": (
        "{height: {}}",
        "{height: {group: thigh}}",
        "page.yaml:5: observations.actor.height.group: "
        "\"thigh\" is not among the robot's bodies; did you mean 'thighs'? (it has 'thighs', 'feet')",
    ),
    "negative noise": (
        "{height: {}}",
        "{height: {noise: -1}}",
        "page.yaml:5: observations.actor.height.noise: -1 is not allowed: at least 0",
    ),
    "clip upside down": (
        "{height: {}}",
        "{height: {clip: [5, -5]}}",
        "page.yaml:5: observations.actor.height.clip: [5.0, -5.0] is not allowed: low must be at most high",
    ),
    "fractional delay": (
        "{height: {}}",
        "{height: {delay: [0, 1.5]}}",
        "page.yaml:5: observations.actor.height.delay[1]: 1.5 is not an integer",
    ),
    "history of zero": (
        "{height: {}}",
        "{height: {history: 0}}",
        "page.yaml:5: observations.actor.height.history: 0 is not allowed: at least 1",
    ),
    "own terms that are gone": (
        "[own_terms.py]",
        "[own_terms.py, gone.py]",
        "page.yaml:1: terms[1]: no such file: gone.py",
    ),
    "own terms that are no list": (
        "[own_terms.py]",
        "own_terms.py",
        'page.yaml:1: terms: "own_terms.py" is not a list of strings',
    ),
}

OVERRIDES = {
    "no value": ("env.num_envs", 'override "env.num_envs": write key.path=value, like env.num_envs=512'),
    "no key": ("=1", 'override "=1": write key.path=value, like env.num_envs=512'),
    "hole in the path": ("env..seed=1", 'override "env..seed=1": write key.path=value, like env.num_envs=512'),
    "misspelt key": ("env.num_env=1", "override \"env.num_env=1\": env.num_env: no such key; did you mean 'num_envs'?"),
    "misspelt section": ("en.seed=1", "override \"en.seed=1\": en: no such key; did you mean 'env'?"),
    "key without its section": ("num_envs=4", "override \"num_envs=4\": num_envs: no such key; did you mean 'env.num_envs'?"),
    "name of a word near by": ("seed=4", "override \"seed=4\": seed: no such key; did you mean 'terrain.seed' or 'env.seed'?"),
    "initials": ("ppo.lr=1", "override \"ppo.lr=1\": ppo.lr: no such key; did you mean 'learning_rate'?"),
    "another section's": ("env.lam=1", "override \"env.lam=1\": env.lam: no such key; did you mean 'ppo.lam'?"),
    "two sections' by its initials": (
        "env.lr=1",
        "override \"env.lr=1\": env.lr: no such key; did you mean 'ppo.learning_rate' or 'sac.learning_rate'?",
    ),
    "two other sections'": (
        "env.iterations=1",
        "override \"env.iterations=1\": env.iterations: no such key; did you mean 'physics.iterations' or 'train.iterations'?",
    ),
    "device": (
        "physics.device=mps",
        'override "physics.device=mps": physics.device: "mps" is not allowed: cpu, cuda, cuda:1; '
        "auto: a GPU if the engine can use one",
    ),
    "wrong type": ("env.num_envs=many", 'override "env.num_envs=many": env.num_envs: "many" is not an integer'),
    "bound": ("env.seed=-1", 'override "env.seed=-1": env.seed: -1 is not allowed: at least 0'),
    "section replaced": ("env=3", 'override "env=3": env: 3 is not a mapping'),
    "path too deep": ("env.seed.x=3", 'override "env.seed.x=3": env.seed: {"x": 3} is not an integer'),
    "term without weight": (
        "rewards.effort.std=1",
        'override "rewards.effort.std=1": rewards.effort.weight: is missing; it must be a number',
    ),
    "nothing to remove": (
        "terminations.tilt=null",
        'override "terminations.tilt=null": terminations.tilt: null, but there is no inherited term to remove',
    ),
    "not YAML": (
        "env.seed=[1",
        "override \"env.seed=[1\": not valid YAML: expected ',' or ']', but got '<stream end>'",
    ),
}


def message_of(name: str = "page.yaml", overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as error:
        load(name, overrides)
    return str(error.value)


@pytest.mark.parametrize(("added", "message"), ADDED.values(), ids=ADDED)
def test_added(added: str, message: str, folder: Path) -> None:
    with (folder / "page.yaml").open("a") as page:
        page.write(added + "\n")
    assert message_of() == message


@pytest.mark.parametrize(("old", "new", "message"), CHANGED.values(), ids=CHANGED)
def test_changed(old: str, new: str, message: str, folder: Path) -> None:
    page = (folder / "page.yaml").read_text()
    assert old in page
    (folder / "page.yaml").write_text(page.replace(old, new))
    assert message_of() == message


@pytest.mark.parametrize(("text", "message"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides(text: str, message: str, folder: Path) -> None:
    assert message_of(overrides=(text,)) == message
    page = load("page.yaml")
    with pytest.raises(ConfigError) as error:
        override(page, [text])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "broken.yaml: the file is empty"),
        (b"# nothing yet\n", "broken.yaml: the file is empty"),
        (b"- a\n- b\n", 'broken.yaml: a page is a mapping, not ["a", "b"]'),
        (b"robot: g\xf6\n", "broken.yaml: not UTF-8 text (byte 8)"),
        (
            b"robot: [dog\n",
            "broken.yaml:1: not valid YAML: while parsing a flow sequence: expected ',' or ']', but got '<stream end>' "
            "before line 2",
        ),
    ],
    ids=["empty", "comment", "list", "latin-1", "unclosed"],
)
def test_files(content: bytes, message: str, folder: Path) -> None:
    (folder / "broken.yaml").write_bytes(content)
    assert message_of("broken.yaml") == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.yaml", "gone.yaml: no such file"),
        ("sub/gone", "sub/gone: no such file"),
        ("dog", "dog: a folder, not a page"),
        ("go2_flt", "\"go2_flt\": no such config; did you mean 'go2_flat'? (shipped: "),
    ],
)
def test_no_such_page(name: str, message: str, folder: Path) -> None:
    assert message_of(name).startswith(message)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "randomize_friction: {range: [0.4, 1.0]}",
            "quantity: friction, of: feet, operation: set, range: [0.5, 1.25], when: reset",
        ),
        ("randomize_base_mass: {}", "quantity: mass, of: base, operation: add, range: [-1.0, 2.0]"),
        ("randomize_gains: {}", "quantity: stiffness, per: element, operation: scale, range: [0.9, 1.1]"),
    ],
)
def test_terms_that_moved_into_the_table_say_what_to_write(old: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: go2_flat\nevents:\n  {old}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "mine.yaml")
    assert str(caught.value).endswith(f"no such term any more: write {{term: randomize, {new}}} (docs/terms.md)")
    row = f"extends: go2_flat\nevents:\n  row: {{term: randomize, {new}}}\n"
    (tmp_path / "mine.yaml").write_text(row)
    assert load(tmp_path / "mine.yaml").events["row"].term == "randomize"  # and that is a page


def test_pages_in_a_circle(folder: Path) -> None:
    (folder / "a.yaml").write_text("# first\nextends: b.yaml\n")
    (folder / "b.yaml").write_text("extends: a.yaml\n")
    assert message_of("a.yaml") == "b.yaml:1: extends: pages extend each other in a circle: a.yaml -> b.yaml -> a.yaml"


def test_the_file_at_fault_is_named(folder: Path) -> None:
    (folder / "base.yaml").write_text("ppo:\n  gamma: 2\nenv: {seed: x}\n")
    with (folder / "page.yaml").open("a") as page:
        page.write("extends: base.yaml\nenv: {num_envs: 0, seed: 1}\n")
    assert message_of() == (
        "page.yaml:7: env.num_envs: 0 is not allowed: at least 1\nbase.yaml:2: ppo.gamma: 2 is not allowed: at most 1"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", "more.py:1: not valid Python: invalid syntax"),
        ("\n@reward()\ndef r(env, *, x): ...\n", "more.py:3: r.x: has no type; write one, like `std: float`"),
        (
            "@reward()\ndef alive(env): ...\n",
            "more.py:2: alive: there is a reward of this name already, at own_terms.py:34; rename it",
        ),
    ],
    ids=["syntax", "no type", "name taken"],
)
def test_own_terms(source: str, message: str, folder: Path) -> None:
    (folder / "more.py").write_text(source)
    page = (folder / "page.yaml").read_text()
    (folder / "page.yaml").write_text(page.replace("[own_terms.py]", "[own_terms.py, more.py]"))
    assert message_of() == message
    # What it may have defined is not called unknown as well.
    assert message_of(overrides=("rewards.r={weight: 1}",)) == message


def test_a_wrong_default_of_an_own_term(folder: Path) -> None:
    (folder / "more.py").write_text("@reward()\ndef r(env, *, x: Positive = -1): ...\n")
    message = message_of(overrides=("terms=[own_terms.py, more.py]", "rewards.r.weight=1"))
    assert message == "more.py:2: r.x: the default -1 is not allowed: more than 0"


def test_a_broken_robot_is_one_line(folder: Path) -> None:
    with (folder / "dog" / "robot.yaml").open("a") as robot:
        robot.write("wheels: 4\n")
    message = message_of()
    assert message.startswith("page.yaml:2: robot: ")
    assert "wheels" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["ppo.desired_kl=0.5", "ppo.schedule=constant"],
            "ppo.desired_kl: 0.5 is only read with schedule: adaptive; leave it out, or at 0.01",
        ),
        (
            ["ppo.mirror_loss_coeff=0.5", "ppo.symmetry=none"],
            "ppo.mirror_loss_coeff: 0.5 is only read with symmetry: mirror_loss",
        ),
        (["ppo.rnn_num_layers=2"], "ppo.rnn_num_layers: 2 is only read with rnn_type: gru or lstm; leave it out, or at 1"),
        (
            ["train.importance_clip=1.5"],
            "train.importance_clip: 1.5 is only read with train.overlap: true, pool.mode: overlap",
        ),
        (["extends=go1_flat"], "extends: no such key; a page extends another in its own file, and no override does"),
        (["rewards.pose.weight=yes"], 'rewards.pose.weight: "yes" is not a number'),
        (["commands.velocity.lin_vel_x=-1,1"], 'commands.velocity.lin_vel_x: "-1,1" is not a list of 2 numbers; write [-1, 1]'),
        (["commands.velocity.lin_vel_x=(-1, 1)"], '"(-1, 1)" is not a list of 2 numbers; write [-1, 1]'),
        (["commands.velocity.resample_s=[-1, 0]"], "commands.velocity.resample_s[0]: -1 is not allowed: at least 0"),
        (
            ["events.foot_friction.interval_s=3"],
            "events.foot_friction.interval_s: only read with when: interval, and",
        ),
        (["actions.joint_position.clip=0"], "actions.joint_position.clip: 0 is not allowed: more than 0"),
    ],
)
def test_what_would_be_silently_ignored_or_ill_advised(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        load("go2_flat", overrides)
    assert not str(refused.value).endswith("write true")


def test_a_learner_of_a_persons_own_reads_what_it_likes_of_ppo() -> None:
    assert load("go2_flat", ["train.learner=mine:Learner", "ppo.desired_kl=0.5"]).ppo.desired_kl == 0.5


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        (
            "own.py",
            "mine = reward()(lambda env: 0)\n",
            "own.py:1 has one of this name that is not declared; a term is a def or class at",
        ),
        ("own.py", "if True:\n    @reward()\n    def mine(env): ...\n", "own.py:3 has one of this name that is not declared"),
        ("own.py", "def mine(env): ...\n", "own.py:1 has one of this name that is not declared"),
        ("own.py", "@reward()\nasync def mine(env): ...\n", "own.py:2: mine: nobody awaits a term; write def, not async def"),
        ("own.py", "@curriculum()\nclass mine: ...\n", "own.py:2: mine: a curriculum is a function"),
        ("own.py", "x = " + "-" * 100_000 + "1\n", "own.py: not valid Python: nested too deeply"),
        ("own.txt", "@reward()\ndef mine(env): ...\n", "terms[0]: a file of terms is named NAME.py, not "),
    ],
)
def test_a_term_that_is_written_where_none_is_read(name: str, source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(source)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load("go2_flat", [f"terms=[{tmp_path / name}]", "rewards.mine={weight: 1.0}"])


def test_a_path_where_a_key_stands_is_told_how_a_page_nests(tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text("extends: go2_flat\nenv.num_envs: 16\n")
    with pytest.raises(ConfigError, match=re.escape("env.num_envs: no such key; a page nests: write env: {num_envs: ...}")):
        load(str(tmp_path / "page.yaml"))


def test_an_error_says_the_same_when_it_comes_from_another_process() -> None:
    with pytest.raises(ConfigError) as caught:
        load("go2_flat", ["env.num_envs=0", "train.stepz=1"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.problems == caught.value.problems
