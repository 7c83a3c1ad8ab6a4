# Thin targets over one program, `mbeir-cot`. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
VENV ?= .venv
EXTRA ?= cpu
CONFIG ?= configs/pocket.yaml
TRAIN ?= configs/train-pocket.yaml
PROCESSES ?= 1
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help setup lock lock-gpu lint test test-fast test-one bench bench-build bench-train pocket-world build-dataset pocket-models train eval pocket-long eval-shipped push report

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv and install everything (EXTRA=gpu for CUDA machines); does nothing if nothing has changed
	@VENV=$(VENV) scripts/setup.sh $(EXTRA)

pocket-world: setup ## write the synthetic miniature M-BEIR to build/pocket/world
	@$(BIN)/mbeir-cot pocket world build/pocket/world

build-dataset: setup pocket-world ## build the dataset of CONFIG (default: pocket, with a real vLLM server on CPU)
	@$(BIN)/mbeir-cot build $(CONFIG) $(ARGS)

# Two more datasets for the pocket training, from the same ledger: one in which every query has a trace, for the control that always
# reasons; and one of the test queries, for the ceiling with the teacher's traces (without verification, because it sees the targets
# and would make the ceiling unfair).
build/pocket/dataset/manifest.json:
	@$(MAKE) --no-print-directory build-dataset CONFIG=configs/pocket.yaml ARGS=
build/pocket-reasoned/dataset/manifest.json: build/pocket/dataset/manifest.json
	@$(BIN)/mbeir-cot build configs/pocket.yaml --out build/pocket-reasoned --set ledger.location=build/pocket/ledger \
	  --set route.threshold=0
build/pocket-test/dataset/manifest.json: build/pocket/dataset/manifest.json
	@$(BIN)/mbeir-cot build configs/pocket.yaml --out build/pocket-test --set ledger.location=build/pocket/ledger \
	  --set input.split=test --set verify.enabled=false

ifeq ($(TRAIN),configs/train-pocket.yaml)
TRAIN_DATA := build/pocket-reasoned/dataset/manifest.json build/pocket-test/dataset/manifest.json
endif

train: setup $(TRAIN_DATA) ## train TRACE and its controls on the built dataset (TRAIN=config, PROCESSES=n; default: pocket)
	@$(BIN)/mbeir-cot train $(TRAIN) --processes $(PROCESSES) $(ARGS)

eval: setup $(TRAIN_DATA) ## score the trained models: M-BEIR's table with controls and costs
	@$(BIN)/mbeir-cot eval $(TRAIN) $(ARGS)

pocket-long: setup ## build pocket-long and train the models in pocket/models on it (hours on CPU; run again, it goes on where it was)
	@$(BIN)/mbeir-cot pocket world build/pocket-long/world --queries 20000
	@$(BIN)/mbeir-cot build configs/pocket-long.yaml
	@$(BIN)/mbeir-cot train configs/train-pocket-long.yaml $(ARGS)

eval-shipped: setup pocket-world build/pocket-test/dataset/manifest.json ## score the shipped models, pocket/models, in build/pocket-shipped
	@mkdir -p build/pocket-shipped && cp -r pocket/models/. build/pocket-shipped/
	@$(BIN)/mbeir-cot eval build/pocket-shipped $(ARGS)

push: setup ## publish the built dataset: make push REPO=org/name [DIR=build/pocket]
	@test -n "$(REPO)" || { echo "name the repository: make push REPO=org/name"; exit 2; }
	@$(BIN)/mbeir-cot push $(or $(DIR),build/pocket) $(REPO) $(ARGS)

report: setup ## write one HTML page about a build or a run: make report [DIR=build/pocket]
	@$(BIN)/mbeir-cot report $(or $(DIR),build/pocket) $(ARGS)

pocket-models: setup ## train the pocket checkpoints from scratch (long on CPU; DEVICE=cuda for a GPU)
	@$(BIN)/mbeir-cot pocket models --device $(or $(DEVICE),cpu)

lint: setup ## ruff (rules and format) and mypy strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Most slow tests wait for a process to start, so three files run in parallel on 2 cores (11 min 50 s when quiet; with two files 12 min
# 55 s), each with one compute thread. Ray's workers run at a
# raised nice level by default and would starve beside the other files.
test: setup ## every test
	@OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25

test-fast: setup ## the inner loop: no slow tests
	@OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not vllm"

test-one: setup ## some tests by name: make test-one T=tests/trainer/retrieval/test_topk.py [ARGS="-k ties"]
	@test -n "$(T)" || { echo "name a test: make test-one T=tests/trainer/retrieval/test_topk.py [ARGS=\"-k ties\"]"; exit 2; }
	@OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest $(T) $(ARGS)

bench: setup ## benchmarks of reader, client and grammar, with ratios to plain baselines of the same run
	@$(BIN)/python bench/pools.py
	@$(BIN)/python bench/client.py
	@$(BIN)/python -m bench.grammar masks

bench-build: setup ## benchmarks of the build: oracle and real teacher, quality against the pocket world's truth
	@$(BIN)/python -m bench.build instant
	@$(BIN)/python -m bench.build teacher
	@$(BIN)/python -m bench.quality

bench-train: setup ## benchmarks of the trainer: step, memory, adaptive embedding, exact search
	@$(BIN)/python -m bench.train step
	@$(BIN)/python -m bench.train memory
	@$(BIN)/python -m bench.train adaptive
	@$(BIN)/python -m bench.search

.PHONY: rehearse
rehearse: setup ## run the GPU configs on random checkpoints with real layouts: teacher, train, eval, merge (DEVICE=cuda for a GPU)
	@$(BIN)/python -m bench.rehearse --device $(or $(DEVICE),cpu) $(ARGS)

lock: ## write requirements-cpu.lock from the packages in .venv (scripts/setup.sh says what is left out and why)
	@$(BIN)/pip freeze --exclude-editable 2>/dev/null | grep -v -i -E '^(torchaudio|torchcodec)==' | sort -f > requirements-cpu.lock

lock-gpu: ## write requirements-gpu.lock (needs uv, no GPU; ARGS=--upgrade for newer versions)
	@scripts/lock_gpu.sh $(ARGS)
