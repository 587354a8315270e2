#!/usr/bin/env bash
# What action.yml runs: `check` against REFERENCE, `evaluate` beside BASELINE on DATA, each where it is given. Annotations
# go to standard output, the tables to the summary of the job ($GITHUB_STEP_SUMMARY). It ends with the worst status.
set -uo pipefail
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
worst=0

note() { # status, report, heading: what came of a command
  if [ "$1" -gt "$worst" ]; then worst=$1; fi
  [ -f "$2.json" ] || return 0
  onnxsep report "$2.json" --md "$2.md" > /dev/null && { printf '## %s\n\n' "$3"; cat "$2.md"; echo; } >> "$summary"
}

if [ -z "${REFERENCE:-}" ] && [ -z "${BASELINE:-}" ]; then
  echo "::error title=onnxsep::give a reference, a baseline with data, or both"
  exit 2
fi
if [ -n "${BASELINE:-}" ] && [ -z "${DATA:-}" ]; then
  echo "::error title=onnxsep::a baseline needs data to evaluate the models on"
  exit 2
fi
if [ -n "${REFERENCE:-}" ]; then
  # Options are words on purpose.
  # shellcheck disable=SC2086
  onnxsep check "$MODEL" "$REFERENCE" --format github --report "$reports/check.json" ${CHECK_OPTIONS:-} 2> "$reports/said"
  status=$?
  cat "$reports/said" >&2
  [ "$status" -eq 0 ] || [ "$status" -eq 3 ] || echo "::error title=onnxsep check::$(tail -n 1 "$reports/said")"
  note "$status" "$reports/check" "onnxsep check"
fi
if [ -n "${BASELINE:-}" ]; then
  # shellcheck disable=SC2086
  onnxsep evaluate "$BASELINE" "$MODEL" --data "$DATA" --report "$reports/evaluate.json" ${LIMITS:-} 2> "$reports/said"
  status=$?
  cat "$reports/said" >&2
  [ "$status" -eq 0 ] || echo "::error title=onnxsep evaluate::$(tail -n 1 "$reports/said")"
  note "$status" "$reports/evaluate" "onnxsep evaluate"
fi
exit "$worst"
