#!/usr/bin/env bash
# Checks that imports between the crates of this workspace run downwards only, and that a few libraries stay where they
# belong. Reads what cargo knows; needs nothing but bash and cargo.
#
#   cli -> orchestrator, report -> experiment -> attacks/*, defense, analysis -> attack -> models, data -> nn -> tensor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What each crate may import from this workspace (as a dependency, not in tests). A new attack is one more `attacks`.
below_nn="tsbd-tensor"
below_models="tsbd-nn $below_nn"
below_data="tsbd-nn $below_nn"
below_attack="tsbd-models tsbd-data $below_models"
below_attacks="tsbd-attack $below_attack"
below_analysis="tsbd-attack $below_attack"
below_defense="tsbd-analysis $below_analysis"
below_experiment="attacks tsbd-defense $below_defense"
below_orchestrator="tsbd-experiment $below_experiment"
below_report="tsbd-experiment tsbd-data"
below_testing="tsbd-data $below_data"
below_cli="tsbd-orchestrator tsbd-report $below_orchestrator"

allowed_imports() {
  case $1 in
    tsbd-tensor) ;;
    tsbd-nn) echo "$below_nn" ;;
    tsbd-models) echo "$below_models" ;;
    tsbd-data) echo "$below_data" ;;
    tsbd-attack) echo "$below_attack" ;;
    tsbd-attack-*) echo "$below_attacks" ;;
    tsbd-analysis) echo "$below_analysis" ;;
    tsbd-defense) echo "$below_defense" ;;
    tsbd-experiment) echo "$below_experiment" ;;
    tsbd-orchestrator) echo "$below_orchestrator" ;;
    tsbd-report) echo "$below_report" ;;
    tsbd-testing) echo "$below_testing" ;;
    tsbd) echo "$below_cli" ;;
    *) return 1 ;;
  esac
}

# Libraries that only some crates may import.
allowed_importers() {
  case $1 in
    tokio | nix) echo "tsbd-orchestrator tsbd" ;;
    polars | comfy-table | plotters) echo "tsbd-report" ;;
    clap | clap_complete | indicatif | miette) echo "tsbd" ;;
    gemm) echo "tsbd-tensor" ;;
    ureq) echo "tsbd-data" ;;
    *) return 1 ;;
  esac
}

contains() { [[ " $1 " == *" $2 "* ]]; }

importer=""
imports=0
wrong=0
complain() {
  echo "error: $*" >&2
  wrong=$((wrong + 1))
}

# One line per crate and import: its depth (0: a crate of the workspace, 1: what it imports), name, version.
listing=$(cargo tree --workspace --depth 1 --edges normal,build --prefix depth --format ' {p}' --no-dedupe)
while read -r depth name _; do
  [[ -z $depth ]] && continue
  if [[ $depth == 0 ]]; then
    importer=$name
    allowed_imports "$importer" >/dev/null ||
      complain "crate $importer is unknown: say in tools/check-imports.sh what it may import"
    continue
  fi
  if [[ $name == tsbd || $name == tsbd-* ]]; then
    imports=$((imports + 1))
    group=$name
    [[ $name == tsbd-attack-* ]] && group=attacks
    contains "$(allowed_imports "$importer" || true)" "$group" ||
      complain "$importer imports $name: imports run downwards only (see the head of tools/check-imports.sh)"
  elif importers=$(allowed_importers "$name"); then
    contains "$importers" "$importer" || complain "$importer imports $name, which only these may: $importers"
  fi
done <<<"$listing"

# A listing that cannot be read must not pass for one without mistakes.
((imports > 0)) || complain "no import was found in what cargo tree printed"
((wrong == 0)) || exit 1
echo "import directions: $imports imports between crates, all downwards"
