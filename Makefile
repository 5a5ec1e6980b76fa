# `make help` lists the targets.
#
# Each step of the set-up leaves a stamp (.setup/*, .venv/.ready); a second run finds it and is quick.

SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
STAMPS := .setup
TESTS ?=
MINUTES ?= 2
SEED ?= 1
TARGET ?=
KEEP ?=
VERSIONS ?= 6.1 6.12 newest
BASES ?= tinyconfig defconfig
BOOT ?= yes
KERNELS ?= 6.1
ENGINES ?= auto
CPUS ?= 1
WORKERS ?= 3
COVER ?=
COVERED := hv-cover.json
BLOCKS := tests/hv/blocks.toml
IMAGES := debian-6.1 debian-6.12
MORE_IMAGES := debian-5.10 debian-7.2 debian-7.3

comma := ,
empty :=
commas = $(subst $(empty) $(empty),$(comma),$(strip $1))

# Of the kernels whose drivers are modules and whose unreachable blocks are known.
GOALS ?= $(call commas,$(foreach kernel,$(filter 6.1 6.12,$(KERNELS:all=6.1 6.12)),hv_balloon@$(kernel)=90 hv_vmbus:protocol@$(kernel)=60))

# Each is asked for by what it brings: a file or program that is there is not installed again.
RUN_PACKAGES := qemu-system-x86_64:qemu-system-x86 /bin/busybox:busybox-static
TEST_PACKAGES := passt:passt gcc:gcc /usr/include/linux/kvm.h:linux-libc-dev iasl:acpica-tools tmux:tmux cpio:cpio fish:fish gdb:gdb
# To build kernels.
KERNEL_PACKAGES := gcc:gcc flex:flex bison:bison bc:bc xz:xz-utils /usr/include/gelf.h:libelf-dev \
	/usr/include/openssl/opensslv.h:libssl-dev

.PHONY: help run book reference test test-hv cover-hv cover-goals test-kdir quick fuzz setup lint fmt build clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.ready $(STAMPS)/run-packages ## Set up, then show the main job (`pyvmm tour`)
	$(VENV)/bin/pyvmm tour

test: setup ## Set up, then all tests, Linux boots included; TESTS="tests/unit -k ring" for some of them
	$(VENV)/bin/python -m pytest $(TESTS)

test-hv: setup ## Tests of Linux's drivers (docs/testbed.md); KERNELS="6.1 6.12" or all, ENGINES="kernel user", CPUS="1 2", WORKERS=3
	$(VENV)/bin/python -m pytest tests/hv -n $(WORKERS) --pyvmm-matrix \
		'kernel=$(call commas,$(KERNELS:all=5.10 6.1 6.12 7.2 7.3)) engine=$(call commas,$(ENGINES)) cpus=$(call commas,$(CPUS))' \
		$(if $(COVER),--pyvmm-cover hv_balloon$(comma)hv_vmbus --pyvmm-cover-rules $(BLOCKS) --pyvmm-cover-save $(COVER)) $(TESTS)

cover-hv: ## The same with coverage of hv_balloon and hv_vmbus, and a list of what did not run (docs/coverage.md); fails below GOALS
	$(MAKE) test-hv COVER=$(COVERED)
	$(MAKE) cover-goals

cover-goals: $(VENV)/.ready
	$(VENV)/bin/pyvmm cover report $(COVERED) --rules $(BLOCKS) --least $(GOALS) --missed

test-kdir: setup $(STAMPS)/kernel-packages ## Build Debian's kernel sources, VERSIONS="6.1 newest" BASES="tinyconfig", and boot them (BOOT= does not)
	$(VENV)/bin/python -m tests.kernels --versions $(VERSIONS) --bases $(BASES) $(if $(BOOT),,--no-boot)

quick: $(VENV)/.ready ## Unit, guest, KVM and fuzz tests: under a minute, no Linux
	$(VENV)/bin/python -m pytest -q tests/unit tests/guest tests/kvm tests/fuzz

fuzz: $(VENV)/.ready ## Fuzz each boundary for MINUTES=2 in all; TARGET=prefix SEED=1 KEEP=1
	@$(VENV)/bin/python -c 'import atheris' 2>/dev/null || \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' || \
		echo "atheris cannot be had: seeded mutations without coverage instead"
	$(VENV)/bin/python -m tests.fuzz.run --minutes $(MINUTES) --seed $(SEED) $(TARGET:%=--target %) $(KEEP:1=--keep)

setup: $(VENV)/.ready $(STAMPS)/run-packages $(STAMPS)/test-packages $(STAMPS)/images ## Virtual environment, missing Debian packages, guest images

reference: $(VENV)/.ready ## The reference pages of the book, from the declarations in the code
	$(VENV)/bin/python -m tests.support.reference

book: $(VENV)/.book ## The book as a site in build/book, its excerpts, pictures and links checked
	$(VENV)/bin/python -m tests.support.book --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "the book: build/book/index.html"

lint: $(VENV)/.ready ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

fmt: $(VENV)/.ready ## Format the code, and fix what ruff can fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

build: $(VENV)/.ready ## Source distribution and wheel, in dist/
	$(VENV)/bin/python -m build --outdir dist .

clean: ## Remove what was made here (the cache in ~/.cache/pyvmm stays)
	rm -rf $(VENV) $(STAMPS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pyvmm devices firmware images tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS):
	mkdir -p $@

$(VENV)/.ready: pyproject.toml .ci/make-venv
	.ci/make-venv $(PYTHON) $(VENV)
	touch $@

$(VENV)/.book: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[book]'
	touch $@

$(STAMPS)/run-packages: .ci/install-missing | $(STAMPS)
	.ci/install-missing $(RUN_PACKAGES)
	touch $@

$(STAMPS)/test-packages: .ci/install-missing | $(STAMPS)
	.ci/install-missing $(TEST_PACKAGES)
	touch $@

$(STAMPS)/kernel-packages: .ci/install-missing | $(STAMPS)
	.ci/install-missing $(KERNEL_PACKAGES)
	touch $@

# No stamp of its own: the cache may be cleaned any time, and a look at what is there takes half a second.
.PHONY: $(STAMPS)/images
$(STAMPS)/images: $(VENV)/.ready $(STAMPS)/run-packages
	@$(VENV)/bin/python .ci/ensure-images $(IMAGES) --if-possible $(MORE_IMAGES)
