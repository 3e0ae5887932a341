# Every target sets up what it needs first. On a machine without make: python packaging/bootstrap.py run
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) packaging/bootstrap.py

.PHONY: bench-window test-window test-screens test-faults bench-runs bench-scaling bench-speed run test lint bench bench-ui bench-memory bench-data bench-merge bench-exports test-architectures test-gpu gpu-kit gpu-rehearsal gpu-report clean check-templates test-data

run:  ## open the window; without a display, train the starter in the terminal
	@$(BOOTSTRAP) run

test:  ## all checks and tests
	@$(BOOTSTRAP) test

lint:  ## style, types and import contracts only
	@$(BOOTSTRAP) lint

bench:  ## all benchmarks
	@$(BOOTSTRAP) bench

bench-ui:  ## event-loop gaps of the window while a run is training
	@$(BOOTSTRAP) bench-ui

bench-window:  ## how much slower a run is while the window shows it
	@$(BOOTSTRAP) bench-window

bench-runs:  ## the list of two thousand runs, and a comparison of eight
	@$(BOOTSTRAP) bench-runs

bench-scaling:  ## time per token by rows in a step, rows of data and steps; memory; what a start takes
	@$(BOOTSTRAP) bench-scaling

bench-speed:  ## tokens per second beside a bare PEFT loop and TRL
	@$(BOOTSTRAP) bench-speed

bench-memory:  ## predicted against measured memory, per setting
	@$(BOOTSTRAP) bench-memory

bench-data:  ## reading and tokenizing a large dataset against datasets.map
	@$(BOOTSTRAP) bench-data

bench-data-window:  ## the window's longest turn while it reads 20,000 rows, and when the first are seen
	@$(BOOTSTRAP) bench-data-window

bench-merge:  ## merging a billion parameters against the disk's copy speed
	@$(BOOTSTRAP) bench-merge

bench-exports:  ## every export of a trained starter, proven, and a row learned by heart
	@$(BOOTSTRAP) bench-exports

test-window:  ## thousands of random clicks, keys, drops and resizes over a live run, then test-screens
	@$(BOOTSTRAP) test-window

test-screens:  ## every screen of every state, in all themes, sizes and lengths of labels, also on a 4K screen at 200 %
	@$(BOOTSTRAP) test-screens

test-faults:  ## every file a run writes, damaged in every way, met by every reader
	@$(BOOTSTRAP) test-faults

test-data:  ## thousands of damaged files and rows of data, met by every reader
	@$(BOOTSTRAP) test-data

check-templates:  ## every chat template in a folder, on a fixed list of conversations: make check-templates DIR=folder
	@DIR="$(DIR)" $(BOOTSTRAP) check-templates

test-architectures:  ## every model type of the installed transformers, trained and proven as a tiny model
	@$(BOOTSTRAP) test-architectures

test-gpu:  ## the confirmations only an NVIDIA GPU can give
	@$(BOOTSTRAP) test-gpu

gpu-kit:  ## the wheels that a borrowed GPU machine without a network lacks, into build/gpu-kit
	@$(BOOTSTRAP) gpu-kit

gpu-rehearsal:  ## tests/gpu/run_offline.py on the CPU with tiny shapes, with that kit
	@$(BOOTSTRAP) gpu-rehearsal

gpu-report:  ## what kept reports of GPUs say, written into README and the help pages
	@$(BOOTSTRAP) gpu-report

clean:  ## forget the virtual environment; your models and runs stay
	rm -rf .venv build dist
