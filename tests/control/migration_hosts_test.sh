#!/usr/bin/env bash
# A guest moves between two network namespaces, with a pair of virtual Ethernet devices between them: two hosts, as far as
# the network is concerned. With TLS it arrives, and takes no second-level fault there. Without TLS and without --insecure,
# both ends refuse it. With certificates of another authority, or for another name, it is refused, too. Needs /dev/kvm, root,
# ip and openssl.
#
# migration_hosts_test.sh VMM

set -uo pipefail
export LC_ALL=C
umask 077
vmm=$(realpath "${1:?usage: migration_hosts_test.sh VMM}")
if ! ip netns list >/dev/null 2>&1 || ! unshare -n true 2>/dev/null; then
    echo "SKIP: this user can make no network namespaces"
    exit 77
fi
work=$(mktemp -d)
here=vmm-$$-a there=vmm-$$-b
passed=0 failed=0
declare -A process=()

tidy() {
    local name
    for name in "${!process[@]}"; do
        kill -9 "${process[$name]}" 2>/dev/null
        wait "${process[$name]}" 2>/dev/null
    done
    ip netns del "$here" 2>/dev/null
    ip netns del "$there" 2>/dev/null
    rm -rf "$work"
}
trap tidy EXIT

pass() {
    echo "PASS $1"
    passed=$((passed + 1))
}
fail() {
    echo "FAIL $1"
    local file
    for file in "$work"/*.err "$work"/*.said; do
        if [[ -s $file ]]; then
            echo "--- ${file##*/}"
            tail -n 20 "$file"
        fi
    done
    failed=$((failed + 1))
}
# eventually COMMAND...: waits until the command succeeds. Fails after two minutes: only something that hangs takes so long.
eventually() {
    local tries
    for ((tries = 0; tries < 1200; tries++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
says() { grep -qE -- "$2" "$work/$1" 2>/dev/null; } # FILE PATTERN
lines() { wc -l <"$work/$1"; }
has_more() { (($(lines "$1") > $2)); } # FILE LINES
goes_on() { eventually has_more "$1" "$(lines "$1")"; } # FILE: waits until more is written to it

# ---- the hosts

if ! { ip netns add "$here" && ip netns add "$there" &&
    ip link add name "v$$" netns "$here" type veth peer name "v$$" netns "$there" &&
    ip -n "$here" address add 192.0.2.1/24 dev "v$$" && ip -n "$there" address add 192.0.2.2/24 dev "v$$" &&
    ip -n "$here" link set "v$$" up && ip -n "$there" link set "v$$" up; }; then
    echo "FAIL cannot make two network namespaces with a veth between them"
    exit 1
fi

# authority FOLDER NAME: makes an authority, a server certificate for NAME, and a client certificate.
authority() {
    local folder=$work/$1 name=$2 who
    mkdir -p "$folder"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=authority $1" \
        -keyout "$folder/ca-key.pem" -out "$folder/ca-cert.pem" 2>/dev/null
    for who in server client; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$who" \
            -keyout "$folder/$who-key.pem" -out "$folder/$who.csr" 2>/dev/null
        openssl x509 -req -in "$folder/$who.csr" -CA "$folder/ca-cert.pem" -CAkey "$folder/ca-key.pem" -days 2 \
            -extfile <(printf 'subjectAltName=IP:%s\nextendedKeyUsage=%sAuth\n' "$name" "$who") \
            -out "$folder/$who-cert.pem" 2>/dev/null
    done
}
authority right 192.0.2.2
authority other 192.0.2.2
authority name 192.0.2.77
chmod -R go= "$work"

# source_runs: starts the guest on this side, unless it runs already.
source_runs() {
    if [[ -n ${process[source]-} ]] && kill -0 "${process[source]}" 2>/dev/null; then
        return
    fi
    rm -f "$work"/source.*
    ip netns exec "$here" "$vmm" run --memory 64M --vcpus 2 --prefault=all --page-size 4K --cmdline "passes=1000000 check" \
        --api "$work/source.api" --serial "$work/source.out" --report "$work/source.json" >"$work/source.err" 2>&1 &
    process[source]=$!
    eventually says source.out '^pass='
}
# waits [OPTION...]: starts a vmm on the other side that waits for a guest.
waits() {
    rm -f "$work"/destination.*
    ip netns exec "$there" "$vmm" run --incoming tcp:192.0.2.2:4444 --api "$work/destination.api" \
        --serial "$work/destination.out" --report "$work/destination.json" "$@" >"$work/destination.err" 2>&1 &
    process[destination]=$!
    eventually says destination.err 'can come to|error'
}
waits_no_more() {
    kill -TERM "${process[destination]}" 2>/dev/null
    wait "${process[destination]}"
    unset "process[destination]"
}
# migrate [OPTION...]: returns the status of `vmm ctl`, and writes its output to source.said.
migrate() { "$vmm" ctl "$work/source.api" migrate tcp:192.0.2.2:4444 "$@" >"$work/source.said" 2>&1; }

# ---- refused before anything is opened

waits
if says destination.err 'error:.*--tls' && says destination.err 'insecure'; then
    pass "another host's guest is not waited for without TLS"
else
    fail "another host's guest is not waited for without TLS"
fi
waits_no_more

source_runs || fail "the guest begins"
if ! migrate && says source.said 'tls' && says source.said 'insecure' && goes_on source.out; then
    pass "a guest does not go to another host without TLS"
else
    fail "a guest does not go to another host without TLS"
fi

# ---- refused if the ends do not trust each other

refuses() { # WHAT AUTHORITY-OF-THE-SOURCE AUTHORITY-OF-THE-DESTINATION PATTERN
    waits --tls "$work/$3"
    if ! migrate --tls "$work/$2" && says source.said "$4" && goes_on source.out; then
        pass "$1"
    else
        fail "$1"
    fi
    waits_no_more
}
refuses "a server of another authority is refused" right other 'certificate'
refuses "a server with another name is refused" name name '192\.0\.2\.2|name'

# ---- the guest arrives

arrives() { # WHAT [OPTION-OF-MIGRATE...] -- [OPTION-OF-RUN...]
    local what=$1 of_migrate=()
    shift
    while [[ $1 != -- ]]; do
        of_migrate+=("$1")
        shift
    done
    shift
    source_runs || fail "the guest begins"
    waits "$@"
    if migrate "${of_migrate[@]}" && wait "${process[source]}" && unset "process[source]" &&
        eventually says destination.out '^pass=' && goes_on destination.out &&
        "$vmm" ctl "$work/destination.api" stop --force >/dev/null && wait "${process[destination]}"; then
        unset "process[destination]"
        if python3 - "$work/destination.json" "$work/source.json" <<'PY'; then
import json, sys
there, here = (json.load(open(name)) for name in sys.argv[1:])
assert here["guest"]["exit"] == "migrated", here["guest"]
assert there["guest"]["exit"] == "stopped", there["guest"]
assert there["prefault"]["complete"], there["prefault"]
assert there["guest"]["second_level_faults_total"] == 0, there["guest"]
assert there["arrival"]["mapped_bytes"] >= 64 << 20, there["arrival"]
PY
            if ! says destination.out 'wrong|mismatch'; then
                pass "$what"
                return
            fi
        fi
    fi
    fail "$what"
}
arrives "with TLS a guest goes over and arrives full" --tls "$work/right" --streams 3 -- --tls "$work/right"
arrives "with --insecure, too" --insecure --compress auto -- --insecure

echo "$passed passed, $failed failed"
((failed == 0))
