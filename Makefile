# make demo    train and evaluate a SOFT-Norm detector on generated shapes, and predict with it
# make study   train a small detector with every backbone and attention; SEEDS=3 for three runs each
# make test    lint and the test suite: 14 minutes on two idle cores
# make test-fast   lint and one test of every kind, listed in tests/fast.txt: two minutes
# make test-all    make test with the long tests too: training on real images, compilation, export
# make test-pipelines   our backbones in the toolboxes' own pipelines; writes the table of docs/pipelines.md
# make test-soak   train for an hour with 20 kills, and serve: same bits, flat memory; writes docs/soak.md
# make fuzz    feed random files to the readers of checkpoints and COCO files; MINUTES=30 for longer
# make wheel   build the sdist, and from it the wheel, in dist/
# make test-wheel   test both: the wheel in an environment without the checkout, mim's commands too
# make docs    build the site of docs/ in build/site; broken links are errors
# make setup   create the environment that they need, in .venv
#
# PYTHON is the interpreter, one of PYTHONS. WHEELHOUSE is a folder with a wheel of mmcv. Without one,
# mmcv is built, in 12 minutes on two cores, and its wheel is kept in the folder WHEELS for other
# checkouts and for the time after make clean.

PYTHON ?= python3
PYTHONS := 3.10 3.11 3.12 3.13
WHEELHOUSE ?=
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/soft_mm/wheels

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(if $(WHEELHOUSE),--find-links $(WHEELHOUSE))
CORE := .venv-core
OPENMMLAB := .venv-openmmlab
PINS := .venv-pins
DOCS := .venv-docs
MMCV := env WHEELHOUSE='$(WHEELHOUSE)' WHEELS='$(WHEELS)' tools/install_mmcv.sh
TORCH ?= torch
MMENGINE ?= onedl-mmengine
STEP := @tools/step.sh
# One process more than cores, at most 5, because some tests wait for commands that they start; each
# process and command uses one thread.
# A file stays in one worker, as its tests share what its fixtures have trained or built;
# tests/conftest.py puts the longest files first.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell echo $$(($$(nproc) + 1))) --maxprocesses 5 \
    --dist loadfile --no-loadscope-reorder --durations 20
DEMO := configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py
DEMO_OUT := work_dirs/demo
SEEDS ?= 1
KILLS ?= 20
test-soak: MINUTES ?= 60
fuzz: MINUTES ?= 10

.PHONY: demo study test test-all test-fast test-pipelines test-soak fuzz test-core test-openmmlab wheel test-wheel docs lint setup pins clean
.DELETE_ON_ERROR:

demo: setup
	$(STEP) 'generate the shapes' 'Remove data/shapes and run make demo again.' \
	    $(BIN)/python tools/misc/make_shapes.py data/shapes
	$(STEP) 'train RetinaNet with SOFT-Norm-Tiny' 'The log is in $(DEMO_OUT).' \
	    $(BIN)/python tools/train.py $(DEMO) --work-dir $(DEMO_OUT)
	$(STEP) 'evaluate and draw' 'The log is in $(DEMO_OUT).' \
	    sh -c '$(BIN)/python tools/test.py $(DEMO) $$(cat $(DEMO_OUT)/last_checkpoint) \
	        --work-dir $(DEMO_OUT) --show-dir $(DEMO_OUT)/pictures --out $(DEMO_OUT)/metrics.json'
	$(STEP) 'predict on images that the training has not seen' 'The checkpoint is in $(DEMO_OUT).' \
	    sh -c '$(BIN)/python tools/predict.py $(DEMO) $$(cat $(DEMO_OUT)/last_checkpoint) \
	        data/shapes/val/00000?.png --score-thr 0.5 --out $(DEMO_OUT)/predictions'

study: setup
	$(STEP) 'generate small shapes in clutter' 'Remove data/hard-shapes and run make study again.' \
	    $(BIN)/python tools/misc/make_shapes.py data/hard-shapes --hard --train 1000 --val 200
	$(STEP) 'train and evaluate every variant' 'Run make study again: it goes on where it stopped.' \
	    $(BIN)/python tools/analysis_tools/study.py --seeds $(SEEDS) --out work_dirs/study/results

