# What the parts of scripts/fleet/test have in common.
# shellcheck shell=bash

failures=0

# holds NAME COMMAND...: checks that the command succeeds.
holds() {
    local name=$1
    shift
    if "$@"; then
        echo "PASS $name"
    else
        echo "FAIL $name: $*"
        failures=$((failures + 1))
    fi
}

# says NAME WORDS FILE: checks that the file contains WORDS.
says() {
    if grep -qF -- "$2" "$3"; then
        echo "PASS $1: $(grep -m1 -F -- "$2" "$3" | cut -c 1-400)"
    else
        echo "FAIL $1: $3 does not say '$2':"
        tail -n 20 "$3" | sed 's/^/  | /'
        failures=$((failures + 1))
    fi
}

# until_holds COMMAND...: waits until the command succeeds. Only a test that hangs reaches the bound.
until_holds() {
    local left=1500
    until "$@" 2>/dev/null; do
        left=$((left - 1))
        ((left)) || return 1
        sleep 0.2
    done
}

# member FILE PATH: a member of a report, by its names with dots between them.
member() {
    python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))
for name in sys.argv[2].split("."):
    value = value[name]
print(value)' "$1" "$2"
}
