# Every target sets up what it needs. The one requirement is Python 3.11 (and a C++ compiler for NVTabular).
PYTHON ?= python3.11
UV_VERSION := 0.13.9
UV := .venv/uv/bin/uv
IMAGES := download preprocess train
export UV_PYTHON_DOWNLOADS := never

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/pipeline/.ready .venv/preprocess/.ready .venv/train/.ready ## the three environments, one per image

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: Python 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv/uv && .venv/uv/bin/pip install --quiet uv==$(UV_VERSION)

# .venv/pipeline is the download image's environment, the other two are named like their image.
.venv/pipeline/.ready: images/download/requirements.txt
.venv/preprocess/.ready: images/preprocess/requirements.txt
.venv/train/.ready: images/train/requirements.txt
.venv/%/.ready: | $(UV)
	@echo "setting up .venv/$* from $<"
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv/$*
	@$(UV) pip install --quiet --compile-bytecode --python .venv/$*/bin/python --require-hashes -r $<
	@touch $@

.venv/jax/.ready: tests/requirements/jax.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv/jax
	@$(UV) pip install --quiet --compile-bytecode --python .venv/jax/bin/python -r $<
	@touch $@

# Test tools come on top and stay out of the images.
.venv/%/.tests: .venv/%/.ready tests/requirements/%.txt
	@$(UV) pip install --quiet --python .venv/$*/bin/python -r tests/requirements/$*.txt
	@touch $@

lock: $(UV) ## pin images/*/requirements.txt anew from their requirements.in
	@for image in $(IMAGES); do $(UV) pip compile --quiet --generate-hashes --no-header --no-annotate \
		--python-version 3.11 images/$$image/requirements.in -o images/$$image/requirements.txt || exit 1; done

RUN ?= ncf_synthetic,vae_cf_synthetic
PARAMS ?=
HOST ?=
export RUN PARAMS HOST
run: setup ## run the compiled pipeline here: make run RUN=name[,name...] PARAMS='key=value ...'
	@.venv/pipeline/bin/python -m pipelines.local "$$RUN" --params "$$PARAMS"

compile: .venv/pipeline/.ready ## write pipelines/pipeline.yaml; REGISTRY and TAG choose the images
	@.venv/pipeline/bin/python -m pipelines.pipeline

submit: .venv/pipeline/.ready ## send a run to a cluster: make submit HOST=http://... RUN=name PARAMS='...'
	@.venv/pipeline/bin/python -m pipelines.submit --host "$$HOST" "$$RUN" --params "$$PARAMS"

test: test-pipeline test-preprocess test-train test-jax ## every test, each in the environment it is about

# The folder of a test is the environment that it runs in.
test-%: setup .venv/%/.tests
	.venv/$*/bin/python -m pytest tests/$* $(PYTEST)

.venv/peers/.ready: benchmarks/requirements.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv/peers
	@$(UV) pip install --quiet --python .venv/peers/bin/python -r $<
	@touch $@

benchmark: setup .venv/peers/.ready ## measure training and preparation beside plain loops and pandas (an hour)
	.venv/train/bin/python -m benchmarks.training --models ncf vae_cf
	.venv/train/bin/python -m benchmarks.training --models wide_deep --rounds 2 --steps 4 \
		--output benchmarks/training_wide_deep.json
	.venv/train/bin/python -m benchmarks.input_pipeline
	.venv/preprocess/bin/python -m benchmarks.preparation
	.venv/pipeline/bin/python -m benchmarks.outbrain_preparation
	.venv/peers/bin/python -m benchmarks.logistic_regression

lint: .venv/pipeline/.tests ## style and types
	.venv/pipeline/bin/ruff check .
	.venv/pipeline/bin/ruff format --check .
	.venv/pipeline/bin/mypy

format: .venv/pipeline/.tests ## mend the style
	.venv/pipeline/bin/ruff check --fix .
	.venv/pipeline/bin/ruff format .

clean: ## remove the environments; runs/ stays
	rm -rf .venv

.PHONY: help setup lock run compile submit test benchmark lint format clean
.DEFAULT_GOAL := help
