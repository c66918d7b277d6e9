# Everything a user or a developer runs. On a fresh Debian machine with Rust (`run` on Ubuntu as well), each target
# installs what it needs first.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run demo test test-long incidents lint fmt golden docs dashboards bench setup setup-build static tarball deb image sbom

OPTIONS ?=
ARCH ?= x86_64
CACHE := $(or $(CONTROLPLANE_EXPORTER_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/controlplane-exporter-tests)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
export REVISION ?= $(shell git rev-parse --short HEAD 2>/dev/null)

help: ## List the targets
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup-build: ## Install what a build needs: protoc and its files, with which etcd-client compiles its protocol
	@dpkg-query -W protobuf-compiler libprotobuf-dev >/dev/null 2>&1 || \
	  { $(SUDO) apt-get update -qq; $(SUDO) apt-get install -y -qq protobuf-compiler libprotobuf-dev; }

setup: ## Install what the tests need
	@tests/setup.sh

run: setup-build ## Build and serve the figures of this machine on :10379 (OPTIONS=… for flags)
	cargo run --release --locked -- $(OPTIONS)

demo: setup-build ## A cluster on this machine whose disk breaks, and the page that arrives (as root; BREAK=now asks nothing)
	cargo build --release --locked
	@$(SUDO) python3 -B deploy/demo/demo.py --install --break=$(or $(BREAK),enter)

test: setup ## Everything that must pass, with the seconds of each group
	@tests/run.sh

test-long: setup ## What takes longer than `make test` may (an hour and a half): many polls, fuzzing, another kernel in an emulated machine, a flood of logs, all faults, a soak in them, and incidents; writes docs/long-tests.md
	@tests/setup.sh fuzz
	@tests/long.sh

incidents: setup ## Replay the incidents with their real faults (10 minutes) and write docs/incidents.md
	@tests/incidents.sh

lint: setup ## Formatting, clippy, licences
	@tests/run.sh lint

fmt: ## Format the code
	cargo fmt && cargo fmt -- src/samplers/*.rs

golden: setup ## Write the golden files, the chart's copies and the flat manifests anew; look at the difference
	UPDATE_GOLDEN=1 cargo test --locked --test it -- golden:: the_prometheus_rule_object \
	  the_chart_carries helm_renders the_flat_manifests

docs: ## Write METRICS.md anew
	cargo run --quiet --locked -- catalog > METRICS.md.new && mv METRICS.md.new METRICS.md

dashboards: setup ## Write dashboards/ anew
	PYTHONPATH="$${CONTROLPLANE_EXPORTER_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/controlplane-exporter-tests}/grafana-sdk" \
	  python3 -B dashboards/generator dashboards

static: ## Build the static binary (ARCH=aarch64 for the other processor) into target/static
	@tests/setup.sh static $(ARCH)
	deploy/package.sh static $(ARCH)

tarball deb: ## Build the archive, or the Debian package, from the static binary into target/dist
	@tests/setup.sh static $(ARCH)
	@tests/setup.sh packages
	deploy/package.sh $@ $(ARCH)

sbom: ## Write what the binary is made of (CycloneDX) into target/dist
	@tests/setup.sh packages
	deploy/package.sh sbom $(ARCH)

image: ## Build the container image with buildah, without a daemon or a registry
	@tests/setup.sh static
	@tests/setup.sh image
	deploy/package.sh image

bench: setup ## Time the hot paths, measure against peers and write the tables of docs/performance.md (as root)
	@mkdir -p target "$(CACHE)/static"; [ -e target/static ] || ln -s "$(CACHE)/static" target/static
	deploy/package.sh static
	cargo bench --locked
