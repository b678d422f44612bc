"""Films without a window: a chase camera, what is asked for and done drawn into the picture, an mp4."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mujoco
import numpy as np

from embodied_rl.config.page import VideoSettings
from embodied_rl.errors import UserError
from embodied_rl.machine import GL_REMEDY, gl_backend
from embodied_rl.mdp.demo import Demo
from embodied_rl.view.window import Window

_COMMAND, _MEASURED = (0.16, 0.64, 0.32), (0.13, 0.42, 0.92)
"""Green and blue, of arrows and text alike."""


_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""What holds H.264, by the ending of the file's name."""


class FilmError(UserError):
    """No film can be made here; one line."""


class Film:
    """A film that grows with every `shoot`; a context manager, and what was shot stays playable after an error.

    Args:
        path: the file, .mp4, .mkv or .mov, H.264 in yuv420p; missing folders are made.
        model: what is filmed.
        base: the body that the camera follows.
        size: its usual height above the ground [m]; all that is drawn and the camera's distance go by it.
        video: the size of the picture [pixels] and its rate [1/s].
        demo: names and draws what is asked for and done; without one there are the robot and the time alone.

    Raises:
        FilmError: MuJoCo cannot render here, or the file's name ends in no film's.
    """

    def __init__(
        self,
        path: str | Path,
        model: mujoco.MjModel,
        base: str,
        size: float,
        video: VideoSettings,
        demo: Demo | None = None,
    ) -> None:
        import av

        container = container_of(path)
        self.frames, self.fps = 0, video.fps
        self._width, self._height = video.width & ~1, video.height & ~1  # yuv420p halves both for its colours
        self._ground = Window(model)
        self._model, self._base = self._ground.model, model.body(base).id
        self._data = mujoco.MjData(self._model)
        self._camera = _ChaseCamera(size, 1.0 / video.fps)
        self._size, self._demo = size, demo
        self._measured: np.ndarray | None = None
        use_gl()
        frame = self._model.vis.global_
        frame.offwidth, frame.offheight = self._width, self._height
        self._renderer: mujoco.Renderer | None = None  # made where the first frame is
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # faststart: a browser shows the first frame before it has the last
        options = {} if container == "matroska" else {"movflags": "faststart"}
        self._file = av.open(str(path), "w", format=container, options=options)
        self._stream: Any = self._file.add_stream("h264", rate=Fraction(video.fps), options={"crf": "20"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = self._width, self._height, "yuv420p"
        self._panel = _Panel(self._height, demo.COLUMNS if demo else ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()
        if self._renderer:
            self._renderer.close()

    def shoot(
        self, qpos: Sequence[np.ndarray], measured: Sequence[float] = (), command: Sequence[float] | None = None
    ) -> np.ndarray:
        """Add one frame.

        Args:
            qpos: generalised positions of each robot, (nq,) in the render model; the camera follows the first.
            measured: what the first robot does, as the demo measures it.
            command: what it was told, likewise.

        Returns:
            The picture, uint8 (height, width, 3).
        """
        drawn = self._drawn(measured, command)
        self._pose(qpos[0])
        position, heading = self._data.xpos[self._base].copy(), _heading(self._data.xmat[self._base])
        self._camera.follow(position, heading, len(qpos))
        renderer = self._renderer_at(position)
        self._pose(qpos[0])
        renderer.update_scene(self._data, self._camera.view)
        scene = renderer.scene
        for other in qpos[1:]:
            self._pose(other)
            add_robot(self._model, self._data, scene)
        for layer, (rgb, vector) in enumerate(drawn):
            above = np.array([0.0, 0.0, self._size * (0.75 + 0.12 * layer)])
            assert self._demo is not None
            self._demo.draw(_Canvas(scene, position + above, heading, self._size, rgb), vector)
        image = self._panel.draw_on(renderer.render(), self.frames / self.fps, drawn)
        self._encode(image)
        return image

    def _renderer_at(self, place: np.ndarray) -> mujoco.Renderer:
        """Return what draws the ground around a place."""
        if self._ground.follow(place) and self._renderer:
            self._renderer.close()
            self._renderer = None
        self._renderer = self._renderer or mujoco.Renderer(self._model, self._height, self._width)
        return self._renderer

    def _drawn(self, measured: Sequence[float], command: Sequence[float] | None) -> list:
        """Collect what is drawn and written, each with its colour."""
        if self._demo is None:
            return []
        # a trotting base sways at twice the gait's frequency; what is shown is its motion over some 0.3 s
        now = np.asarray(measured, dtype=float)
        before = now if self._measured is None else self._measured
        self._measured = before + (now - before) / (1.0 + 0.3 * self.fps)
        return [*([] if command is None else [(_COMMAND, command)]), (_MEASURED, self._measured)]

    def _pose(self, qpos: np.ndarray) -> None:
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _encode(self, image: np.ndarray) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self.frames, Fraction(1, self.fps)
        self._file.mux(self._stream.encode(frame))
        self.frames += 1


def add_robot(model: mujoco.MjModel, data: mujoco.MjData, scene: mujoco.MjvScene) -> None:
    """Draw what moves into a scene, beside what is there."""
    mujoco.mjv_addGeoms(model, data, mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.mjtCatBit.mjCAT_DYNAMIC, scene)


def container_of(path: str | Path) -> str:
    """Name the container that a film's file asks for by its ending.

    Raises:
        FilmError: none; one line.
    """
    ending = Path(path).suffix.lower()
    if ending not in _FORMATS:
        raise FilmError(f"--video {path}: a film is {', '.join(_FORMATS)}, and this ends in {ending or 'nothing'}; name another")
    return _FORMATS[ending]


def check_picture(file: Path) -> None:
    """Refuse a picture whose file is called otherwise.

    Raises:
        FilmError: its name ends in something else than .png; one line.
    """
    if file.suffix.lower() != ".png":
        raise FilmError(f"--png {file}: a picture is a .png, and this ends in {file.suffix or 'nothing'}; name another")


class _ChaseCamera:
    """Looks at the base from behind and aside; it follows softly, so that the robot's own motion stays visible."""

    _FOLLOW_S, _TURN_S = 0.25, 1.0
    """How far it lags behind the base's position and heading [s]."""

    def __init__(self, size: float, dt: float) -> None:
        self.view = mujoco.MjvCamera()
        self.view.elevation = -14.0
        self._size, self._dt = size, dt
        self._target: np.ndarray | None = None
        self._heading = 0.0

    def follow(self, position: np.ndarray, heading: float, robots: int) -> None:
        # the first frame, or a new episode elsewhere
        if self._target is None or np.linalg.norm(position - self._target) > 5.0 * self._size:
            self._target, self._heading = position.copy(), heading
        self._target += (position - self._target) * self._dt / (self._FOLLOW_S + self._dt)
        turn = math.remainder(heading - self._heading, math.tau)
        self._heading += turn * self._dt / (self._TURN_S + self._dt)
        self.view.lookat[:] = self._target
        self.view.distance = (6.0 + 1.5 * robots) * self._size
        self.view.azimuth = math.degrees(self._heading) + 55.0


class _Panel:
    """The text in the picture's corner: the time, and what is asked for and done in figures."""

    def __init__(self, height: int, names: tuple[str, ...]) -> None:
        from PIL import ImageFont

        self._names = names
        self._unit = max(height // 30, 4)
        self._font = ImageFont.load_default(self._unit)

    def draw_on(self, image: np.ndarray, seconds: float, rows: list) -> np.ndarray:
        from PIL import Image, ImageDraw

        unit, picture = self._unit, Image.fromarray(image)
        draw = ImageDraw.Draw(picture, "RGBA")
        names = ("command", "measured")[2 - len(rows) :]
        columns = _columns(self._names)
        left, top = unit, picture.height - unit * (4 + 1.5 * len(rows))
        right = left + unit * (columns[-1] + 1 if columns else 5)
        draw.rounded_rectangle((left, top, right, picture.height - unit), unit // 2, (255, 255, 255, 190))
        y = top + 1.5 * unit
        columns = [left + unit * x for x in columns]
        draw.text((left + unit, y), f"{seconds:.1f} s", (60, 64, 70), self._font, "lm")
        for x, name in zip(columns, self._names, strict=True):
            draw.text((x, y), name, (60, 64, 70), self._font, "rm")
        for name, (rgb, vector) in zip(names, rows, strict=True):
            y += 1.5 * unit
            colour = tuple(round(200 * part) for part in rgb)
            draw.text((left + unit, y), name, colour, self._font, "lm")
            for x, value in zip(columns, vector, strict=True):
                draw.text((x, y), f"{value:.2f}", colour, self._font, "rm")
        return np.asarray(picture)


@cache
def use_gl() -> None:
    """Let MuJoCo render with whatever renders here without a window.

    Raises:
        FilmError: nothing does; one line.
    """
    backend, reason = gl_backend()
    if backend is None:
        raise FilmError(f"no film: MuJoCo cannot render here ({reason}); {GL_REMEDY}")
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # which accelerators it lacks is no news
    if os.environ.get("MUJOCO_GL") != backend:
        os.environ["MUJOCO_GL"] = backend
        # MuJoCo read the variable when it was imported; its renderer asks this module for the context anew
        importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))


def _heading(matrix: np.ndarray) -> float:
    """Measure the angle of a body's x axis in the horizontal plane, of its rotation matrix (9,) [rad]."""
    return math.atan2(matrix[3], matrix[0])


class _Canvas:
    """What a demo draws on; see `embodied_rl.mdp.demo.Canvas`.  What is too small to be seen is left out."""

    def __init__(self, scene: Any, origin: np.ndarray, heading: float, size: float, rgb: tuple) -> None:
        self._scene, self._origin, self._heading, self._size, self._rgb = scene, origin, heading, size, rgb

    def arrow(self, forward: float, left: float) -> None:
        c, s = math.cos(self._heading), math.sin(self._heading)
        tip = self._origin + np.array([c * forward - s * left, s * forward + c * left, 0.0])
        if math.hypot(forward, left) > 0.1 * self._size:
            _connect(self._scene, mujoco.mjtGeom.mjGEOM_ARROW, 0.05 * self._size, self._origin, tip, self._rgb)

    def arc(self, angle: float) -> None:
        if abs(angle) <= 0.05:
            return
        angles = self._heading + np.linspace(0.0, angle, 2 + int(abs(angle) / 0.1))
        points = self._origin + 0.75 * self._size * np.stack((np.cos(angles), np.sin(angles), 0.0 * angles), axis=-1)
        for start, end in pairwise(points):
            _connect(self._scene, mujoco.mjtGeom.mjGEOM_CAPSULE, 0.025 * self._size, start, end, self._rgb)


def _columns(names: tuple[str, ...]) -> list[float]:
    """Place the right ends of columns, from the panel's left edge on; a character is about half a unit wide."""
    columns, right = [], 5.0
    for name in names:
        right += max(4.5, 0.5 + 0.5 * len(name))
        columns.append(right)
    return columns


def _connect(scene: Any, kind: int, width: float, start: np.ndarray, end: np.ndarray, rgb: tuple) -> None:
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.zeros(9), np.array((*rgb, 1.0), dtype=np.float32))
    mujoco.mjv_connector(geom, kind, width, start, end)
    geom.category = mujoco.mjtCatBit.mjCAT_DECOR
    scene.ngeom += 1
