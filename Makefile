# The users' face of this repository. `make` alone lists what there is.
#
#   PROFILE=smoke|quick|paper    profile of tables and figures
#   ARGS="..."                   flags for `tsbd run`, `table` and `figure`: --set a.b=c, --results DIR, --data DIR
#   RUN_ARGS="..."               flags for `tsbd run` alone: --workers N, --device cpu
#   CARGO_ARGS="..."             flags for cargo, for example --locked
#   WITH_CUDA=1                  the program that these targets build computes on GPUs, too, as that of build-cuda
#   CUDA_ENV=DIR                 where the builds for GPUs lay out their compiler and libraries

PROFILE ?= quick
ARGS ?=
RUN_ARGS ?=
CARGO_ARGS ?=
TSBD = $(or $(CARGO_TARGET_DIR),target)/release/tsbd
CUDA_ENV ?= $(or $(CARGO_TARGET_DIR),target)/cuda

# Always the whole workspace: cargo compiles dependencies once for each set of packages that it is asked for.

.DEFAULT_GOAL := help
.PHONY: help demo table1 table3 table4 fig1 fig3 fig4 fig6 fig8 ablations report check-report data test test-cuda check check-cuda audit bench bench-cpu bench-gpu bench-sharing build build-cpu build-cuda

help: ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

demo: build ## a small Table 1 on drawn images: no download, minutes; again: only prints
	@$(call run-and-print,experiments/demo.toml,)

table1: build ## Table 1 on CIFAR-10 (first: make data); PROFILE=quick by default
	@$(call run-and-print,experiments/table1.toml,--profile $(PROFILE))

table3: build ## Table 3: schemes of reinitialisation
	@$(call run-and-print,experiments/table3.toml,--profile $(PROFILE))

table4: build ## Table 4: schemes of fine-tuning
	@$(call run-and-print,experiments/table4.toml,--profile $(PROFILE))

fig1: build ## Figure 1: weight changes in unlearning, gradient norms
	@$(call run-and-draw-all,experiments/fig1-weight-changes.toml experiments/fig1-activeness.toml)

fig3: build ## Figure 3: activations on clean and triggered images
	@$(call run-and-draw,experiments/fig3.toml)

fig4: build ## Figure 4: coverage of the neurons that the trigger changes most
	@$(call run-and-draw,experiments/fig4.toml)

fig6: build ## Figure 6: TSBD at three poisoning ratios
	@$(call run-and-draw,experiments/fig6.toml)

fig8: build ## Figure 8: FP, and FP in the order of weight changes
	@$(call run-and-draw,experiments/fig8.toml)

ablations: build ## TSBD over each of its parameters: a figure each
	@$(call run-and-draw-all,experiments/ablation-*.toml)

report: build ## one page with every table and figure found: report.html
	@$(TSBD) report $(ARGS)

check-report: report ## open that page in a headless Chromium, click and type, look for faults (needs playwright and axe-playwright-python)
	@$(or $(TSBD_PYTHON),python3) tools/check_report.py report.html

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
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(MAKE) --no-print-directory check-cuda; \
	else echo 'skipped: the lints with the feature cuda (x86-64 Linux only)'; fi

check-cuda: ## the lints with the feature cuda alone, a part of make check; needs nothing of NVIDIA
	tools/cuda-env.sh check $(CUDA_ENV)-check
	. $(CUDA_ENV)-check/env.sh && cargo clippy --release --workspace --all-targets --features tsbd/cuda $(CARGO_ARGS) -- -D warnings

test-cuda: ## the tests that the feature changes, on a simulated GPU; needs nothing of NVIDIA
	tools/cuda-env.sh check $(CUDA_ENV)-check
	. $(CUDA_ENV)-check/env.sh && cargo test --release --workspace --lib --features tsbd/cuda $(CARGO_ARGS) -- cuda:: device
	. $(CUDA_ENV)-check/env.sh && cargo test --release --workspace --test simulated_gpu --features tsbd/cuda $(CARGO_ARGS)

audit: ## known vulnerabilities and unmaintained dependencies (asks the network; needs cargo-deny)
	cargo deny check advisories

bench: build ## training throughput of this machine
	@$(TSBD) bench train $(ARGS)

bench-cpu: build ## the same beside PyTorch's on this CPU; TSBD_PYTHON=a Python that has it
	@TSBD=$(TSBD) tools/bench_cpu.sh $(ARGS)

bench-gpu: ## the same on a GPU, with a binary of build-cuda; TSBD_PYTHON=a Python that has PyTorch for CUDA
	@TSBD=$(TSBD) tools/bench_gpu.sh $(ARGS)

bench-sharing: ## trainings that share a GPU, in each way there is, with a binary of build-cuda
	@TSBD=$(TSBD) tools/bench_sharing.sh $(ARGS)

build: $(if $(WITH_CUDA),build-cuda,build-cpu) ## compile the binary, target/release/tsbd

build-cpu:
	cargo build --release --workspace $(CARGO_ARGS)

build-cuda: ## the same with --device cuda, on any x86-64 Linux: fetches the compiler, needs no GPU (docs/cuda.md)
	tools/cuda-env.sh full $(CUDA_ENV)
	. $(CUDA_ENV)/env.sh && cargo build --release --workspace --features tsbd/cuda $(CARGO_ARGS)

# Runs what is outstanding and draws the figure into figures/, under the same rules.
define run-and-draw
( $(TSBD) run $(1) --profile $(PROFILE) $(RUN_ARGS) $(ARGS); status=$$?; \
if [ $$status -le 1 ]; then $(TSBD) figure $(1) --profile $(PROFILE) $(ARGS) || status=$$?; fi; exit $$status )
endef

# The same of several files. A failed cell or a refused file does not keep the others from their turn, an interruption
# does; the exit code is the worst.
define run-and-draw-all
worst=0; for file in $(1); do $(call run-and-draw,$$file); status=$$?; \
if [ $$status -gt 2 ]; then exit $$status; fi; \
if [ $$status -gt $$worst ]; then worst=$$status; fi; done; exit $$worst
endef

# Runs what is outstanding and prints the table. Failed cells (exit code 1) do not hide the others; a refused file (2)
# and an interruption (130) print no table.
define run-and-print
$(TSBD) run $(1) $(2) $(RUN_ARGS) $(ARGS); status=$$?; \
if [ $$status -le 1 ]; then $(TSBD) table $(1) $(2) $(ARGS) || status=$$?; fi; exit $$status
endef
