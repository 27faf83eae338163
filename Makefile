# The commands of the README; .ci/run calls these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quickstart quickstart-short digits test test-slow test-slurm check bench bench-peers bench-data bench-checkpoint bench-recovery soak docs clean

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

test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not slurm" -rs -n 2 --dist worksteal

# The longest first. Three at a time take longer than two: on two processors they wait for each other.
test-slow: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --dist load --maxschedchunk 1 --timeout 900 --durations 30

# On a real Slurm of virtual hosts: needs root and Debian's slurm-wlm, libslurm-dev, munge, iproute2, procps and gcc; else
# skipped, and told.
test-slurm: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m slurm -rs -n 2 --dist load --maxschedchunk 1 --timeout 900 --durations 10 tests/slurm

# Half an hour of random faults, about one a minute, and then the same steps undisturbed: equal bit for bit.
MINUTES ?= 30
SEED ?= 1
soak: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks.step

# The data benchmark's peers pull another torch and numpy: a virtual environment of their own.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers.txt
	@$(PYTHON) -m venv .venv-peers
	@timeout 600 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/peers.txt torch
	@timeout 600 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	@touch $@

bench-data: $(INSTALLED) bench-peers
	@$(BIN)/python -m benchmarks.data --write
	@$(BIN)/python -m benchmarks.decode
	@$(BIN)/python -m benchmarks.order

bench-checkpoint: $(INSTALLED)
	@$(BIN)/python -m benchmarks.checkpoint --write

bench-recovery: $(INSTALLED)
	@$(BIN)/python -m benchmarks.recovery --write

docs: $(INSTALLED)
	@$(BIN)/python -m configs.reference docs

clean:
	rm -rf .venv .venv-peers build *.egg-info .mypy_cache .ruff_cache .hypothesis
