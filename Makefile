# make run    set up, then show the main job (`pyvmm tour`)
# make test   set up, then all tests, Linux boots included; TESTS="tests/unit -k ring" for some of them
# make setup  virtual environment, missing Debian packages, guest images
# make lint   ruff and mypy
# make clean  remove what was made here (the cache in ~/.cache/pyvmm stays)
#
# Each step of the set-up leaves a stamp (.setup/*, .venv/.ready); a second run finds it and is quick.

SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
STAMPS := .setup
TESTS ?=
IMAGES := debian-6.1 debian-6.12
MORE_IMAGES := debian-5.10 debian-7.2

# Each is asked for by what it brings: a file or program that is there is not installed again.
RUN_PACKAGES := qemu-system-x86_64:qemu-system-x86 /bin/busybox:busybox-static
TEST_PACKAGES := gcc:gcc /usr/include/linux/kvm.h:linux-libc-dev iasl:acpica-tools tmux:tmux cpio:cpio fish:fish

.PHONY: run test setup lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.ready $(STAMPS)/run-packages
	$(VENV)/bin/pyvmm tour

test: setup
	$(VENV)/bin/python -m pytest $(TESTS)

setup: $(VENV)/.ready $(STAMPS)/run-packages $(STAMPS)/test-packages $(STAMPS)/images

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(STAMPS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pyvmm devices firmware images tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS):
	mkdir -p $@

$(VENV)/.ready: pyproject.toml .ci/make-venv
	.ci/make-venv $(PYTHON) $(VENV)
	touch $@

$(STAMPS)/run-packages: .ci/install-missing | $(STAMPS)
	.ci/install-missing $(RUN_PACKAGES)
	touch $@

$(STAMPS)/test-packages: .ci/install-missing | $(STAMPS)
	.ci/install-missing $(TEST_PACKAGES)
	touch $@

# No stamp of its own: the cache may be cleaned any time, and a look at what is there takes half a second.
.PHONY: $(STAMPS)/images
$(STAMPS)/images: $(VENV)/.ready $(STAMPS)/run-packages
	@$(VENV)/bin/python .ci/ensure-images $(IMAGES) --if-possible $(MORE_IMAGES)
