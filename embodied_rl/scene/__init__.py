"""The model of a page: robot, terrain and the sensors that its terms ask for."""

from embodied_rl.physics.kinematics import Frame
from embodied_rl.scene.build import NEEDS, Root, Scene, SceneError, build_scene, whole_spec
from embodied_rl.scene.feet import Feet

__all__ = ["NEEDS", "Feet", "Frame", "Root", "Scene", "SceneError", "build_scene", "whole_spec"]
