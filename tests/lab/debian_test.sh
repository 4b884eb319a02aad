#!/usr/bin/env bash
# A Debian system with systemd boots from --disk under vmm in the lab, with two stock kernels, on the PCI bus and on memory that
# is populated to the last page. Its devices work, it grows and shrinks under a test of memory, writes, powers off, and leaves a
# clean file system. VMM names the binary to test; without it the newest build is taken.
#
# debian_test.sh [KERNEL]...     the guest's kernels (6.12 6.1)

set -uo pipefail
export LC_ALL=C
umask 022
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() { # NAME COMMAND...
    if "${@:2}" >"$work/check" 2>&1; then
        echo "PASS $1"
        passed=$((passed + 1))
    else
        echo "FAIL $1"
        tail -n 5 "$work/check" | sed 's/^/  | /'
        failed=$((failed + 1))
    fi
}

image=$("$here/lab" image) || exit 1
options=()
[[ -z ${VMM-} ]] || options=(--vmm "$VMM")

(($# != 0)) || set -- 6.12 6.1
for kernel in "$@"; do
    echo "Linux $kernel"
    cp --sparse=always "$image" "$work/disk.img"
    debugfs -w -R "write $here/debian_task /root/task" "$work/disk.img" 2>/dev/null
    "$here/lab" run "${options[@]}" --guest-kernel "$kernel" --memory 5G --timeout 3600 --disk "$work/disk.img" \
        --file "$here/system_checks:/bin/system_checks" --get /tmp/console:"$work/console" -- \
        env transport= system_checks debian </dev/null | tee "$work/told"
    check "the lab ran to its end" test "${PIPESTATUS[0]}" = 0
    passed=$((passed + $(grep -c '^PASS' "$work/told")))
    failed=$((failed + $(grep -c '^FAIL' "$work/told")))
    check "its file system is clean" e2fsck -fn "$work/disk.img"
    debugfs -R "dump /root/written $work/written" "$work/disk.img" 2>/dev/null
    # A kernel's console ends its lines with CR LF.
    check "what it wrote is on the disk" grep -q "^WRITTEN $(md5sum <"$work/written" | cut -d' ' -f1) " "$work/console"
done
echo "$passed passed, $failed failed"
((failed == 0))
