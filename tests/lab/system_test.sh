#!/usr/bin/env bash
# Whole systems in the lab: stock kernels boot under vmm on memory that is populated to the last page. The checks
# themselves are in system_checks, which runs inside. VMM names the binary to test; without it the newest build is taken.

set -uo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
passed=0 failed=0

# checks LAB-OPTION... -- GROUP...
checks() {
    local options=()
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    "$here/lab" run ${VMM:+--vmm "$VMM"} "${options[@]}" --file "$here/system_checks:/bin/system_checks" --timeout 800 \
        -- system_checks "$@" </dev/null | tee "$output"
    local status=${PIPESTATUS[0]}
    passed=$((passed + $(grep -c '^PASS' "$output")))
    failed=$((failed + $(grep -c '^FAIL' "$output")))
    if ((status != 0)); then
        echo "FAIL the lab run of $* ended with status $status"
        failed=$((failed + 1))
    fi
}

checks --memory 3G --hugepages-2m 160 -- linux guest life
checks --memory 6G --hugepages-1g 1 -- large
checks --guest-kernel 6.1 -- kernel

echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
