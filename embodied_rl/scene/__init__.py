"""The model of a page: robot, terrain and the sensors that its terms ask for."""

from embodied_rl.scene.build import NEEDS, Scene, SceneError, build_scene

__all__ = ["NEEDS", "Scene", "SceneError", "build_scene"]
