"""The robots that ship with embodied_rl: one folder each, with robot.yaml, its model and the source of every number."""
