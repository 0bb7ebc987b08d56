# The users' face of this repository. `make` alone lists what there is.
#
#   PROFILE=smoke|quick|paper    profile of `make table1`
#   ARGS="..."                   flags for both `tsbd run` and `tsbd table`: --set a.b=c, --results DIR, --data DIR
#   RUN_ARGS="..."               flags for `tsbd run` alone: --workers N, --device cpu
#   CARGO_ARGS="..."             flags for cargo, for example --locked

PROFILE ?= quick
ARGS ?=
RUN_ARGS ?=
CARGO_ARGS ?=
TSBD = $(or $(CARGO_TARGET_DIR),target)/release/tsbd

# Always the whole workspace: cargo compiles dependencies once for each set of packages that it is asked for.

.DEFAULT_GOAL := help
.PHONY: help demo table1 data test check audit bench bench-cpu build

help: ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: build ## a small Table 1 on drawn images: no download, minutes; again: only prints
	@$(call run-and-print,experiments/demo.toml,)

table1: build ## Table 1 on CIFAR-10 (first: make data); PROFILE=quick by default
	@$(call run-and-print,experiments/table1.toml,--profile $(PROFILE))

data: build ## download CIFAR-10 from its official source and verify it
	@$(TSBD) data fetch cifar10

test: ## every test, with the real data where it is found
	cargo test --release --workspace $(CARGO_ARGS)

check: ## format, lints, documentation, licences, import directions
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets $(CARGO_ARGS) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps $(CARGO_ARGS)
	tools/check-imports.sh
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo 'skipped: cargo deny check (install it with: cargo install --locked cargo-deny)'; fi

audit: ## known vulnerabilities and unmaintained dependencies (asks the network; needs cargo-deny)
	cargo deny check advisories

bench: build ## training throughput of this machine
	@$(TSBD) bench train $(ARGS)

bench-cpu: build ## the same beside PyTorch's on this CPU; TSBD_PYTHON=a Python that has it
	@TSBD=$(TSBD) tools/bench_cpu.sh $(ARGS)

build: ## compile the binary, target/release/tsbd
	cargo build --release --workspace $(CARGO_ARGS)

# Runs what is outstanding and prints the table. Failed cells (exit code 1) do not hide the others; a refused file (2)
# and an interruption (130) print no table.
define run-and-print
$(TSBD) run $(1) $(2) $(RUN_ARGS) $(ARGS); status=$$?; \
if [ $$status -le 1 ]; then $(TSBD) table $(1) $(2) $(ARGS) || status=$$?; fi; exit $$status
endef
