# Variables a user may set, e.g. `make test PYTHON=python3.12`; an empty one has its default. What is
# set holds for later calls until something else is: then .venv is made anew.
#   PYTHON      the interpreter .venv is made from (3.11 or newer)
#   TORCH       pip requirements for torch and torchvision
#   DETECTRON2  a pip requirement or a path to build Detectron2 from source; empty: the pinned wheel
SETTINGS := PYTHON TORCH DETECTRON2

VENV := .venv
INSTALLED := $(VENV)/.installed
set_before = $(shell sed -n 's/^$1=//p' $(INSTALLED) 2>/dev/null)
PYTHON_BEFORE := $(call set_before,PYTHON)
TORCH_BEFORE := $(call set_before,TORCH)
DETECTRON2_BEFORE := $(call set_before,DETECTRON2)
PYTHON ?= $(PYTHON_BEFORE)
TORCH ?= $(TORCH_BEFORE)
DETECTRON2 ?= $(DETECTRON2_BEFORE)
# Empty unless one of them has another value than before.
CHANGED := $(strip $(foreach name,$(SETTINGS),$(subst [$($(name)_BEFORE)],,[$($(name))])))

INTERPRETER := $(or $(PYTHON),python3)
REQUIREMENTS := $(or $(TORCH),torch==2.14.1 torchvision==0.29.1)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
KERNELS := projects/LDAAQU/lda_aqu/ops/csrc

DEMO_CONFIG := configs/Small/panoptic_fpn_R_18_glyphs_lda_aqu.yaml
DEMO_DATASET := glyphs_panoptic_val

.DEFAULT_GOAL := help
.PHONY: help install test sanitize demo clean $(if $(CHANGED),$(INSTALLED))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install everything into it

$(INSTALLED): Makefile setup.py pyproject.toml $(wildcard requirements/*.txt $(KERNELS)/* $(KERNELS)/*/*)
	@$(INTERPRETER) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, and $(INTERPRETER) is $$($(INTERPRETER) --version 2>&1)." \
		     "Name another with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(if $(CHANGED),rm -rf $(VENV))
	test -x $(BIN)/python || $(INTERPRETER) -m venv $(VENV)
	$(PIP) install -q $(REQUIREMENTS)
	$(PIP) install -q -c requirements/constraints.txt -e '.[detectron2,dev]'
ifeq ($(strip $(DETECTRON2)),)
	$(PIP) install -q --upgrade --no-deps --require-hashes --only-binary=:all: \
		--python-version 3.10 --implementation cp --abi none --platform any \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		-r requirements/detectron2.txt
else
	$(PIP) install -q --no-build-isolation --no-deps '$(DETECTRON2)'
endif
	$(BIN)/python -W ignore -c 'import detectron2, torch; print("Detectron2", detectron2.__version__, "on torch", torch.__version__)'
	@printf '%s\n' $(foreach name,$(SETTINGS),'$(name)=$(subst ','\'',$($(name)))') > $@

test: $(INSTALLED) ## lint, then run the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# The sanitizers report memory errors and undefined behaviour, and end the run.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

sanitize: $(INSTALLED) ## test the C++ kernels of all instruction sets under ASan and UBSan: six minutes
	rm -rf build/sanitize
	LDA_AQU_FLAGS="-O1 -g1 $(SANITIZERS)" $(BIN)/python setup.py -q build \
		--build-base build/sanitize --build-lib build/sanitize/lib
	test -f build/sanitize/lib/lda_aqu/ops/_cpp.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/lib:tests \
		$(BIN)/python -m pytest -q tests/ops/test_cpp.py

demo: export DETECTRON2_DATASETS := datasets
demo: $(INSTALLED) ## generate data, train, evaluate, draw: ten minutes on two cores
	$(BIN)/python tools/generate_glyphs.py --output datasets/glyphs
	$(BIN)/python -W ignore train_net.py --config-file $(DEMO_CONFIG) OUTPUT_DIR output/demo
	$(BIN)/python -W ignore tools/visualize_predictions.py --config-file $(DEMO_CONFIG) \
		--weights output/demo/model_final.pth --dataset $(DEMO_DATASET) --limit 24 \
		--output output/demo/predictions
	@echo "Data:          datasets/glyphs"
	@echo "Model and log: output/demo/model_final.pth, output/demo/log.txt"
	@echo "Metrics:       output/demo/metrics.json"
	@echo "Pictures:      output/demo/predictions/contact_sheet.png and one for each image"

clean: ## remove .venv and what Python left behind
	rm -rf $(VENV) build projects/LDAAQU/*.egg-info $(KERNELS)/../*.so .pytest_cache .ruff_cache
	find projects tests tools -name __pycache__ -exec rm -rf {} +
