# Every target sets up what it needs. The one requirement is Python 3.11 (and a C++ compiler for NVTabular).
PYTHON ?= python3.11
UV_VERSION := 0.13.9
UV := .venv/uv/bin/uv
IMAGES := download preprocess train
HOROVOD_BUILD := HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 \
	HOROVOD_WITH_GLOO=1 CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS=-j$(shell nproc)
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

# Horovod is compiled against the TensorFlow that is there: the stamp names its version, nothing is cached.
setup-horovod: .venv/train/.ready ## build Horovod into .venv/train, which num_workers above 1 needs
	@for tool in mpirun mpicxx cmake g++; do command -v $$tool > /dev/null || \
		{ echo "make: $$tool is missing: apt-get install openmpi-bin libopenmpi-dev cmake g++" >&2; exit 2; }; done
	@version=$$(.venv/train/bin/python -c 'from importlib.metadata import version as v; print(v("tensorflow-cpu"))') && \
	stamp=.venv/train/.horovod-$$version && if [ ! -e $$stamp ]; then \
		echo "building Horovod for TensorFlow $$version, about 5 minutes" && \
		$(HOROVOD_BUILD) $(UV) pip install --quiet --no-cache --no-build-isolation --reinstall-package horovod \
			--no-binary horovod --no-deps --python .venv/train/bin/python --require-hashes -r images/train/horovod.txt && \
		TF_CPP_MIN_LOG_LEVEL=2 .venv/train/bin/python -c 'import horovod.tensorflow' && touch $$stamp; fi

# etcd, Kubernetes' API server, controllers and kubectl, and the MPI operator: one program, which links name.
CONTROL_PLANE := certificates etcd kube-apiserver kube-controller-manager kubectl mpi-operator
setup-cluster: .venv/cluster/.ready ## build the control plane of tests/cluster, which needs Go 1.26
.venv/cluster/.ready: $(addprefix tests/cluster/apiserver/,go.mod go.sum main.go)
	@command -v go > /dev/null || { echo "make: Go is missing: install Go 1.26 or newer" >&2; exit 2; }
	@echo "building a Kubernetes control plane, about 10 minutes"
	@mkdir -p .venv/cluster/bin && cd $(<D) && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && \
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -o $(CURDIR)/.venv/cluster/bin/control-plane \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" .
	@for name in $(CONTROL_PLANE); do ln -sf control-plane .venv/cluster/bin/$$name; done
	@operator=$$(cd $(<D) && go list -m -f '{{.Dir}}' github.com/kubeflow/mpi-operator) && \
		install -m 644 $$operator/manifests/base/kubeflow.org_mpijobs.yaml .venv/cluster/mpijobs.yaml && \
		install -m 644 $$operator/examples/v2beta1/pi/pi.yaml .venv/cluster/pi.yaml
	@touch $@

# MinIO and fake-gcs-server: programs of their own, at the versions of tests/stores/servers/go.mod.
setup-stores: .venv/stores/.ready ## build the object stores of tests/stores, which needs Go 1.26
.venv/stores/.ready: $(addprefix tests/stores/servers/,go.mod go.sum)
	@command -v go > /dev/null || { echo "make: Go is missing: install Go 1.26 or newer" >&2; exit 2; }
	@echo "building an S3 and a Cloud Storage server, about 4 minutes"
	@mkdir -p .venv/stores/bin && cd $(<D) && \
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(CURDIR)/.venv/stores/bin/ tool
	@touch $@

# Argo's linter and expressions, as one program, and what the cluster itself checks of a WorkflowTemplate.
setup-argo: .venv/argo/.ready ## build Argo's linter, which needs Go 1.26
.venv/argo/.ready: $(addprefix tests/argo/,go.mod go.sum main.go)
	@command -v go > /dev/null || { echo "make: Go is missing: install Go 1.26 or newer" >&2; exit 2; }
	@echo "building Argo's linter, about 4 minutes"
	@mkdir -p .venv/argo && cd $(<D) && \
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(CURDIR)/.venv/argo/argo-check . && \
		argo=$$(go list -m -f '{{.Dir}}' github.com/argoproj/argo-workflows/v3) && install -m 644 \
		$$argo/manifests/base/crds/full/argoproj.io_workflowtemplates.yaml $(CURDIR)/.venv/argo/workflowtemplates.yaml
	@touch $@

.venv/jax/.ready: tests/requirements/jax.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv/jax
	@$(UV) pip install --quiet --compile-bytecode --python .venv/jax/bin/python -r $<
	@touch $@

# Test tools come on top and stay out of the images.
.venv/%/.tests: .venv/%/.ready tests/requirements/%.txt
	@$(UV) pip install --quiet --python .venv/$*/bin/python -r tests/requirements/$*.txt
	@touch $@

