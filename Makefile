# egress-gateway: build, try, test. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export CGO_ENABLED := 0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN := build/bin
AGENTS := $(BIN)/gateway-agent $(BIN)/cluster-agent
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE ?= $(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null)
STAMP := egress-gateway.io/shared/daemon
# The date is the commit's: what is built twice is the same.
LDFLAGS := -s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)

# Packages whose tests send packets; they run alone, one after the other, so
# that no two fight for the two cores while something waits for an answer.
LAB_PACKAGES := ./gateway-agent/internal/kernel/... ./gateway-agent/internal/flows ./gateway-agent/internal/announce ./test/lab/... ./test/e2e/... ./test/chaos/... ./test/docker/...
UNIT_PACKAGES = $$(go list ./... | grep -v -e /internal/kernel -e /internal/flows -e /internal/announce -e /test/lab -e /test/e2e -e /test/chaos -e /test/docker)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install the Debian packages that the lab needs (root), or print the line
	@test/setup/packages.sh $(firstword $(MAKECMDGOALS))

.PHONY: build
build: ## build the agents and the lab into build/bin
	@echo "building the agents and the lab (minutes the first time, then seconds)"
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./gateway-agent ./cluster-agent ./egressctl ./test/lab/cmd/lab ./test/demo ./test/bench ./test/chaos
	@go build -trimpath -ldflags '-s -w' -o $(BIN)/image/ ./images/nats/nats-server

.PHONY: lab-bin
lab-bin: ## build kube-apiserver, kube-controller-manager, kubectl and nats-server (once; about 5 minutes)
	@test/kube/build.sh
	@test/tools/build.sh nats-server

IMAGES := gateway-agent cluster-agent egressctl nats
TAG ?= $(VERSION)
# BASE and BUILDER are the images that the Dockerfiles begin with, if not the public ones; BUILD_FLAGS are docker's.
.PHONY: images
images: ## build the container images and print their sizes (TAG=, BASE=, BUILDER=, BUILD_FLAGS=)
	@for name in $(IMAGES); do \
		docker build $(BUILD_FLAGS) $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(BUILDER),--build-arg BUILDER=$(BUILDER)) \
			$(if $(GOPROXY),--build-arg GOPROXY=$(GOPROXY)) $(if $(GOSUMDB),--build-arg GOSUMDB=$(GOSUMDB)) \
			--build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg DATE=$(DATE) \
			-f images/$$name/Dockerfile -t egress-gateway/$$name:$(TAG) -t egress-gateway/$$name:latest . || exit; \
	done
	@for name in $(IMAGES); do \
		docker image inspect -f '{{.Size}}' egress-gateway/$$name:$(TAG) | awk -v n=egress-gateway/$$name:$(TAG) '{printf "%-50s %6.1f MB\n", n, $$1 / 1e6}'; \
	done

.PHONY: demo
demo: setup build lab-bin ## the whole main job, told step by step, on this machine (root)
	@$(BIN)/demo

.PHONY: lab-up
lab-up: setup build lab-bin ## start the lab and leave it running (root)
	@$(BIN)/lab up

.PHONY: lab-down
lab-down: ## remove the lab and all that it made (root)
	@$(BIN)/lab down

.PHONY: test
test: setup build lab-bin verify ## everything: verify, unit, kernel, Kubernetes, NATS and end-to-end tests (root)
	go test -count=1 -timeout 20m $(UNIT_PACKAGES)
	go test -count=1 -p 1 -timeout 40m $(LAB_PACKAGES)

.PHONY: verify
verify: ## gofmt, vet, staticcheck, govulncheck, import rules, generated files, go mod tidy
	@test/verify/verify.sh

.PHONY: sbom
sbom: build lab-bin ## what each program is made of (CycloneDX), and the licences of it all, in build/sbom
	@go run ./test/sbom

.PHONY: generate
generate: ## regenerate the CRDs and the deep copies
	@test/verify/generate.sh

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (default 10s)
	@test/verify/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: bench
bench: setup build lab-bin ## measure; figures to build/bench (BENCH=control, datapath, programming, idle; TENANTS=1,1000) (root)
	@$(BIN)/bench -part $(or $(BENCH),control) $(if $(TENANTS),-tenants $(TENANTS))

.PHONY: chaos
chaos: setup build lab-bin ## 200 tenants under every disturbance for DURATION (default 10m), from SEED (root)
	@$(BIN)/chaos -duration $(or $(DURATION),10m) $(if $(SEED),-seed $(SEED))