test: lint
	$(STEP) 'run the tests' 'The failures stand above.' $(PYTEST)

test-all: lint
	$(STEP) 'run all tests' 'The failures stand above.' $(PYTEST) -m ''

test-fast: lint
	$(STEP) 'run one test of every kind' \
	    'The failures stand above; if none do, tests/fast.txt names a test that is gone.' \
	    $(PYTEST) @tests/fast.txt

test-pipelines: setup
	$(STEP) 'train and predict in the pipelines of the toolboxes' 'The failures stand above.' \
	    $(PYTEST) -m long --dist load tests/pipelines --table docs/pipelines.md

# The number of iterations is MINUTES times what an idle core does in one: make test-soak MINUTES=1 KILLS=4
test-soak: setup
	$(STEP) 'train with kills, and serve' 'The failures stand above.' \
	    $(PYTEST) -m long tests/soak --minutes $(MINUTES) --kills $(KILLS) --page docs/soak.md

# The tests of tests/fuzz again and again, each time with other examples, until one fails.
fuzz: setup
	$(STEP) 'fuzz for $(MINUTES) minutes' 'The failing example stands above: add it to the test, and mend.' \
	    sh -c 'end=$$(($$(date +%s) + 60 * $(MINUTES))); while [ $$(date +%s) -lt $$end ]; do \
	        $(BIN)/python -m pytest -W ignore tests/fuzz --hypothesis-profile fuzz || exit; done'

# Only the tests of soft_mm, with another Python, torch or MMEngine, in a separate environment:
# make test-core PYTHON=python3.12 TORCH='torch==2.4.1 numpy<2.3' MMENGINE=mmengine==0.10.7
test-core:
	$(STEP) 'make $(CORE)' 'Remove $(CORE) and run make again.' $(PYTHON) -m venv $(CORE)
	$(STEP) 'install $(TORCH) and $(MMENGINE)' 'Check the network, the disk and the versions.' \
	    $(CORE)/bin/python -m pip install --quiet $(foreach package,$(TORCH) $(MMENGINE),'$(package)') numpy opencv-python-headless pytest 'setuptools<80'
	$(STEP) 'run the tests of soft_mm' 'The failures stand above.' \
	    env PYTHONPATH=$(CURDIR) $(CORE)/bin/python -m pytest -p no:cacheprovider tests/soft_mm

# The commands on a detector with the official OpenMMLab packages and the last torch that they work
# with, on Python 3.11, in a separate environment. mmcv is built and its wheel kept as above.
# make test-openmmlab PYTHON=python3.11
test-openmmlab:
	$(STEP) 'make $(OPENMMLAB)' 'Remove $(OPENMMLAB) and run make again.' $(PYTHON) -m venv $(OPENMMLAB)
	$(STEP) 'install torch 2.4.1 (several GB, minutes)' 'Check the network, the disk and PYTHON.' \
	    $(OPENMMLAB)/bin/python -m pip install --quiet torch==2.4.1 'numpy<2.3' 'setuptools<80' wheel \
	    ninja psutil packaging pytest opencv-python-headless addict matplotlib pillow pycocotools \
	    pyyaml rich scipy shapely six termcolor terminaltables tqdm yapf
	$(STEP) 'install mmengine and mmdet' 'Check the network.' \
	    $(OPENMMLAB)/bin/python -m pip install --quiet --no-deps mmengine==0.10.7 mmdet==3.3.0
	$(STEP) 'install mmcv with its ops (the first time it is built: 12 minutes)' \
	    'It needs a C++ compiler and the Python headers.' $(MMCV) $(OPENMMLAB)/bin/python mmcv==2.1.0
	$(STEP) 'run the tests of the commands' 'The failures stand above.' \
	    env PYTHONPATH=$(CURDIR) $(OPENMMLAB)/bin/python -m pytest -p no:cacheprovider tests/tools/test_runs.py

wheel: setup
	@rm -rf dist
	$(STEP) 'build the sdist' 'MANIFEST.in names its files.' $(BIN)/python setup.py --quiet sdist
	$(STEP) 'build the wheel from it' 'It needs the Python headers to compile (Debian: apt-get install python3-dev).' \
	    sh -c '$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz'

