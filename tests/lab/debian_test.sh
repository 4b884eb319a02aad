#!/usr/bin/env bash
# A Debian system with systemd boots from --disk under vmm in the lab, on memory that is populated to the last page. It
# writes, powers off, and leaves a clean file system. VMM names the binary to test; without it the newest build is taken.

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

member() { # NAME: of the report
    sed -n "s/^ *\"$1\": \(.*[^,]\),\{0,1\}$/\1/p" "$work/report.json" | sed -n 1p
}

is() { # WHAT EXPECTED
    [[ $1 == "$2" ]] || { echo "it is $1"; return 1; }
}

image=$("$here/lab" image) || exit 1
cp --sparse=always "$image" "$work/disk.img"
printf 'dd if=/dev/urandom of=/root/written bs=1M count=8 conv=fsync && md5sum /root/written\n' >"$work/task"
debugfs -w -R "write $work/task /root/task" "$work/disk.img" 2>/dev/null

options=()
[[ -z ${VMM-} ]] || options=(--vmm "$VMM")
"$here/lab" run "${options[@]}" --memory 3G --timeout 3600 --disk "$work/disk.img" --get /tmp/report.json:"$work/report.json" -- \
    vmm run --prefault=all --page-size=4K -m 512M -c 2 --disk /dev/vda --rng --report /tmp/report.json \
    --initrd /guest/initrd /guest/vmlinuz --serial /dev/stdout --cmdline \
    "quiet modules=virtio_pci,virtio_mmio,virtio_blk,virtio_rng,crc32c_generic,ext4 root_disk=/dev/vda rw" \
    </dev/null >"$work/console" 2>"$work/errors"
status=$?
# The console of a kernel ends its lines with CR LF.
tr -d '\r' <"$work/console" >"$work/lines"

check "the guest powered off: status 0" is "$status" 0
check "systemd says that the system is running" grep -qx 'GUEST STATE running' "$work/lines"
check "its task wrote and read" grep -qx 'GUEST EXIT 0' "$work/lines"
check "no second-level fault" is "$(member second_level_faults_total)" 0
check "its file system is clean" e2fsck -fn "$work/disk.img"
debugfs -R "dump /root/written $work/written" "$work/disk.img" 2>/dev/null
check "what it wrote is on the disk" grep -q "^$(md5sum <"$work/written" | cut -d' ' -f1) " "$work/lines"
if ((failed != 0)); then
    tail -n 30 "$work/lines" "$work/errors"
fi
echo "$passed passed, $failed failed"
((failed == 0))
