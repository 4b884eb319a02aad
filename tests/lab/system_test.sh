#!/usr/bin/env bash
# Whole systems in the lab: stock kernels boot under vmm on memory that is populated to the last page. The checks
# themselves are in system_checks, which runs inside. VMM names the binary to test; without it the newest build is taken.
#
# system_test.sh [PART]...     parts: all of them if none is named
# system_test.sh --parts       lists those that are tests of ctest
# system_test.sh --figures     no test: prints how long things take there, for scripts/benchmark --lab

set -uo pipefail
export LC_ALL=C
umask 022
# With VMM_LAB_ROUNDS=50, checks with a few rounds have so many: hot-plug, and memory that grows and shrinks.
readonly rounds=${VMM_LAB_ROUNDS-}
readonly usual=(linux options guest virtio nodes memory large devices kernel emulated effort nested kept snapshot migration cgroups pci growth)
readonly parts=("${usual[@]}" mmio)
if [[ ${1-} == --parts ]]; then
    printf '%s\n' "${usual[@]}"
    exit
fi
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
passed=0 failed=0

# in_lab LAB-OPTION... -- COMMAND...: counts the lines PASS and FAIL that the command prints.
in_lab() {
    "$here/lab" run --vmm "$vmm" "$@" </dev/null | tee "$output"
    local status=${PIPESTATUS[0]}
    passed=$((passed + $(grep -c '^PASS' "$output")))
    failed=$((failed + $(grep -c '^FAIL' "$output")))
    if ((status != 0)); then
        echo "FAIL the lab run ended with status $status: $*"
        failed=$((failed + 1))
    fi
}
# checks LAB-OPTION... -- GROUP...
checks() {
    local options=()
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    in_lab "${options[@]}" --file "$here/system_checks:/bin/system_checks" --timeout 3600 -- env "transport=${transport-}" "rounds=$rounds" system_checks "$@"
}

# The built-in guest is a kernel for any VMM with PVH: under QEMU it runs unchanged, and powers off.
guest_under_qemu() { # NAME QEMU-ARGUMENT...
    timeout 1200 "$here/lab" qemu -accel tcg -m 128M -nodefaults -display none -serial stdio -no-reboot "${@:2}" \
        -kernel "$guest" -append "passes=2" </dev/null >"$output" 2>&1
    local status=$?
    if ((status == 0)) && grep -q '^summary ' "$output"; then
        echo "PASS built-in guest under QEMU, $1"
        passed=$((passed + 1))
    else
        echo "FAIL built-in guest under QEMU, $1: status $status"
        tail -n 15 "$output"
        failed=$((failed + 1))
    fi
}

vmm=${VMM:-$(find "$here/../../build" -name vmm -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)}
guest=$(dirname "$vmm")/guest/guest.elf
tool=$(dirname "$vmm")/../tests/lab_device_tool
held_guest=$(dirname "$vmm")/../tests/lab_held_guest
keeper_tool=$(dirname "$vmm")/../tests/lab_keeper_tool
part_emulated() {
    guest_under_qemu "pc, 1 CPU" -M pc -smp 1
    guest_under_qemu "q35, 2 CPUs" -M q35 -smp 2
}
part_linux() { checks --memory 3G --hugepages-2m 256 -- linux; }
part_options() { checks --memory 2G -- options cpu; }
part_guest() { checks --memory 3G --hugepages-2m 256 -- guest life; }
part_memory() { checks --memory 3G -- scope pins; }
part_virtio() { checks --memory 3G -- disks net net_queues; }
part_effort() { checks --memory 3G --hugepages-2m 256 -- effort background; }
part_nodes() { checks --memory 3G --hugepages-2m 128 --numa 2 -- split placement pool_of_nodes node_migration growth_split; }
part_kept() { checks --memory 3G --numa 2 --file "$keeper_tool:/bin/keeper_tool" -- kept; }
part_snapshot() { checks --memory 3G --hugepages-2m 128 -- snapshot; }
part_migration() { checks --memory 3G --hugepages-2m 96 --file "$tool:/bin/device_tool" -- migration queues_move; }
part_cgroups() { checks --memory 2G --hugepages-2m 80 -- cgroups; }
# Repeats with MMIO what other parts check on the PCI bus. ctest leaves it out to save time; unit and kvm tests use both
# transports.
part_mmio() { transport=mmio checks --memory 3G --hugepages-2m 128 -- disks net snapshot; }
# Both stock kernels, on the PCI bus.
part_pci() {
    checks --memory 3G --hugepages-2m 128 -- pci_devices pci_hotplug pci_saved
    checks --guest-kernel 6.1 -- pci_devices
}
part_growth() {
    checks --memory 5G --hugepages-2m 200 -- growth growth_refused grown_moves
    checks --guest-kernel 6.1 --memory 3G -- growth_of_an_older_kernel
}
part_large() { checks --memory 7G --hugepages-1g 2 -- large growth_large; }
part_kernel() { checks --guest-kernel 6.1 -- kernel; }
# A guest of a guest: vmm runs vmm.
part_nested() {
    in_lab --timeout 3600 --file "$here/nested_checks:/bin/nested_checks" --file "$here/nested_init:/usr/nested_init" \
        --file "$held_guest:/bin/held_guest" -- nested_checks
}
part_devices() {
    in_lab --timeout 3600 --file "$here/device_checks:/bin/device_checks" --file "$tool:/bin/device_tool" \
        --file "$(type -P passt):/bin/passt" -- device_checks
}
# Three labs that have just booted: a host that starts a guest is in that state.
print_figures() {
    for _ in 1 2 3; do
        checks --memory 3G -- figures_first_fill
    done
    checks --memory 3G --hugepages-2m 256 -- figures_speed figures_start
}

if [[ ${1-} == --figures ]]; then
    print_figures | sed -n 's/^FIGURE //p; /^FAIL/p'
    exit
fi
[[ $# -ne 0 ]] || set -- "${parts[@]}"
for part in "$@"; do
    if ! [[ " ${parts[*]} " == *" $part "* ]]; then
        echo "system_test.sh: unknown part '$part': there are ${parts[*]}" >&2
        exit 2
    fi
done
for part in "$@"; do
    "part_$part"
done

echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
