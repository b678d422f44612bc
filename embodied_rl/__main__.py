"""`python -m embodied_rl` is `embodied-rl`."""

from embodied_rl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
