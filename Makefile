# make demo    train, evaluate and draw a SOFT-Norm detector on generated shapes
# make test    lint and the test suite, in a process for each core (4 at most); make test-all adds
#              what trains for minutes on real images
# make test-fast   lint and one test of every kind, those of tests/fast.txt: two minutes
# make setup   the environment both need, in .venv
#
# PYTHON names the interpreter (3.11) and WHEELHOUSE a folder with a wheel of mmcv, which is
# otherwise built from its source: 12 minutes on two cores.

PYTHON ?= python3
WHEELHOUSE ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(if $(WHEELHOUSE),--find-links $(WHEELHOUSE))
CORE := .venv-core
OPENMMLAB := .venv-openmmlab
TORCH ?= torch
MMENGINE ?= onedl-mmengine
STEP := @tools/step.sh
# The cores are shared out among pytest's workers: one thread each, for the commands they start too.
# A file stays in one worker, as its tests share what its fixtures have trained or built.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
DEMO := configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py
DEMO_OUT := work_dirs/demo

.PHONY: demo test test-all test-fast test-core test-openmmlab lint setup clean
.DELETE_ON_ERROR:

demo: setup
	$(STEP) 'generate the shapes' 'Remove data/shapes and run make demo again.' \
	    $(BIN)/python tools/misc/make_shapes.py data/shapes
	$(STEP) 'train RetinaNet with SOFT-Norm-Tiny' 'The log is in $(DEMO_OUT).' \
	    $(BIN)/python tools/train.py $(DEMO) --work-dir $(DEMO_OUT)
	$(STEP) 'evaluate and draw' 'The log is in $(DEMO_OUT).' \
	    sh -c '$(BIN)/python tools/test.py $(DEMO) $$(cat $(DEMO_OUT)/last_checkpoint) \
	        --work-dir $(DEMO_OUT) --show-dir $(DEMO_OUT)/pictures --out $(DEMO_OUT)/metrics.json'

test: lint
	$(STEP) 'run the tests' 'The failures stand above.' $(PYTEST)

test-all: lint
	$(STEP) 'run all tests' 'The failures stand above.' $(PYTEST) -m ''

test-fast: lint
	$(STEP) 'run one test of every kind' \
	    'The failures stand above; if none do, tests/fast.txt names a test that is gone.' \
	    $(PYTEST) @tests/fast.txt

# The ops and backbones alone, with another Python, torch or MMEngine, in an environment of its own:
# make test-core PYTHON=python3.12 TORCH='torch==2.4.1 numpy<2.3' MMENGINE=mmengine==0.10.7
test-core:
	$(STEP) 'make $(CORE)' 'Remove $(CORE) and run make again.' $(PYTHON) -m venv $(CORE)
	$(STEP) 'install $(TORCH) and $(MMENGINE)' 'Check the network, the disk and the versions.' \
	    $(CORE)/bin/python -m pip install --quiet $(foreach package,$(TORCH) $(MMENGINE),'$(package)') numpy opencv-python-headless pytest 'setuptools<80'
	$(STEP) 'run the tests of soft_mm' 'The failures stand above.' \
	    env PYTHONPATH=$(CURDIR) $(CORE)/bin/python -m pytest -p no:cacheprovider tests/soft_mm

# The detector's commands with OpenMMLab's own packages, on the last torch they work with, on Python
# 3.11, in an environment of its own; mmcv is built for it, 12 minutes on two cores:
# make test-openmmlab PYTHON=python3.11
test-openmmlab:
	$(STEP) 'make $(OPENMMLAB)' 'Remove $(OPENMMLAB) and run make again.' $(PYTHON) -m venv $(OPENMMLAB)
	$(STEP) 'install torch 2.4.1 (several GB, minutes)' 'Check the network, the disk and PYTHON.' \
	    $(OPENMMLAB)/bin/python -m pip install --quiet torch==2.4.1 'numpy<2.3' 'setuptools<80' wheel \
	    ninja psutil packaging pytest opencv-python-headless addict matplotlib pillow pycocotools \
	    pyyaml rich scipy shapely six termcolor terminaltables tqdm yapf
	$(STEP) 'install mmengine, mmdet, and mmcv with its ops' 'It needs a C++ compiler and the Python headers.' \
	    env MMCV_WITH_OPS=1 CFLAGS=-g0 $(OPENMMLAB)/bin/python -m pip install --quiet --no-deps \
	    --no-build-isolation --no-cache-dir mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0
	$(STEP) 'run the tests of the commands' 'The failures stand above.' \
	    env PYTHONPATH=$(CURDIR) $(OPENMMLAB)/bin/python -m pytest -p no:cacheprovider tests/tools/test_runs.py

lint: setup
	$(STEP) 'lint' 'Run .venv/bin/ruff check --fix.' $(BIN)/ruff check .
	$(STEP) 'check the format' 'Run .venv/bin/ruff format.' $(BIN)/ruff format --check .

setup: $(BIN)/.soft_mm

$(BIN)/.python:
	$(STEP) 'check Python' 'Install Python 3.11, or name one: make PYTHON=python3.11 ...' \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"needs Python 3.11, {sys.executable} is {sys.version}")'
	$(STEP) 'make .venv' 'Install the venv module (Debian: apt-get install python3-venv) and remove .venv.' \
	    $(PYTHON) -m venv .venv
	@touch $@

$(BIN)/.requirements: requirements.txt | $(BIN)/.python
	$(STEP) 'install build tools' 'Check the network and run make again.' \
	    $(PIP) $$(grep -E '^(pip|setuptools|wheel|packaging|ninja|psutil)==' requirements.txt)
	$(STEP) 'install requirements.txt (several GB, minutes)' 'Check the network and the disk and run make again.' \
	    sh -c "grep -v '^onedl-mmcv==' requirements.txt | $(PIP) -r /dev/stdin"
	@touch $@

# mmcv's ops need torch at build time, and a build that does not find it leaves them out silently.
$(BIN)/.mmcv: $(BIN)/.requirements
	$(STEP) 'install mmcv with its ops (built in 12 minutes unless WHEELHOUSE has a wheel)' \
	    'It needs a C++ compiler and the Python headers (Debian: apt-get install g++ python3-dev); with a GPU also the CUDA toolkit.' \
	    env MMCV_WITH_OPS=1 CFLAGS=-g0 $(PIP) $$(grep '^onedl-mmcv==' requirements.txt)
	$(STEP) 'check the ops of mmcv' 'Remove .venv and run make again with a C++ compiler installed.' \
	    $(BIN)/python -W ignore -c 'import mmcv.ops'
	@touch $@

# With its compiled ops where there is a C++ compiler; FORCE_CUDA=1 builds them for GPUs too.
$(BIN)/.soft_mm: setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.*) $(BIN)/.mmcv
	$(STEP) 'install soft_mm' 'It needs the Python headers to compile (Debian: apt-get install python3-dev).' $(PIP) --editable .
	@touch $@

clean:
	rm -rf .venv $(CORE) $(OPENMMLAB) work_dirs data/shapes build soft_mm/_C*.so *.egg-info
