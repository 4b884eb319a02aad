#!/usr/bin/env bash
# Intel's EPT in the lab (lab --ept): compares vmm's claims about the second level with two witnesses, KVM's counts and the EPT
# violations that the emulated processor logs. The runs are in ept_checks, several for each boot. VMM names the binary to
# test; without it the newest build is taken.
#
# ept_test.sh [PART]...    parts: all of them if none is named
# ept_test.sh --parts      lists them

set -uo pipefail
export LC_ALL=C
umask 022
readonly parts=(guest eptad linux smp lab)
if [[ ${1-} == --parts ]]; then
    printf '%s\n' "${parts[@]}"
    exit
fi
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/ept_test.XXXXXX")
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
vmm=${VMM:-}

pass() { echo "PASS $1"; passed=$((passed + 1)); }
fail() { # NAME WHY
    echo "FAIL $1: $2"
    failed=$((failed + 1))
}
check() { # NAME COMMAND...
    if "${@:2}"; then pass "$1"; else fail "$1" "${*:2}"; fi
}

# in_lab LAB-OPTION... -- COMMAND...: leaves out, err and status.
in_lab() {
    "$here/lab" --ept run ${vmm:+--vmm "$vmm"} --timeout 3600 "$@" </dev/null >"$work/out" 2>"$work/err"
    status=$?
}

# checks LAB-OPTION... -- GROUP...: counts the lines that ept_checks prints, and the WITNESS lines that match the log.
checks() {
    local options=() name before guest run=0 seen
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    in_lab "${options[@]}" --violations "$work/violations" --file "$here/system_checks:/bin/system_checks" \
        --file "$here/ept_checks:/bin/ept_checks" -- ept_checks "${@:2}"
    grep -v '^WITNESS' "$work/out"
    passed=$((passed + $(grep -c '^PASS' "$work/out")))
    failed=$((failed + $(grep -c '^FAIL' "$work/out")))
    if ((status != 0)); then
        cat "$work/err"
        fail "the lab run" "status $status"
        return
    fi
    while IFS='|' read -r name before guest; do
        run=$((run + 1)) name=${name#WITNESS }
        seen=$(sed -n "s/^lab: EPT violations on guest RAM, run $run: //p" "$work/err")
        if [[ $seen == "${before// /} before the hand-over, ${guest// /} in the guest" ]]; then
            pass "the processor's violations, ${name% }: $seen"
        else
            fail "the processor's violations, ${name% }" "$seen, not$before and$guest"
        fi
    done < <(grep '^WITNESS' "$work/out")
    check "the lab counted as many runs as there were" [ "$(grep -c '^lab: EPT violations' "$work/err")" -eq "$run" ]
}

# violations_of RUN STAGE CPU: prints how many violations there were.
violations_of() { awk -v run="$1" -v stage="$2" -v cpu="$3" '$4 == run && $5 == stage && $2 == cpu' "$work/violations" | wc -l; }

part_guest() {
    checks --hugepages-2m 40 -- guest
    # Without a prefault only the guest's first touch of a page is a violation: no address of RAM is logged twice.
    check "no page is missed twice" [ -z "$(awk '$5 == "guest" { print $4, substr($3, 1, 11) }' "$work/violations" |
        sort | uniq -d | head -n 1)" ]
}
part_eptad() { checks --eptad 0 -- eptad; }
part_linux() { checks -- linux; }
part_smp() {
    checks --cpus 2 -- smp
    local cpu
    for cpu in 0 1; do
        check "processor $cpu took its share of the fill by touch" [ "$(violations_of 1 prefault $cpu)" -gt 0 ]
        check "processor $cpu took violations of the guest without a prefault" [ "$(violations_of 3 guest $cpu)" -gt 0 ]
    done
}

# The lab itself: the promises of `lab --help` about --ept.
part_lab() {
    # shellcheck disable=SC2016 # The lab's shell expands it.
    in_lab --memory 512M --kvm pml=0 --get "/tmp/bytes:$work/bytes" -- sh -c '
        printf "to stdout\r\n\001\377\004\n"
        echo "to stderr" >&2
        cat /sys/module/kvm_intel/parameters/ept /sys/module/kvm/parameters/tdp_mmu >/tmp/parameters
        seq 1000 | cat /tmp/parameters - >/tmp/bytes
        exit 7'
    check "exit status 7 is passed on" [ "$status" -eq 7 ]
    check "stdout arrives unchanged" cmp "$work/out" <(printf 'to stdout\r\n\001\377\004\n')
    check "stderr arrives, and nothing is said where no guest ran" cmp "$work/err" <(echo 'to stderr')
    check "files arrive; EPT and the TDP MMU are on" cmp "$work/bytes" <(echo Y; echo Y; seq 1000)

    in_lab -- sh -c 'echo c >/proc/sysrq-trigger'
    check "kernel panic ends with 125" [ "$status" -eq 125 ]
    check "kernel panic is shown" grep -q 'Kernel panic' "$work/err"
}

[[ $# -ne 0 ]] || set -- "${parts[@]}"
for part in "$@"; do
    if ! [[ " ${parts[*]} " == *" $part "* ]]; then
        echo "ept_test.sh: unknown part '$part': there are ${parts[*]}" >&2
        exit 2
    fi
done
for part in "$@"; do
    "part_$part"
done

echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
