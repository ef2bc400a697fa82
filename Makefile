# Python 3.10 or newer and a package registry are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test fuzz bench bench-gpu bench-quality cifar-clts cifar-studies feature-scores dinov2-small adding notebooks check format lint types docs tree map clean

help:            ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/  /'

$(STAMP): pyproject.toml
	@echo "== setting up $(VENV) (about two minutes and 6 GB the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	@touch $(STAMP)

setup: $(STAMP)  ## create the environment that all targets share

demo: $(STAMP)   ## train and explore a CLT on handwritten digits, offline, about a minute
	@echo "== vit-clt demo, into out/demo"
	@$(BIN)/vit-clt demo --out out/demo --overwrite

test: $(STAMP)   ## run the tests
	@echo "== tests (7 to 11 minutes on two cores)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=5

fuzz: $(STAMP)   ## read damaged and hostile files, 20,000 for each reader (about an hour)
	@echo "== fuzz"
	@VIT_CLT_FUZZ_EXAMPLES=$${VIT_CLT_FUZZ_EXAMPLES:-20000} OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n 2 tests/fuzz

bench: $(STAMP)  ## time the step, its memory, a replaced ViT, and the studies on this machine
	@echo "== bench, one thread, into out/bench; fails if the machine is loaded"
	@failed=0; \
	$(BIN)/python benchmarks/bench_step.py --growth --paper --out out/bench/step.json || failed=1; \
	$(BIN)/python benchmarks/bench_screening.py --out out/bench/screening.json || failed=1; \
	$(BIN)/python benchmarks/bench_threads.py --out out/bench/threads.json || failed=1; \
	$(BIN)/python benchmarks/bench_jump.py --out out/bench/jump.json || failed=1; \
	$(BIN)/python benchmarks/bench_replacement.py --out out/bench/replacement.json || failed=1; \
	$(BIN)/python benchmarks/bench_cascade.py --out out/bench/cascade.json || failed=1; \
	$(BIN)/python benchmarks/bench_keep_sets.py --out out/bench/keep_sets.json || failed=1; \
	$(BIN)/python benchmarks/bench_scores.py --out out/bench/scores.json || failed=1; \
	$(BIN)/python benchmarks/bench_retrieval.py --out out/bench/retrieval.json || failed=1; \
	$(BIN)/python benchmarks/bench_startup.py --out out/bench/startup.json || failed=1; \
	$(BIN)/python benchmarks/bench_memory.py --out out/bench/memory.json || failed=1; \
	$(BIN)/python benchmarks/bench_freed_memory.py --out out/bench/freed_memory.json || failed=1; \
	$(BIN)/python benchmarks/bench_explorer.py --out out/bench/explorer.json || failed=1; \
	exit $$failed

bench-gpu: $(STAMP)  ## time the step at paper size on a GPU, into out/bench/gpu.json
	@echo "== bench-gpu, fails if others use the GPU"
	@$(BIN)/python benchmarks/bench_gpu.py --out out/bench/gpu.json

bench-quality: $(STAMP)  ## race ours and others' trainers for FVU (PEERS: docs/results/quality_race.md; resumes)
	@echo "== bench-quality, into out/quality_race/adding"
	@$(BIN)/python benchmarks/bench_quality.py $(if $(PEERS),--peers $(PEERS))

cifar-clts: $(STAMP)  ## train the eight CIFAR-10 transcoders of docs/results (about two hours; resumes)
	@echo "== CIFAR-10 CLTs, into out/cifar10"
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/cifar_clts.py

cifar-studies: $(STAMP)  ## the studies of these, of docs/results/cifar10_*.md (about an hour; resumes)
	@echo "== studies of the CIFAR-10 CLTs, into out/cifar10/studies"
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/cifar_studies.py

feature-scores: $(STAMP)  ## measures of features, of docs/results/feature_scores.md (about half an hour; resumes)
	@echo "== feature scores, into out/feature_scores"
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/feature_scores.py

dinov2-small: $(STAMP)  ## a CLT of a real ViT-S/14 and its studies, of docs/results/dinov2_small.md (about an hour; resumes)
	@echo "== DINOv2-small, into out/dinov2_small"
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/dinov2_small.py

adding: $(STAMP) ## the study with a known answer, of docs/results/adding.md (about 15 minutes; resumes)
	@echo "== adding study, into out/adding"
	@$(MAKE) --no-print-directory -j2 -f scripts/adding.mk PYTHON=$(BIN)/python

notebooks: $(STAMP)  ## run the notebooks and store them with what they show (about six minutes; needs Chromium)
	@echo "== notebooks"
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/notebooks.py

check: format lint types docs test  ## exactly what CI runs

format: $(STAMP) ## fail if a file is not formatted
	@echo "== format"
	@$(BIN)/ruff format --check .

lint: $(STAMP)   ## ruff
	@echo "== lint"
	@$(BIN)/ruff check .

# three folders are one package: a copy as it is installed, for what reads sources without importing
tree: $(STAMP)
	@rm -rf build && mkdir build
	@$(BIN)/python -c "import setuptools; setuptools.setup()" --quiet build_py --build-lib build/types 2> build/types.log || (cat build/types.log; false)

types: tree      ## mypy on the package as it is installed
	@echo "== types"
	@MYPYPATH=build/types $(BIN)/mypy

docs: tree       ## build the documentation into out/site; warnings are errors
	@echo "== docs, into out/site"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict > build/docs.log 2>&1 || (cat build/docs.log; false)

map: $(STAMP)    ## draw the rooms of CONTRIBUTING.md anew, from the imports
	@$(BIN)/python scripts/map_rooms.py --write

clean:           ## remove the environment and everything generated
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
