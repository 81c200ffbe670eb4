# A thin front: CMake builds, scripts/ do the rest. `make help` lists the targets.

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
# Tests to run, as ctest -R takes them: make test TESTS=gateway
TESTS ?=
release := build/release
sources = $(shell find src tests bench -name '*.h' -o -name '*.cc' -o -name '*.c' 2>/dev/null)

# ccache refuses a precompiled header without these.
export CCACHE_SLOPPINESS := pch_defines,time_macros
export CTEST_OUTPUT_ON_FAILURE := 1
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all setup setup-build rootfs test torture soak fuzz unit demo bench fmt lint asan install clean help

all: setup-build ## build into build/release (the default)
	@test -e $(release)/build.ninja || cmake --preset release
	@cmake --build --preset release --parallel $(JOBS)

setup: ## install the packages and the CRIU that are missing
	@scripts/setup

setup-build:
	@scripts/setup --build-only

rootfs: setup ## build the root filesystems that tests and examples use
	@scripts/rootfs example
	@scripts/rootfs programs

# Unit tests go side by side. The others have machine-wide things to share, and go one by one.
test: setup all rootfs ## build, then run every test (TESTS=regex: only those)
	@status=0; \
	others=$$(ctest --test-dir $(release) -N -LE '^unit$$' $(if $(TESTS),-R '$(TESTS)') | sed -n 's/^Total Tests: //p'); \
	ctest --test-dir $(release) -L '^unit$$' --no-tests=ignore -j$(JOBS) $(if $(TESTS),-R '$(TESTS)') || status=1; \
	if [ "$${others:-0}" -gt 0 ]; then \
	  ctest --test-dir $(release) -LE '^unit$$' $(if $(TESTS),-R '$(TESTS)') || status=1; \
	fi; \
	exit $$status

torture: setup all rootfs ## kill everything at every step, stop in the middle, fuzz; the figures at the end (STEPS="word …": only those)
	@THAW_BINARY=$(CURDIR)/$(release)/thaw scripts/torture $(STEPS)

soak: setup all rootfs ## scale and deploy under load for 20 minutes, no request may fail (SOAK="--calls 100 --seconds 60 --bursts 5")
	@THAW_BINARY=$(CURDIR)/$(release)/thaw scripts/soak $(SOAK)

fuzz: setup-build ## fuzz the parsers, SECONDS each (default 60)
	@scripts/fuzz --seconds $(or $(SECONDS),60)

unit: all ## build, then run the unit tests only
	@ctest --test-dir $(release) -L '^unit$$' -j$(JOBS) $(if $(TESTS),-R '$(TESTS)')

demo: setup all ## show a pod that starts cold once, and warm from then on
	@scripts/demo

bench: setup all ## measure
	@bench/run
	@bench/many
	@bench/dump
	@bench/awkward
	@bench/rest
	@bench/gateway
	@cmake --build --preset release --target micro_bench
	@$(release)/micro_bench

fmt: ## format the sources
	@clang-format -i $(sources)

lint: all ## check format, floors and, with clang-tidy, what changed since the last time
	@scripts/lint

asan: setup-build ## build with address and undefined-behaviour sanitizers, and run the unit tests
	@test -e build/asan/build.ninja || cmake --preset asan
	@cmake --build --preset asan --parallel $(JOBS)
	@ctest --test-dir build/asan -L '^unit$$' -j$(JOBS) $(if $(TESTS),-R '$(TESTS)')

install: all ## install into PREFIX (default /usr/local; DESTDIR is honoured)
	@cmake --install $(release) --prefix $(PREFIX)

clean: ## remove what was built here; downloads and root filesystems stay
	rm -rf build

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