test-wheel: wheel
	$(STEP) 'test the sdist and the wheel' 'The failures stand above.' \
	    env SOFT_MM_WHEEL="$$(echo $(CURDIR)/dist/*.whl)" $(PYTEST) -m '' tests/test_wheel.py

docs:
	$(STEP) 'make $(DOCS)' 'Remove $(DOCS) and run make again.' $(PYTHON) -m venv $(DOCS)
	$(STEP) 'install docs/requirements.txt' 'Check the network.' \
	    $(DOCS)/bin/python -m pip install --quiet -r docs/requirements.txt
	$(STEP) 'build the site' 'The warnings stand above.' $(DOCS)/bin/mkdocs build --strict --quiet

lint: setup
	$(STEP) 'lint' 'Run .venv/bin/ruff check --fix.' $(BIN)/ruff check .
	$(STEP) 'check the format' 'Run .venv/bin/ruff format.' $(BIN)/ruff format --check .

setup: $(BIN)/.soft_mm
ifneq ($(origin PYTHON),file)
	$(STEP) 'check that .venv is of $(PYTHON)' 'Run make clean to create it again.' \
	    $(PYTHON) -c 'import os, sys; own = "python%d.%d" % sys.version_info[:2]; there = os.listdir(".venv/lib"); sys.exit(own not in there and f"PYTHON is {own}, .venv is of {there[0]}")'
endif

$(BIN)/.python:
	$(STEP) 'check Python' 'Install one of these, or name it: make PYTHON=python3.11 ...' \
	    $(PYTHON) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split() and "needs one of Python $(PYTHONS), %s is %s" % (sys.executable, sys.version))'
	$(STEP) 'make .venv' 'Install the venv module (Debian: apt-get install python3-venv) and remove .venv.' \
	    $(PYTHON) -m venv .venv
	@touch $@

$(BIN)/.requirements: requirements.txt | $(BIN)/.python
	$(STEP) 'install build tools' 'Check the network and run make again.' \
	    sh -c "grep -E '^(pip|setuptools|wheel|packaging|ninja|psutil)==' requirements.txt | $(PIP) -r /dev/stdin"
	$(STEP) 'install requirements.txt (several GB, minutes)' 'Check the network and the disk and run make again.' \
	    sh -c "grep -v '^onedl-mmcv==' requirements.txt | $(PIP) -r /dev/stdin"
	@touch $@

$(BIN)/.mmcv: $(BIN)/.requirements
	$(STEP) 'install mmcv with its ops (the first time it is built: 12 minutes)' \
	    'It needs a C++ compiler and the Python headers (Debian: apt-get install g++ python3-dev); with a GPU also the CUDA toolkit.' \
	    $(MMCV) $(BIN)/python $$(grep '^onedl-mmcv==' requirements.txt)
	@touch $@

# Builds the compiled ops if there is a C++ compiler; FORCE_CUDA=1 builds them for GPUs too.
$(BIN)/.soft_mm: setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.*) $(BIN)/.mmcv
	$(STEP) 'install soft_mm' 'It needs the Python headers to compile (Debian: apt-get install python3-dev).' $(PIP) --editable .
	@touch $@

# Generates requirements.txt from requirements.in. Existing pins are kept if they still fit; remove the
# file first to get the newest releases. uv appends the platform to every line, and sed removes it.
pins:
	$(STEP) 'make $(PINS)' 'Remove $(PINS) and run make again.' $(PYTHON) -m venv $(PINS)
	$(STEP) 'install uv' 'Check the network.' $(PINS)/bin/python -m pip install --quiet uv==0.13.9
	$(STEP) 'resolve requirements.in' 'The message above names the packages that do not fit.' \
	    $(PINS)/bin/uv pip compile --quiet --universal --python-version $(firstword $(PYTHONS)) \
	    --no-annotate --custom-compile-command 'make pins' requirements.in --output-file requirements.txt
	@sed -E -i "s/( ;| and)( python_full_version < '3.14' and)? platform_machine == 'x86_64' and sys_platform == 'linux'$$//" requirements.txt

clean:
	rm -rf .hypothesis .venv $(CORE) $(OPENMMLAB) $(PINS) $(DOCS) work_dirs data/shapes data/hard-shapes build dist soft_mm/.mim soft_mm/_C*.so *.egg-info
