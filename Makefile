# Two commands do it all on a fresh machine: `make train` and `make test`.  Each creates .venv if it is not there.
#   TORCH_INDEX=URL   install torch from this package index (the README names PyTorch's CPU index)
#   ARGS="..."        passed on: make train ARGS="env.num_envs=512 --iterations 100", make test ARGS="-k reward"

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# the engines that tests compare with C: some 400 MB that training on a CPU does without
ENGINES := .venv/engines
# the old Python that the engine isaacgym runs in, where there is one: its tests are skipped otherwise
OLD := $(lastword $(wildcard /usr/bin/python3.8 $(HOME)/.pyenv/versions/3.8.*/bin/python3.8 $(HOME)/.local/share/uv/python/cpython-3.8.*/bin/python3.8))
# what the code imports of extras that `make lint` does without
UNTYPED := envpool matplotlib/figure dm_control/mujoco/wrapper/mjbindings shimmy/dm_control_compatibility

# A venv remembers its index; another one means another build of torch, hence a new venv.
USED_INDEX := $(shell cat .venv/torch-index 2>/dev/null)
TORCH_INDEX ?= $(USED_INDEX)
ifneq ($(TORCH_INDEX),$(USED_INDEX))
.PHONY: $(STAMP)
CLEAR := --clear
endif

.PHONY: help venv train test test-all lint docstrings format
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

venv: $(STAMP)  ## create .venv, with embodied-rl in .venv/bin

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("embodied-rl needs Python 3.11 or newer, and %s is %d.%d: name another one, make venv PYTHON=python3.12" % ((sys.executable,) + sys.version_info[:2]))'
	$(PYTHON) -m venv $(CLEAR) .venv
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,gym]"
	@# For pyright: it cannot follow setuptools' mapping of an editable install, mujoco ships no types, and the others are
	@# of extras that are not installed here: of these it knows that they exist, and no more.
	@mkdir -p .venv/typing/embodied_rl && touch .venv/typing/embodied_rl/__init__.py
	@ln -sfn ../../../tasks .venv/typing/embodied_rl/tasks
	@for module in mujoco $(UNTYPED); do \
		mkdir -p .venv/typing/$$module; \
		while [ $$module != . ]; do \
			printf 'from typing import Any\ndef __getattr__(name: str) -> Any: ...\n' > .venv/typing/$$module/__init__.pyi; \
			module=$$(dirname $$module); \
		done; \
	done
	@echo "$(TORCH_INDEX)" > .venv/torch-index
	@touch $@

$(ENGINES): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cuda,mjx,ray]"
	$(if $(OLD),-$(OLD) -m venv .venv/python3.8 && .venv/python3.8/bin/pip install --quiet --disable-pip-version-check numpy==1.24.4)
	@touch $@

train: $(STAMP)  ## train go2_flat until it walks
	$(BIN)/embodied-rl train go2_flat train.stop_when=passed $(ARGS)

test: $(ENGINES)  ## the tests that take seconds
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

test-all: $(ENGINES)  ## every test
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "" $(ARGS)

lint: $(ENGINES)  ## ruff, pyright, codespell, and whether the schemas of pages and robots are current
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# where they differ: python -m embodied_rl.config.json_schema > configs/schema.json, and likewise for robots
	$(BIN)/python -m embodied_rl.config.json_schema | cmp - configs/schema.json
	$(BIN)/python -m embodied_rl.robot.json_schema | cmp - robots/schema.json
	$(BIN)/codespell
	$(BIN)/pyright

docstrings: $(STAMP)  ## pyproject.toml's list of files with docstrings that are not in the imperative, as it is now
	@$(BIN)/ruff check --isolated --select D401 --output-format concise --exit-zero --quiet embodied_rl tasks robots configs \
		| sed -n 's/^\([^:]*\.py\):.*/"\1" = ["D401"]/p' | LC_ALL=C sort -u

format: $(STAMP)  ## rewrite the files as ruff would have them
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
