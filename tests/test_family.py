"""Task families: shipped names, folders of one's own, and what is said of broken ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from embodied_rl import family, make_env, runs, training
from embodied_rl.config import ConfigError, Page, load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.family import FamilyError, family_names, load_family
from embodied_rl.learn import evaluate as protocol
from embodied_rl.mdp.demo import demo_of
from embodied_rl.mdp.score import failures_of, figures_of, judged, score_of
from embodied_rl.paths import PACKAGE
from embodied_rl.strict_yaml import display
from embodied_rl.view.play import agent, play, playback_page

DOCS = PACKAGE.parent / "docs" / "families.md"
SHIPPED = ", ".join(family_names())

SCORE = '''
from embodied_rl.config.types import Positive
from embodied_rl.mdp.score import Verdict
from embodied_rl.mdp.term import score
from .command import LOWEST


@score()
class Height:
    """How near the base is to a height."""

    failure = "tumble"

    def __init__(self, *, target: Positive = 0.3, error: Positive = 0.05):
        self._target, self._limit = target, error

    def overrides(self, page, reference):
        return ["env.episode_s=0.2"]

    def begin(self, env):
        self._sum, self._count = 0.0, 0

    def step(self, env, going):
        self._sum += float((env.physics.qpos[going, 2] - max(self._target, LOWEST)).abs().sum())
        self._count += int(going.sum())

    def figures(self):
        return {"height_error": self._sum / max(self._count, 1)}

    def limits(self, reference):
        return {"height_error": self._limit}

    def verdict(self, figures, reference):
        good = figures["height_error"] <= self._limit
        return Verdict(good, "it keeps its height" if good else "it does not keep its height")

    def near(self, metrics):
        return True
'''
DEMO = """
from .command import LOWEST

KEYS = {"up": (0.01,)}
COLUMNS = ("height  m",)


def script(env):
    return []


def measured(env):
    return [float(env.physics.qpos[0, 2])]


def draw(canvas, values):
    canvas.arrow(values[0], 0.0)
