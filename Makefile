# Stoker. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

MODULES  := proto pkg services/sessionstore services/activity services/gateway services/standalone
BINARIES := services/sessionstore/cmd/sessionstore services/activity/cmd/activity services/gateway/cmd/gateway services/standalone/cmd/stoker
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
ROOT     := $(CURDIR)
BIN      := $(ROOT)/.bin
ARGS     ?=
FUZZTIME ?= 20s
SERVERS  := $(ROOT)/.cache/servers/valkey-8/redis-server $(ROOT)/.cache/servers/redis-8/redis-server
export PATH := $(BIN):$(PATH)

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Serve everything in one process on the embedded store (ARGS="--demo" for sample traffic)
	@echo "Building stoker; the first build takes a few minutes."
	@$(MAKE) --no-print-directory bin/stoker
	@exec bin/stoker run $(ARGS)

.PHONY: build
build: ## Build every binary into bin/
	@$(MAKE) --no-print-directory $(addprefix bin/,$(notdir $(BINARIES)))

.PHONY: $(addprefix bin/,$(notdir $(BINARIES)))
$(addprefix bin/,$(notdir $(BINARIES))): bin/%:
	@echo "  build bin/$*"
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./$(filter %/cmd/$*,$(BINARIES))

.PHONY: deps
deps: ## Install what the tests need beside Go (redis-server, a C compiler for the race detector)
	@.ci/deps

.PHONY: test
test: deps ## Run every test with the race detector (under 12 minutes on 2 cores)
	@for m in $(MODULES); do echo "== test $$m"; go -C $$m test -race -timeout 10m ./...; done

.PHONY: test-short
test-short: deps ## Run the quick tests only
	@for m in $(MODULES); do echo "== test -short $$m"; go -C $$m test -short -timeout 5m ./...; done

.PHONY: e2e
e2e: deps build $(BIN)/.gen ## Run the slow suites: built binaries, Redis Cluster, churn, 100,000 steps of the lifetime model
	go -C services/sessionstore test -race -tags e2e -timeout 15m -run 'Cluster' -v ./internal/storage/redis/ | grep -Ev '^(=== |\s+--- PASS)'
	go -C services/sessionstore test -race -timeout 15m -run 'TestModelLifetimes' -v ./internal/storage/memory ./internal/storage/redis -rapid.checks=1700 | grep -E 'steps|^(---|ok|FAIL|panic)|\[rapid\]'
	go -C services/standalone test -tags e2e -timeout 32m -v ./e2e/...

.PHONY: e2e-full
e2e-full: e2e servers ## Run e2e, longer loads and outages, and the suites of Redis over Redis 8 and Valkey 8 (25 minutes more)
	STOKER_LOAD_TIME=60s STOKER_OUTAGE=60s go -C services/standalone test -tags e2e -count 1 -timeout 10m -v -run 'TestLoadOpensNoBreaker|TestReplayOutrunsLoad' ./e2e/
	@for s in $(SERVERS); do echo "== $$($$s --version)"; \
	  STOKER_REDIS_SERVER=$$s go -C pkg test -count 1 -timeout 5m ./redistest/; \
	  STOKER_REDIS_SERVER=$$s go -C services/sessionstore test -tags e2e -count 1 -timeout 20m ./internal/storage/redis/; done

.PHONY: servers
servers: ## Unpack Redis 8 and Valkey 8 from Debian into .cache/servers, without installing them
	@.ci/servers

.PHONY: bench
bench: deps bin/stoker ## Measure against gRPC and Redis alone (5 minutes; ARGS="--budget 1m" for less)
	bin/stoker bench $(ARGS)
	@echo "The activity service: events decided per second on one core, and bytes of a tracked session, at 1,000,000 sessions."
	@go -C services/activity test -run '^$$' -bench '^BenchmarkObserve$$/^1000000sessions$$' -benchtime 2000000x ./internal/tracker/ | grep Benchmark
	@go -C services/activity test -run '^$$' -bench '^BenchmarkMemory$$' -benchtime 1x ./internal/tracker/ | grep Benchmark

.PHONY: bench-micro
bench-micro: deps ## Run the micro-benchmarks of every module
	@for m in $(MODULES); do echo "== bench $$m"; go -C $$m test -run '^$$' -bench . -benchmem -benchtime 1s ./...; done

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (20s)
	@for m in $(MODULES); do \
	  for f in $$(grep -rl '^func Fuzz' --include='*_test.go' $$m || true); do \
	    for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$f); do \
	      echo "== fuzz $$f $$t"; go -C $$(dirname $$f) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) .; done; done; done

.PHONY: lint
lint: $(BIN)/.gen $(BIN)/.lint lint-drift lint-modules ## Run every linter, the drift check and the per-module builds
	@echo "== buf lint"; buf lint
	@for m in $(MODULES); do echo "== golangci-lint $$m"; (cd $$m && golangci-lint run --config $(ROOT)/.golangci.yml --build-tags e2e ./...); done
	@if command -v shellcheck >/dev/null; then echo "== shellcheck"; shellcheck .ci/run .ci/deps .ci/servers; fi

.PHONY: lint-modules
lint-modules: # Each module must build on its own, which proves the boundaries between them.
	@for m in $(MODULES); do echo "== GOWORK=off build $$m"; GOWORK=off go -C $$m build ./... && GOWORK=off go -C $$m vet ./... ; done

.PHONY: lint-drift
lint-drift: $(BIN)/.gen protodeps # Generated code must be what the protos say.
	@echo "== drift check"; tmp=$$(mktemp -d); trap 'rm -rf $$tmp' EXIT; \
	buf generate -o $$tmp; \
	for d in proto/gen services/gateway/internal/gen services/gateway/internal/openapi; do \
	  (cd $$tmp && find $$d -type f) | while read -r f; do cmp "$$tmp/$$f" "$$f" || { echo "$$f is stale: run 'make generate'"; exit 1; }; done; done

.PHONY: generate
generate: $(BIN)/.gen protodeps ## Generate code and OpenAPI from the protos
	buf generate

.PHONY: fmt
fmt: $(BIN)/.gen $(BIN)/.lint ## Format Go code and protos
	@for m in $(MODULES); do (cd $$m && golangci-lint fmt --config $(ROOT)/.golangci.yml ./...); done
	buf format -w proto

.PHONY: protodeps
protodeps:
	@mkdir -p .cache/protodeps && GOWORK=off go -C tools/gen run ./protodeps $(ROOT)/.cache/protodeps

$(BIN)/.gen: tools/gen/go.mod
	@echo "Building the code generators (once, about 2 minutes)."
	@mkdir -p $(BIN); cd tools/gen && GOWORK=off GOBIN=$(BIN) go install tool
	@touch $@

$(BIN)/.lint: tools/lint/go.mod
	@echo "Building golangci-lint (once, about 4 minutes)."
	@mkdir -p $(BIN); cd tools/lint && GOWORK=off GOBIN=$(BIN) go install tool
	@touch $@