# The GPU flavours: TensorFlow with CUDA at the same versions; preprocess without what RAPIDS brings, on its Python.
LOCK = $(UV) pip compile --quiet --generate-hashes --no-header --no-annotate
RAPIDS := images/preprocess/rapids.txt
lock: $(UV) ## pin images/*/requirements*.txt anew from their requirements.in
	@for image in $(IMAGES); do $(LOCK) --python-version 3.11 \
		images/$$image/requirements.in -o images/$$image/requirements.txt || exit 1; done
	@sed 's/^tensorflow-cpu==/tensorflow[and-cuda]==/' images/train/requirements.in | $(LOCK) --python-version 3.11 \
		-c images/train/requirements.txt - -o images/train/requirements-gpu.txt
	@$(LOCK) --python-version 3.10 --override $(RAPIDS) \
		$$(sed -nE 's/^([a-z0-9-]+).*/--no-emit-package \1/p' $(RAPIDS)) \
		images/preprocess/requirements.in -o images/preprocess/requirements-gpu.txt
	@$(LOCK) --python-version 3.10 images/build.in -o images/build.txt

# The first of these tools that works here. BUILD_FLAGS takes what a machine needs beside: a package index that wants a
# login is --build-arg PIP_INDEX_URL=https://... --secret id=netrc,src=$HOME/.netrc, a pinned base image
# --build-arg PYTHON_IMAGE=name:tag@sha256:...
CONTAINER_TOOL ?= $(shell for tool in docker podman buildah; do $$tool info > /dev/null 2>&1 && echo $$tool && break; done)
FLAVOUR ?= gpu
BUILD_FLAGS ?=
REFERENCE = $$($(PYTHON) -c 'from components.images import image; print(image("'$$image'"))')
images: ## build the images: make images REGISTRY=my.registry/team TAG=1.2.3 [FLAVOUR=cpu]
	@tool="$(CONTAINER_TOOL)"; test -n "$$tool" || { echo "make: neither docker, podman nor buildah works here" >&2; exit 2; }; \
	export BUILDAH_LAYERS=true; revision=$$(git rev-parse HEAD 2> /dev/null || echo unknown); \
	for image in $(IMAGES); do reference=$(REFERENCE) && echo "building $$reference for $(FLAVOUR)" && \
		$$tool build --file images/$$image/Dockerfile --tag $$reference --build-arg FLAVOUR=$(FLAVOUR) \
		--build-arg VERSION=$${reference##*:} --build-arg REVISION=$$revision $(BUILD_FLAGS) . || exit 1; done

push: ## send the images to REGISTRY
	@test -n "$(REGISTRY)" || { echo "make: push where? make push REGISTRY=my.registry/team TAG=1.2.3" >&2; exit 2; }
	@tool="$(CONTAINER_TOOL)"; for image in $(IMAGES); do $$tool push $(REFERENCE) || exit 1; done

RUN ?= ncf_synthetic,vae_cf_synthetic
PARAMS ?=
HOST ?=
export RUN PARAMS HOST
run: setup ## run the compiled pipeline here: make run RUN=name[,name...] PARAMS='key=value ...'
	@.venv/pipeline/bin/python -m pipelines.local "$$RUN" --params "$$PARAMS"

compile: .venv/pipeline/.tests ## write pipeline.yaml and workflow_template.yaml; REGISTRY and TAG choose the images, in manifests/ too
	@.venv/pipeline/bin/python -m pipelines.pipeline
	@.venv/pipeline/bin/python -m pipelines.argo
	@.venv/pipeline/bin/python -m components.images manifests/base/kustomization.yaml

submit: .venv/pipeline/.ready ## send a run to a cluster: make submit HOST=http://... RUN=name PARAMS='...'
	@.venv/pipeline/bin/python -m pipelines.submit --host "$$HOST" "$$RUN" --params "$$PARAMS"

test: test-pipeline test-preprocess test-train test-jax ## every test, each in the environment it is about
	@echo "skipped: the images (make test-images, as root)"

# The folder of a test is the environment that it runs in.
test-%: setup .venv/%/.tests
	.venv/$*/bin/python -m pytest tests/$* $(PYTEST)

test-cluster: .venv/cluster/.ready .venv/pipeline/.tests ## distributed training's step against a real control plane
	.venv/pipeline/bin/python -m pytest tests/cluster $(PYTEST)

test-stores: .venv/stores/.ready .venv/pipeline/.tests ## storage against real object stores, with faults on the way
	.venv/pipeline/bin/python -m pytest tests/stores $(PYTEST)

test-argo: .venv/argo/.ready .venv/pipeline/.tests ## the WorkflowTemplate before Argo's own linter and schema
	.venv/pipeline/bin/python -m pytest tests/argo $(PYTEST)

test-hosts: setup .venv/train/.tests ## several workers over ssh, on hosts that are made here; needs root and setup-horovod
	.venv/train/bin/python -m pytest tests/hosts $(PYTEST)

# On Debian, as root, what is missing of these is installed; anywhere else the tests name it and are skipped.
IMAGE_PACKAGES := buildah debootstrap iproute2 openssh-client runc
test-images: .venv/pipeline/.tests ## build the images for CPU from a base made here, and run them; needs root (20 minutes)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! dpkg -s $(IMAGE_PACKAGES) > /dev/null 2>&1; then \
		echo "installing $(IMAGE_PACKAGES)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(IMAGE_PACKAGES) > /dev/null; fi
	.venv/pipeline/bin/python -m pytest tests/images --timeout=3600 $(PYTEST)

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

.PHONY: help setup setup-horovod setup-cluster setup-argo test-cluster test-argo setup-stores test-stores test-hosts test-images lock images push run compile submit test benchmark lint format clean
.DEFAULT_GOAL := help
