# Everything below works on a machine with Python >= 3.10 and a compiler, and no ROS: real ROS 2
# comes from PyPI into a virtual environment. `make` says what there is.

PYTHON ?= python3
# Where torch comes from; https://download.pytorch.org/whl/cu130 gives a CUDA build, for one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.venv
BUILD := $(CURDIR)/build
INSTALLED := $(VENV)/.installed
# In two processes: one for the live nodes, the other one for all else (test/conftest.py). Where so
# many fail, the machine is at fault, and waiting for the rest takes hours.
PYTEST := $(if $(COVERAGE),coverage run,python) -m pytest -n 2 --maxfail 20

# What 'make fuzz' and 'make mutation' install for themselves; not among the pinned packages, as not
# every Python has them.
ATHERIS := $(shell sed -nE 's/^fuzz = \["([^"]*)"\].*/\1/p' pyproject.toml)
MUTMUT := $(shell sed -nE 's/^mutation = \["([^"]*)"\].*/\1/p' pyproject.toml)

# This checkout and this environment alone: a sourced ROS installation would be mixed in else.
unexport LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export AMENT_PREFIX_PATH := $(VENV)
export CMAKE_PREFIX_PATH := $(VENV)
export PATH := $(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup build test coverage test-fast fuzz mutation soak load audit lint format demo lock clean distclean

help: ## Say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: $(INSTALLED) ## Make the virtual environment .venv with the pinned packages

# Extra index for torch alone; what is found there with a local version (2.13.0+cpu) wins over
# PyPI's build, and where that index cannot be reached PyPI's is taken.
$(INSTALLED): constraints.txt scripts/check_machine.py scripts/repair_ros_wheels.py
	$(PYTHON) scripts/check_machine.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing packages into $(VENV): about 2 GB on the first run, which takes minutes"
	$(VENV)/bin/python -m pip install --quiet --retries 1 --no-deps \
	  --extra-index-url $(TORCH_INDEX) --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --requirement constraints.txt
	$(VENV)/bin/python scripts/repair_ros_wheels.py
	rm -rf $(BUILD)
	touch $@

# Always run, as it takes a second when nothing changed: colcon knows best what did. The Python
# files are linked, not copied, so the environment runs this checkout.
build: $(INSTALLED) ## Build the messages and install the package into .venv
	@colcon --log-base $(BUILD)/log build --base-paths $(CURDIR) --build-base $(BUILD) \
	  --merge-install --install-base $(VENV) --symlink-install \
	  --cmake-args -G Ninja -D BUILD_TESTING=OFF -D Python3_EXECUTABLE=$(VENV)/bin/python \
	  || { cat $(BUILD)/log/latest_build/lowlat_seg_ros/stdout_stderr.log; exit 1; }

test: build lint ## Check style and types, run every test (PYTEST_ARGS="-k engine" for some)
	$(if $(COVERAGE),coverage erase)
	$(PYTEST) $(PYTEST_ARGS)
	$(if $(COVERAGE),coverage combine --quiet && coverage report)

coverage: ## Do the same, and fail if less than 95 % of the product's lines were run
	$(MAKE) test COVERAGE=1

test-fast: build ## Run tests without live nodes and what is marked slow; no lint
	$(PYTEST) -m "not slow" --ignore=test/ros $(PYTEST_ARGS)

fuzz: build ## Feed random input to all that reads others' data (MINUTES=4)
	python -c "import atheris" 2>/dev/null || python -m pip install --quiet $(ATHERIS) || \
	  echo "atheris cannot be installed here, so input is mutated without looking at the code"
	python scripts/fuzz.py --minutes $(or $(MINUTES),4)

mutation: build ## Change the code in places and see whether tests notice (MINUTES=30); mutants/
	python -c "import mutmut" 2>/dev/null || python -m pip install --quiet $(MUTMUT)
	env -u PYTHONPATH python scripts/mutation.py --minutes $(or $(MINUTES),30)

soak: build ## Run the live node while all around it fails (MINUTES=30); soak_output/
	python scripts/soak.py --minutes $(or $(MINUTES),30)

load: build ## Give the live node more than it can do (MINUTES=0.5); load_output/
	python scripts/load.py --minutes $(or $(MINUTES),0.5)

# At OSV, which answers or cannot be reached: PyPI's mirrors know no vulnerabilities, and pip-audit
# then says that there are none.
audit: $(INSTALLED) ## Look the pinned packages up among known vulnerabilities, at api.osv.dev
	test -x $(BUILD)/audit/bin/pip-audit || { python -m venv $(BUILD)/audit && \
	  $(BUILD)/audit/bin/pip install --quiet pip-audit; }
	$(BUILD)/audit/bin/pip-audit --vulnerability-service osv --requirement constraints.txt --no-deps \
	  --disable-pip

lint: $(INSTALLED) ## Check style and types
	ruff check
	ruff format --check
	mypy

format: $(INSTALLED) ## Fix what can be fixed of the style
	ruff check --fix
	ruff format

demo: build ## Run the node on a rendered drive; results in demo_output/ (DEMO_ARGS="--help")
	lowlat-seg demo $(DEMO_ARGS)

lock: $(INSTALLED) ## Pin the newest packages that pyproject.toml allows
	python -m pip install --quiet uv
	{ sed -n '/^#/p' constraints.txt; \
	  uv pip compile --quiet pyproject.toml --extra fast --extra test \
	    --group ros --group build --group check \
	    --universal --python-version 3.10 --no-header --no-annotate \
	  | grep -vE '^(cuda|nvidia|triton)|win32'; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove what was built; .venv stays
	rm -rf $(BUILD) dist log .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants *.egg-info

distclean: clean ## Remove .venv too
	rm -rf $(VENV)
