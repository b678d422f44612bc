"""How a scene looks: sky, floor and light, for films, windows and exported models."""

from __future__ import annotations

import mujoco

from embodied_rl.scene.plain import PLAIN

#: Names of what is added.
ADDED = ("sky", "floor", "sun")


def dress(spec: mujoco.MjSpec, base: str, ground: str, prefix: str = "") -> None:
    """Give a model a sky, a floor and a lamp.

    Args:
        spec: the model.
        base: the body that the lamp travels with.
        ground: the geom that becomes the floor.
        prefix: of the names of what is added.
    """
    spec.add_texture(
        name=f"{prefix}sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.93, 0.95, 0.97),
        rgb2=(0.52, 0.63, 0.76),
        width=256,
        height=1536,
    )
    spec.add_texture(
        name=f"{prefix}floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.56, 0.62, 0.68),
        rgb2=(0.49, 0.55, 0.61),
        mark=mujoco.mjtMark.mjMARK_EDGE,
        markrgb=(0.66, 0.71, 0.76),
        width=300,
        height=300,
    )
    floor = spec.add_material(PLAIN, name=f"{prefix}floor", texrepeat=(1.0, 1.0), texuniform=True, specular=0.1, shininess=0.1)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"{prefix}floor"
    spec.geom(ground).material = f"{prefix}floor"
    # A lamp high above the base, which travels with it: shadows are drawn only near the axis of their light, and those
    # of MuJoCo's directional light speckle the floor.
    spec.body(base).add_light(
        PLAIN,
        name=f"{prefix}sun",
        type=mujoco.mjtLightType.mjLIGHT_SPOT,
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK,
        pos=(4.0, -5.0, 14.0),
        dir=(-4.0, 5.0, -14.0),
        cutoff=80.0,
        exponent=0.0,
        diffuse=(0.75, 0.74, 0.72),
        specular=(0.3, 0.3, 0.3),
    )
    spec.visual.map.shadowscale = 0.12
    quality = spec.visual.quality
    quality.shadowsize, quality.numslices, quality.numstacks, quality.numquads = 2048, 20, 10, 1
    spec.visual.headlight.ambient = (0.3, 0.3, 0.32)
    spec.visual.headlight.diffuse = (0.3, 0.3, 0.3)
    spec.visual.headlight.specular = (0.1, 0.1, 0.1)
    spec.visual.rgba.haze = (0.93, 0.95, 0.97, 1.0)
    spec.visual.global_.fovy = 35.0
