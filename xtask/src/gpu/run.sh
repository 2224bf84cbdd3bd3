#!/bin/sh
# Runs the CUDA backend's tests and benchmarks on this machine's GPU: a driver (580 or later) is all that it needs.
#
#   ./run.sh [--large] [--emulated]
#
# First the tests that pass on the emulator, then some of them under compute-sanitizer where it is on the search path, then
# the tokens of a small model beside those that the emulator found, then the benchmark. results/ holds the logs and
# results/results.json everything as JSON. Ends with an error if anything failed. --large adds models of 8B parameters
# (17 GB of device memory, 50 GB of host memory); --emulated is for trying this script without a GPU.
set -u
cd "$(dirname "$0")" || exit 1
here=$(pwd)
large= emulated=
for argument in "$@"; do
    case $argument in
        --large) large=--large ;;
        --emulated) emulated=--emulated ;;
        *) sed -n '2,9p' "$0"; exit 2 ;;
    esac
done
mkdir -p results
export FORESHOCK_BUNDLE="$here"
if [ -z "$emulated" ]; then export FORESHOCK_REAL_GPU=1; fi
failed=0

ask() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '"\\'; }
# Runs a command: its name, its log, the command. Appends to a list of JSON objects.
outcomes=
attempt() {
    name=$1 log=results/$2
    shift 2
    begun=$(date +%s)
    if "$@" >"$log" 2>&1; then outcome=passed; else outcome=failed failed=1; fi
    seconds=$(($(date +%s) - begun))
    printf '%-8s %s (%s s, %s)\n' "$outcome" "$name" "$seconds" "$log"
    outcomes="$outcomes${outcomes:+,}
    {\"name\": \"$name\", \"outcome\": \"$outcome\", \"seconds\": $seconds}"
}

# Real checkpoints are too large for the bundle; where they and their reference outputs stand as they do in the repository
# (target/models, ../shared/golden), they are tested too.
skip=
if [ ! -d target/models ] || [ ! -d ../shared/golden ]; then
    skip="--skip golden:: --skip real_models"
    echo "real checkpoints are not here (target/models, ../shared/golden): their tests are left out"
fi
for program in tests/*; do
    # One at a time: they share the GPU.
    # shellcheck disable=SC2086
    attempt "$program" "$(basename "$program").log" "$program" --test-threads=1 $skip
done

if command -v compute-sanitizer >/dev/null 2>&1 && [ -z "$emulated" ]; then
    for tool in memcheck racecheck synccheck initcheck; do
        attempt "$tool of tests/kernels" "sanitizer-$tool.log" \
            compute-sanitizer --tool "$tool" --error-exitcode 1 tests/kernels --test-threads=1
    done
else
    echo "no compute-sanitizer here: races and stray accesses were not looked for"
fi

same_tokens() {
    # shellcheck disable=SC2086
    ./measure tokens small.gguf $emulated >results/tokens.json && cmp expected.json results/tokens.json
}
attempt "tokens of the small model" tokens.log same_tokens

# shellcheck disable=SC2086
measure() { ./measure $large $emulated >results/measure.json; }
attempt "benchmark" measure.log measure
[ -s results/measure.json ] || echo null >results/measure.json

{
    printf '{\n  "card": "%s",\n  "driver": "%s",\n  "emulated": %s,\n  "checks": [%s\n  ],\n  "measure": ' \
        "$(ask name)" "$(ask driver_version)" "$([ -n "$emulated" ] && echo true || echo false)" "$outcomes"
    cat results/measure.json
    printf '}\n'
} >results/results.json
echo "results/results.json"
exit $failed