"""
COMMAND = "LOWEST = 0.1\n"
REWARDS = '''
from embodied_rl.mdp.term import reward
from .command import LOWEST


@reward()
def tall(env, *, scale: float = 1.0):
    """Height of the base above the lowest, scaled."""
    return scale * (env.robot.base_pos_w[:, 2] - LOWEST)
'''
PAGE = """
extends: go2_flat.yaml
task: height
rewards: {tall: {weight: 1.0}}
score: {error: 0.2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A family in a folder beside a page."""
    (tmp_path / "height").mkdir()
    for name, text in (("score", SCORE), ("demo", DEMO), ("command", COMMAND), ("rewards", REWARDS)):
        (tmp_path / "height" / f"{name}.py").write_text(text)
    (tmp_path / "page.yaml").write_text(PAGE)
    return tmp_path


def small(folder: Path, *changes: str) -> Page:
    return load(folder / "page.yaml", ["env.num_envs=2", "env.compile=false", "physics.num_threads=1", *changes])


def test_shipped_families() -> None:
    assert {"stand", "velocity"} <= set(family_names())
    one = load_family("velocity")
    assert (one.package, one.score.name, one.term_files) == ("embodied_rl.tasks.velocity", "Walk", ())
    assert one.score.parameters["lin_vel_error"].default == 0.15
    assert one.score_class() is sys.modules["embodied_rl.tasks.velocity.score"].Walk


def test_a_path_is_relative_to_its_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = small(folder)
    assert page.task == str(folder / "height")
    (folder / "runs").mkdir()
    (folder / "runs" / "config.yaml").write_text(page.to_yaml())
    monkeypatch.chdir("/")
    assert load(folder / "runs" / "config.yaml") == page


def test_reading_a_page_runs_nothing_of_its_family(folder: Path) -> None:
    with (folder / "height" / "rewards.py").open("a") as file:
        file.write("\nraise SystemExit\n")
    assert small(folder).score == {"target": 0.3, "error": 0.2}


def test_the_score_of_a_page_is_checked_like_a_term(folder: Path) -> None:
    place = 'override "score.%s": score.'
    for change, said in (
        ("eror=1", "eror: no such key; did you mean 'error'?"),
        ("error=0", "error: 0 is not allowed: more than 0"),
        ("target=high", 'target: "high" is not a number'),
    ):
        with pytest.raises(ConfigError) as error:
            small(folder, f"score.{change}")
        assert str(error.value) == place % change + said
    with pytest.raises(ConfigError, match="score: belongs to a task family, and the page names none; write task: NAME"):
        small(folder, "task=null", "rewards.tall=null")
    assert small(folder, "task=null", "rewards.tall=null", "score=null").score == {}
    assert small(folder, "score=null").score == {"target": 0.3, "error": 0.05}


def test_an_own_family_trains_is_judged_and_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EPISODES", 2)
    page = small(folder)
    env = make_env.make(page)
    env.step(torch.zeros(2, env.num_actions))
    names = [term.name for term in env.terms.rewards]
    assert env.buffers["reward_terms"][:, names.index("tall")].min() > 0
    module = env.terms.rewards[names.index("tall")].function.__module__
    env.close()

    stand = lambda obs: torch.zeros(2, 12)  # noqa: E731
    figures = runs.evaluate_policy(page, stand)
    assert (figures["tumble_rate"], figures["episodes"]) == (0.0, 2)
    assert 0.0 < figures["height_error"] < 0.1
    assert score_of(page).verdict(figures, False) == (True, "it keeps its height")
    assert failures_of(page) == "tumbles"
    demo = demo_of(page)
    assert demo is not None and demo.COLUMNS == ("height  m",)

    # its terms, its score and its demo share one copy of each of its modules
    package = module.removesuffix(".rewards")
    assert {f"{package}.{name}" for name in ("rewards", "score", "demo", "command")} <= set(sys.modules)
    assert type(score_of(page)) is type(score_of(page)) is sys.modules[f"{package}.score"].Height
    assert demo is demo_of(page)


@pytest.mark.usefixtures("gl")
def test_an_own_family_is_filmed(folder: Path) -> None:
    env: Env = make_env.make(playback_page(small(folder, "video.width=64", "video.height=48"), seconds=1.0))
    stats = play(env, agent(env, "zero"), seconds=0.1, video=folder / "a.mp4", report=lambda line: None)
    assert Path(stats["video"]).stat().st_size > 0
    env.close()


@pytest.mark.skipif(not DOCS.is_file(), reason="needs a source checkout")
def test_the_family_of_the_docs_is_judged_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    names = re.findall(r"`(balance[/.][a-z./]+)`:\n", DOCS.read_text(encoding="utf-8"))
    assert names == ["balance/rewards.py", "balance/score.py", "balance/demo.py", "balance.yaml"]
    (tmp_path / "balance").mkdir()
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(block)
    monkeypatch.setattr(protocol, "EPISODES", 4)
    page = load(tmp_path / "balance.yaml", ["physics.num_threads=1"])
    figures = runs.evaluate_policy(page, lambda obs: torch.zeros(4, 12))
    assert 0.0 <= figures["fall_rate"] <= 1.0 and 0.0 < figures["speed"] < 1.0
    score = score_of(page)
    assert score.verdict({"fall_rate": 0.02, "speed": 0.3}, False).passed
    assert score.near({"Train/terminated": 0.05}) and not score.near({})
    demo = demo_of(page)
    env = make_env.make(playback_page(page, seconds=1.0))
    assert demo is not None and demo.script(env) == [] and len(demo.measured(env)) == len(demo.COLUMNS)
    env.close()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{"height_error": self._sum', '{"height_err": self._sum', "figures() has no 'height_error', which limits()"),
        ("self._sum / max(self._count, 1)", "None", "figures() gives 'height_error' as NoneType, and one number is needed"),
        ("self._sum / max(self._count, 1)", "__import__('torch').ones(2)", "figures() gives 'height_error' as Tensor, and one"),
        ('"height_error": self._limit}', '"height_error": None}', "limits() gives 'height_error' as NoneType, and one number is"),
        ("return Verdict(good,", "return good and (", "verdict() gives 'it keeps its height', and Verdict(True or False"),
    ],
)
def test_a_score_that_goes_wrong_is_named_and_its_iteration_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
) -> None:
    score = folder / "height" / "score.py"
    assert old in SCORE
    score.write_text(SCORE.replace(old, new))
    monkeypatch.setattr(protocol, "EPISODES", 2)
    trainer = training.start(small(folder, "train.evaluate_every=1", "train.steps=4"), tmp_path / "run")
    with pytest.raises(FamilyError) as raised:
        list(trainer.train(3))
    assert str(raised.value).startswith(f"task: {display(score)}: {said}")
    assert trainer.run.newest_checkpoints() == [trainer.run.checkpoint(1)]


def test_a_tensor_of_one_number_is_a_figure(folder: Path) -> None:
    score = folder / "height" / "score.py"
    score.write_text(SCORE.replace("self._sum / max(self._count, 1)", "__import__('torch').tensor([0.25])"))
    made = score_of(load(folder / "page.yaml"))
    figures = figures_of(made)
    assert figures == {"height_error": 0.25} and type(figures["height_error"]) is float
    assert judged(made, figures, False) == ((False, "it does not keep its height"), {"height_error": 0.2})


def test_folders_of_one_name_are_two_families(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "height"
    other.mkdir()
    (other / "score.py").write_text(SCORE.replace("from .command import LOWEST", "LOWEST = 0.1").replace("tumble", "drop"))
    classes = [load_family(str(path)).score_class() for path in (folder / "height", other)]
    assert [one.failure for one in classes] == ["tumble", "drop"]


def test_a_family_may_be_a_package(folder: Path) -> None:
    (folder / "height" / "__init__.py").write_text("HIGH = 0.5\n")
    (folder / "height" / "command.py").write_text("from . import HIGH\n\nLOWEST = HIGH / 5\n")
    one = load_family(str(folder / "height"))
    assert one.score_class() is not None
    assert sys.modules[f"{one.package}.command"].LOWEST == 0.1


def test_a_family_may_have_no_demo(folder: Path) -> None:
    (folder / "height" / "demo.py").unlink()
    assert demo_of(small(folder)) is None
    assert demo_of(load("go2_flat", ["task=null"])) is None


BROKEN = {
    "no score.py": ("score", None, "height: has no score.py; a family is a folder with one"),
    "no score": ("score", "x = 1\n", "height/score.py: has 0 classes decorated @score(); a family has one"),
    "two scores": (
        "score",
        SCORE + "\n@score()\nclass Other: ...\n",
        "height/score.py: has 2 classes decorated @score() (Height, Other); a family has one",
    ),
    "no type": (
        "score",
        SCORE.replace("target: Positive", "target"),
        "height/score.py:14: Height.target: has no type",
    ),
    "no Python": ("score", "def (:\n", "height/score.py:1: not valid Python: "),
}


@pytest.mark.parametrize(("name", "text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_line(
    folder: Path, name: str, text: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = folder / "height" / f"{name}.py"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ConfigError) as error:
        small(folder)
    # and the terms that it may have are not called unknown as well
    assert str(error.value).startswith(f"page.yaml:3: task: {said}") and "\n" not in str(error.value)


RAISING = {
    "rewards": (REWARDS + "\n1 / 0\n", "height/rewards.py:11: cannot be imported: ZeroDivisionError: division by zero"),
    "command": ("import no_such_module\n", "height/command.py:1: cannot be imported: ModuleNotFoundError: No module named"),
}


@pytest.mark.parametrize(("name", "text", "said"), [(name, *case) for name, case in RAISING.items()], ids=RAISING)
def test_a_file_that_raises_is_one_line(folder: Path, name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "height" / f"{name}.py").write_text(text)
    with pytest.raises(UserError) as error:
        make_env.make(small(folder))
    assert str(error.value).startswith(f"task: {said}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "part", "judge", "said"),
    [
        ("score", "    def near(self, metrics):\n        return True\n", score_of, "lacks near; embodied_rl/mdp/score.py says"),
        ("score", '    failure = "tumble"\n', score_of, "lacks failure; embodied_rl/mdp/score.py says"),
        ("demo", 'COLUMNS = ("height  m",)\n', demo_of, "lacks COLUMNS; embodied_rl/mdp/demo.py says what it needs"),
    ],
    ids=["method", "word", "demo"],
)
def test_a_missing_part_is_one_line(folder: Path, name: str, part: str, judge, said: str) -> None:
    path = folder / "height" / f"{name}.py"
    assert part in path.read_text()
    path.write_text(path.read_text().replace(part, ""))
    with pytest.raises(FamilyError) as error:
        judge(small(folder))
    assert f"{name}.py: {said}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("velocty", f"\"velocty\": no such family; did you mean 'velocity'? (shipped: {SHIPPED}; or a folder with score.py)"),
        ("./gone", f'/gone": no such family (shipped: {SHIPPED}; or a folder with score.py)'),
        ("3", "3 is not a string or null"),
    ],
)
def test_no_such_family(folder: Path, task: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        small(folder, f"task={task}")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_page_of_others_environments_has_no_task() -> None:
    with pytest.raises(ConfigError, match=r"task: not allowed with env\.source"):
        load("pool_ant", ["task=velocity"])


def test_the_score_belongs_to_no_section_of_terms(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such term"):
        small(folder, "rewards.Height={weight: 1.0}")
    assert family.load_family(str(folder / "height")).score.kind == "score"
