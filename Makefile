# The commands of the README; .ci/run calls these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# pip compiles nothing (it would take a minute): what is imported is compiled once, and not in every process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install quickstart quickstart-short digits test test-smoke test-slow test-slurm test-all check bench bench-peers bench-data bench-checkpoint bench-recovery soak same-bits docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing the pinned packages into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,examples]'
	@touch $(INSTALLED)

shards/stdlib: | $(INSTALLED)
	@$(BIN)/stoker data pack stdlib shards/stdlib

shards/digits: | $(INSTALLED)
	@$(BIN)/stoker data pack digits shards/digits

quickstart: $(INSTALLED) shards/stdlib
	@$(BIN)/stoker train configs/gpt_tiny.yaml

# The same path in less time, in a run folder of its own: for CI.
quickstart-short: $(INSTALLED) shards/stdlib
	@$(BIN)/stoker train configs/gpt_tiny.yaml run.name=gpt-tiny-short run.steps=20 schedule.warmup_steps=5 \
	  validation.max_samples=256

digits: $(INSTALLED) shards/digits
	@$(BIN)/stoker train configs/resnet_digits.yaml

# Each of these runs a test that failed once more, alone, and ends with a summary (tests/suites.py).
test: $(INSTALLED)
	@$(BIN)/python -m tests.suites test

# Once through real Ray, real faults and a real Slurm.
test-smoke: $(INSTALLED)
	@$(BIN)/python -m tests.suites smoke

test-slow: $(INSTALLED)
	@$(BIN)/python -m tests.suites slow

# On a real Slurm of virtual hosts: needs root and Debian's slurm-wlm, libslurm-dev, munge, iproute2, procps, shellcheck and
# gcc; else skipped, and told.
test-slurm: $(INSTALLED)
	@$(BIN)/python -m tests.suites slurm

# All of them; the summary is in build/test-summary.md too.
test-all: $(INSTALLED)
	@$(BIN)/python -m tests.suites all

# Half an hour of random faults, about one a minute, and then the same steps undisturbed: equal bit for bit.
MINUTES ?= 30
SEED ?= 1
soak: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

# The same recipe RUNS times at ZeRO 1 and 3, each killed and resumed, beside two busy loops: equal bit for bit.
RUNS ?= 50
same-bits: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.same_bits --runs $(RUNS)

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.house

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks.step

# The data benchmark's peers pull another torch and numpy: a virtual environment of their own.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/data/peers.txt
	@$(PYTHON) -m venv .venv-peers
	@timeout 600 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/data/peers.txt torch
	@timeout 600 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/data/peers.txt
	@touch $@

bench-data: $(INSTALLED) bench-peers
	@$(BIN)/python -m benchmarks.data --write
	@$(BIN)/python -m benchmarks.data.decode
	@$(BIN)/python -m benchmarks.data.order_at_scale

bench-checkpoint: $(INSTALLED)
	@$(BIN)/python -m benchmarks.checkpoint --write

bench-recovery: $(INSTALLED)
	@$(BIN)/python -m benchmarks.recovery --write

docs: $(INSTALLED)
	@$(BIN)/python -m configs.reference docs

clean:
	rm -rf .venv .venv-peers build *.egg-info .mypy_cache .ruff_cache .hypothesis
