from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embodied_rl.env import Env
from embodied_rl.mdp.demo import Canvas, demo_of
from embodied_rl.mdp.score import Environment
from embodied_rl.view import film
from embodied_rl.view.play import agent, filmed, play


def frames_of(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int)


@pytest.mark.usefixtures("gl")
def test_a_film_runs_in_real_time_and_shows_the_robot(env: Env, tmp_path: Path) -> None:
    path = tmp_path / "films" / "walk.mp4"
    stats = play(env, agent(env, "zero"), seconds=0.4, command=[0.8, 0.0, 0.0], video=path, report=lambda line: None)
    assert stats["video"] == str(path)
    frames = frames_of(path)
    assert frames.shape == (10, 64, 96, 3)  # 0.4 s at 25 fps
    assert frames.mean() > 60
    # the white and black robot stands out from the floor around it, in the middle of every picture
    middle = frames[:, 24:44, 36:60].reshape(10, -1, 3)
    assert (middle.max(axis=(1, 2)) > 200).all()
    assert (middle.min(axis=(1, 2)) < 60).all()


@pytest.mark.usefixtures("gl")
def test_command_and_velocity_are_drawn(env: Env, tmp_path: Path) -> None:
    _, qpos, _ = env.render_state(0)
    with film.Film(tmp_path / "a.mp4", *filmed(env.scene), env.page.video, demo_of(env.page)) as one:
        plain = one.shoot([qpos], (0.0, 0.0, 0.0)).astype(int)
        green = one.shoot([qpos], (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)).astype(int)
    upper = slice(0, 32)  # above the robot, where no text is
    added = green[upper] - plain[upper]
    assert ((added[..., 0] < -40) & (green[upper, :, 1] > green[upper, :, 0] + 40)).sum() > 5


class Squat:
    """A demo of a family whose command is one number, which it draws as an arrow to the front."""

    KEYS, COLUMNS = {}, ("height  m",)

    def script(self, env: Environment) -> list[list[float]]:
        return [[0.3]]

    def measured(self, env: Environment) -> list[float]:
        return [0.2]

    def draw(self, canvas: Canvas, values: Sequence[float]) -> None:
        canvas.arrow(2.0 * values[0], 0.0)


@pytest.mark.usefixtures("gl")
def test_any_family_is_filmed(env: Env, tmp_path: Path) -> None:
    """Without one there are the robot and a panel with the time, which is narrower."""
    _, qpos, _ = env.render_state(0)
    with film.Film(tmp_path / "a.mp4", *filmed(env.scene), env.page.video) as one:
        bare = one.shoot([qpos]).astype(int)
    with film.Film(tmp_path / "b.mp4", *filmed(env.scene), env.page.video, Squat()) as one:
        shown = one.shoot([qpos], [0.2], [0.3]).astype(int)
    green = lambda image: ((image[..., 1] > image[..., 0] + 40) & (image[..., 1] > image[..., 2] + 20)).sum()  # noqa: E731
    assert green(shown) > 5 > green(bare)
    panel = lambda image: (image[-6, 4:, 0] > 200).sum()  # noqa: E731
    assert 0 < panel(bare) < panel(shown)


@pytest.mark.parametrize(
    ("names", "ends"), [((), []), (("vx  m/s", "vy  m/s", "wz  rad/s"), [9.5, 14.0, 19.0]), (("height of the base  m",), [16.0])]
)
def test_columns_have_room_for_their_names(names: tuple[str, ...], ends: list[float]) -> None:
    assert film._columns(names) == ends


@pytest.mark.usefixtures("gl")
def test_the_camera_follows(env: Env, tmp_path: Path) -> None:
    _, qpos, _ = env.render_state(0)
    with film.Film(tmp_path / "a.mp4", *filmed(env.scene), env.page.video) as one:
        for step in range(25):
            qpos[0] = 0.04 * step  # 1 m/s for 1 s
            one.shoot([qpos])
        behind = qpos[0] - one._camera.view.lookat[0]
        assert 0.1 < behind < 0.4  # softly: it comes to lag a quarter of a second
        qpos[0] += 10.0  # a new episode elsewhere
        image = one.shoot([qpos])
    middle = image[24:44, 36:60].astype(int)
    assert middle.max() > 200
    assert middle.min() < 60


@pytest.mark.usefixtures("gl")
def test_what_was_shot_survives_an_error(env: Env, tmp_path: Path) -> None:
    _, qpos, _ = env.render_state(0)
    with pytest.raises(KeyboardInterrupt), film.Film(tmp_path / "a.mp4", *filmed(env.scene), env.page.video) as one:
        for _ in range(3):
            one.shoot([qpos])
        raise KeyboardInterrupt
    assert len(frames_of(tmp_path / "a.mp4")) == 3


def test_a_file_that_is_no_film_is_refused(env: Env, tmp_path: Path) -> None:
    for name, said in (("f.gif", r"ends in \.gif"), ("f.avi", r"ends in \.avi"), ("film", "ends in nothing")):
        with pytest.raises(film.FilmError, match=rf"^--video .*: a film is \.mp4, \.mkv, \.mov, and this {said}"):
            play(env, agent(env, "zero"), seconds=0.02, video=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "kind"), [("f.mkv", "matroska"), ("F.MOV", "mov")])
def test_a_film_is_what_its_name_says(env: Env, tmp_path: Path, name: str, kind: str) -> None:
    play(env, agent(env, "zero"), seconds=0.04, video=tmp_path / name, report=lambda line: None)
    import av

    with av.open(str(tmp_path / name)) as file:
        assert kind in file.format.name


def test_without_gl_one_line_says_what_to_install(env: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film.use_gl.cache_clear()
    monkeypatch.setattr(film, "gl_backend", lambda: (None, "MUJOCO_GL=egl: no libEGL"))
    with pytest.raises(film.FilmError) as caught:
        film.Film(tmp_path / "a.mp4", *filmed(env.scene), env.page.video)
    assert str(caught.value) == f"no film: MuJoCo cannot render here (MUJOCO_GL=egl: no libEGL); {film.GL_REMEDY}"
    assert not (tmp_path / "a.mp4").exists()
