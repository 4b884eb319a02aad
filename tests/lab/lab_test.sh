#!/usr/bin/env bash
# Tests the lab itself: boots it a few times and checks the promises of `lab --help`.

set -uo pipefail
export LC_ALL=C
umask 022

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/lab_test.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Runs of lab keep their folders here, so that the test sees what they leave behind.
mkdir "$work/tmp"
passed=0 failed=0

check() { # NAME COMMAND...: passes if the command succeeds
    if "${@:2}"; then
        echo "PASS $1"
        passed=$((passed + 1))
    else
        echo "FAIL $1"
        failed=$((failed + 1))
    fi
}

lab() { # ARGUMENT...: leaves out, err and status
    TMPDIR=$work/tmp "$here/lab" "$@" >"$work/out" 2>"$work/err" </dev/null
    status=$?
}

start_lab() { # ARGUMENT...: starts lab in the background; leaves its process in lab
    TMPDIR=$work/tmp "$here/lab" "$@" >"$work/out" 2>"$work/err" </dev/null &
    lab=$!
}

# eventually COMMAND...: waits until the command succeeds. Fails after ten minutes: only something that hangs takes so long.
eventually() {
    local tries
    for ((tries = 0; tries < 6000; tries++)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
has_said() { grep -q "$1" "$work/out"; }

status_is() {
    [ "$status" -eq "$1" ] && return
    echo "  status $status, expected $1; its errors:"
    tail -n 5 "$work/err" | sed 's/^/  | /'
    return 1
}

equal() { # FILE TEXT
    [ "$(cat "$1")" = "$2" ] && return
    echo "  expected '$2', got:"
    head -n 20 "$1" | sed 's/^/  | /'
    return 1
}

says() { # FILE PATTERN
    grep -q -- "$2" "$1" && return
    echo "  no '$2' in:"
    tail -n 50 "$1" | sed 's/^/  | /'
    return 1
}

reported() { says "$work/report" "^$1\$"; }

refused() { # ARGUMENT...: lab refuses them with status 2 and one line
    lab "$@"
    status_is 2 && [ "$(wc -l <"$work/err")" -eq 1 ] && [ ! -s "$work/out" ]
}

mounted() { says "$work/report" " $1 "; }

machine_is_gone() { [ -n "$machine" ] && ! kill -0 "$machine" 2>/dev/null; }

nothing_left() {
    local left
    left=$(find "$work/tmp" -mindepth 1 -print -quit)
    [ -z "$left" ] || { echo "  left behind: $left"; return 1; }
}

echo "# wrong options"
check "unknown option is refused" refused run --no-such-option 1 -- true
check "option without a value is refused" refused run --cpus
check "unknown verb is refused" refused walk
check "run without a command is refused" refused run --cpus 1
check "command without -- is refused" refused run true
check "odd memory size is refused" refused run --memory 2GB -- true
check "memory too small for the huge pages is refused" refused run --memory 1G --hugepages-2m 512 -- true
check "count that is no number is refused" refused run --cpus two -- true
check "more nodes than there can be are refused" refused run --numa 9 -- true
check "more nodes than processors are refused" refused run --numa 2 --cpus 1 -- true
check "memory too small for the nodes is refused" refused run --numa 8 --memory 1023M -- true
check "missing file is refused" refused run --file "$work/none:/none" -- true
check "relative guest path is refused" refused run --file "$here/lab:none" -- true
check "guest path with .. is refused" refused run --file "$here/lab:/a/../b" -- true
check "file to get into no folder is refused" refused run --get "/a:$work/none/a" -- true

check "parameter without a value is refused" refused run --kvm npt -- true
check "parameter that no module has is refused" refused run --kvm no_such=1 -- true
check "what only the EPT lab has is refused" refused run --eptad 0 -- true
check "violations without an emulator that logs them are refused" refused run --violations "$work/violations" -- true
check "nodes are refused with EPT" refused --ept run --numa 2 -- true
check "disks are refused with EPT" refused --ept run --disk "$here/lab" -- true
check "huge pages of 1 GiB are refused with EPT" refused --ept run --hugepages-1g 1 --memory 2G -- true
check "too many processors are refused with EPT" refused --ept run --cpus 5 -- true
check "too much memory is refused with EPT" refused --ept run --memory 3G -- true
check "an image is refused with EPT" refused --ept image

echo "# one run with everything"
cat >"$work/probe" <<'PROBE'
#!/bin/sh
for argument; do printf '%s\0' "$argument"; done >/tmp/arguments
{
    for name in kvm_amd/parameters/npt kvm/parameters/tdp_mmu; do
        echo "$name=$(cat /sys/module/$name)"
    done
    echo "pages=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
    echo "processors=$(nproc)"
    echo "nodes=$(cat /sys/devices/system/node/online)"
    echo "core=$(ulimit -c)"
    echo "kvm=$([ -c /dev/kvm ] && echo yes)"
    echo "input=$(wc -c)"
    cat /proc/mounts
    ifconfig lo | grep -o 'UP LOOPBACK RUNNING'
    [ "$(od -An -t x1 -N 4 /guest/vmlinux | tr -d ' ')" = 7f454c46 ] && echo elf=yes
    ls /guest
    /opt/program && echo program=yes
} >/tmp/report 2>&1
printf 'to stdout\r\n\001\377\004\n'
echo 'to stderr' >/dev/stderr
sleep 1000 &
exit 7
PROBE
chmod +x "$work/probe"
# shellcheck disable=SC1003,SC2016 # Nothing is to be expanded.
arguments=(plain 'two words' '' "it's" '"quoted"' $'a\nnew line' '*' '$HOME' '\' '-x' '`id`' $'\t\xff')
lab run --cpus 2 --memory 1G --hugepages-2m 64 --file "$work/probe:/tmp/probe" --file "$(type -P true):/opt/program" \
    --get "/tmp/report:$work/report" --get "/tmp/arguments:$work/arguments" -- /tmp/probe "${arguments[@]}"
check "exit status 7 is passed on" status_is 7
check "stdout arrives unchanged, and only it" equal "$work/out" $'to stdout\r\n\001\377\004'
check "stderr arrives apart" equal "$work/err" 'to stderr'
printf '%s\0' "${arguments[@]}" >"$work/expected"
check "arguments arrive exactly" cmp "$work/expected" "$work/arguments"
check "nested paging is on" reported 'kvm_amd/parameters/npt=Y'
check "the TDP MMU is on" reported 'kvm/parameters/tdp_mmu=Y'
check "huge pages of 2 MiB are reserved" reported pages=64
check "it has the processors asked for" reported processors=2
check "without --numa it has one node" reported nodes=0
check "/dev/kvm is there" reported kvm=yes
check "no core files" reported core=0
check "standard input is empty" reported input=0
for folder in /proc /sys /dev /tmp /dev/shm /dev/hugepages /sys/kernel/debug; do
    check "$folder is mounted" mounted "$folder"
done
check "the loopback interface is up" reported 'UP LOOPBACK RUNNING'
check "/guest has an ELF kernel" reported elf=yes
check "/guest has a bzImage" reported vmlinuz
check "/guest has an initrd" reported initrd
check "a dynamically linked program given by --file runs" reported program=yes
check "nothing is left behind" nothing_left

echo "# nodes"
# shellcheck disable=SC2016 # The lab's shell expands it.
lab run --numa 2 --hugepages-2m 64 --get "/tmp/report:$work/report" -- sh -c '
    cd /sys/devices/system/node || exit
    for list in online has_cpu has_memory; do
        echo "$list=$(cat $list)"
    done >/tmp/report
    for node in node*; do
        echo "$node processors=$(cat $node/cpulist)"
        echo "$node distances=$(cat $node/distance)"
        echo "$node pages=$(cat $node/hugepages/hugepages-2048kB/nr_hugepages)"
    done >>/tmp/report
    grep -q "N[01]=" /proc/self/numa_maps && echo numa_maps=yes >>/tmp/report'
check "a run with nodes succeeds" status_is 0
for fact in online=0-1 has_cpu=0-1 has_memory=0-1 'node0 processors=0-1' 'node1 processors=2' \
    'node0 distances=10 20' 'node1 distances=20 10' 'node0 pages=32' 'node1 pages=32' numa_maps=yes; do
    check "with two nodes there is $fact" reported "$fact"
done

lab run --numa 3 -- sh -c 'cd /sys/devices/system/node && cat has_memory has_cpu'
check "a run with nodes and without --cpus succeeds" status_is 0
check "each node has a processor and memory without --cpus" equal "$work/out" $'0-2\n0-2'

echo "# parameters of KVM"
lab run --kvm tdp_mmu=N,halt_poll_ns=4711 -- sh -c 'cd /sys/module && cat kvm/parameters/tdp_mmu kvm/parameters/halt_poll_ns kvm_amd/parameters/npt'
check "kvm's parameters are as asked for" equal "$work/out" $'N\n4711\nY'
lab run --kvm npt=0 -- cat /sys/module/kvm_amd/parameters/npt
check "kvm_amd's parameters are as asked for" equal "$work/out" N

echo "# other ends"
lab run --kernel 6.1 -- sh -c 'uname -r; cat /none || true'
check "exit status 0 is passed on" status_is 0
check "the lab's kernel can be 6.1" says "$work/out" '^6\.1\.'

lab run --get "/none:$work/none" -- no-such-command
check "missing command ends with 127" status_is 127
check "file that cannot be got is named" says "$work/err" 'has no file /none'

lab run --memory 4G --hugepages-1g 1 -- cat /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
check "huge pages of 1 GiB are reserved" equal "$work/out" 1

lab run --timeout 1 -- sleep 100000
check "timeout ends with 124" status_is 124
check "timeout is explained" says "$work/err" 'time was up after 1 s'

# Time is up when the lab's timer ends. We end the timer as soon as there is output, so the test does not depend on speed.
start_lab run --timeout 86399 -- sh -c 'echo before; sleep 100000'
eventually has_said before
kill "$(pgrep -P "$lab" -f '^sleep 86399$')"
wait "$lab"
status=$?
check "timeout after output ends with 124" status_is 124
check "output before the timeout arrives" equal "$work/out" before

# The list of modules that a module needs is replaced by a pipe without a writer: the lab's init waits for ever.
hanging=$work/hanging
mkdir -p "$hanging/kernel/6.12" "$work/modules/lab/modules"
real=$(realpath "${VMM_LAB_DIR:-$here/../../build/lab}")
ln -s "$real/qemu" "$real/busybox" "$hanging/"
for part in "$real"/kernel/6.12/*; do
    ln -s "$(realpath "$part")" "$hanging/kernel/6.12/"
done
mkfifo "$work/modules/lab/modules/virtio_pci.order"
rm "$hanging/kernel/6.12/npt_modules.cpio"
(cd "$work/modules" && find . -mindepth 1 | cpio --quiet -o -H newc) |
    cat "$real/kernel/6.12/npt_modules.cpio" - >"$hanging/kernel/6.12/npt_modules.cpio"
VMM_LAB_DIR=$hanging VMM_LAB_BOOT_LIMIT=1 lab run -- true
check "a boot that hangs is the lab's failure" status_is 125
check "it is tried again, twice" equal <(grep -c 'it did not boot within 1 s: once more' "$work/err") 2
check "it is explained" says "$work/err" 'did not boot in 3 times 1 s'

lab run -- sh -c 'echo c >/proc/sysrq-trigger'
check "kernel panic ends with 125" status_is 125
check "kernel panic is shown" says "$work/err" 'Kernel panic'

echo "# interrupted"
start_lab run -- sh -c 'echo started; sleep 100000'
eventually has_said started
check "output arrives while the command runs" equal "$work/out" started
machine=$(pgrep -P "$lab" -f qemu-system)
kill -TERM "$lab"
wait "$lab"
status=$?
check "SIGTERM ends it with 143" status_is 143
check "its machine is gone" machine_is_gone
check "nothing is left behind" nothing_left

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
