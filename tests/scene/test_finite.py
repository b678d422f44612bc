from __future__ import annotations

from pathlib import Path

import mujoco
import pytest

from embodied_rl.errors import UserError
from embodied_rl.scene.finite import check_finite

MODEL = """
<mujoco><worldbody><body name="trunk" pos="0 0 {trunk}"><joint name="hip" stiffness="{hip}"/>
  <geom size="0.1" mass="1" pos="0 {geom} 0"/></body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ({"trunk": "inf"}, "dog.xml: pos of body 'trunk': inf is not a finite number"),
        ({"geom": "nan"}, "dog.xml: pos of a geom of body 'trunk': nan is not a finite number"),
        ({"hip": "-inf"}, "dog.xml: stiffness of joint 'hip': -inf is not a finite number"),
    ],
)
def test_an_element_with_a_number_that_is_none_is_named(number: dict[str, str], said: str) -> None:
    right = {"trunk": "1", "hip": "0", "geom": "0"}
    check_finite(mujoco.MjModel.from_xml_string(MODEL.format(**right)), Path("dog.xml"))
    model = mujoco.MjModel.from_xml_string(MODEL.format(**right))
    ((what, value),) = number.items()
    {"trunk": model.body_pos, "geom": model.geom_pos, "hip": model.jnt_stiffness}[what].flat[-1] = float(value)
    with pytest.raises(UserError) as refused:
        check_finite(model, Path("dog.xml"))
    assert str(refused.value) == said
