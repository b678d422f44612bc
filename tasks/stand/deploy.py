"""How a robot knows what a policy that holds poses sees; copied into each exported run_policy.py."""

OBSERVATIONS = {"pose_command": lambda policy, state, term: policy.command[term["command"]]}
