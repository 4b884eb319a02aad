# shellcheck shell=sh
# What snapshot_fio and migration_fio have in common: a Debian system in the lab (fio_guest is its PID 1) that is busy on each of
# its devices, and the checks that it goes on. Both scripts source this file, in the lab and outside of it.
# shellcheck disable=SC2034,SC2154,SC3045

now() { cut -d . -f 1 /proc/uptime; }
since() { echo $(($(now) - $1)); } # A TIME: in seconds

# eventually COMMAND...: waits until the command succeeds. Fails after fifteen minutes (only something that hangs takes so
# long), or if the vmm of the round ends.
eventually() {
    tries=0
    until "$@"; do
        if [ $tries -ge 1800 ] || ! kill -0 "$pid" 2>/dev/null || crashed; then return 1; fi
        tries=$((tries + 1))
        usleep 500000 # Looking more often would take much of the lab's time: each look starts some processes.
    done
}

# crashed: true if the guest's kernel has printed an error.
crashed() {
    grep -q 'Kernel panic\|BUG:\|Oops\|general protection\|rcu.*detected\|soft lockup\|blocked for more than\|I/O error' "$at.ttyS0" "$at.hvc0"
}

# said TERMINAL PATTERN [TIMES]: true if the guest has printed that since it was restored.
said() { [ "$(grep -c "$2" "$at.$1" 2>/dev/null)" -ge "${3-1}" ]; }

# fio_reads LINE: prints how many blocks fio had verified in the first (1) or last ($) line about it since the restore.
fio_reads() { sed -n 's/^FIO \([0-9]*\) .*/\1/p' "$at.ttyS0" | sed -n "$1p"; }
has_verified() { [ "$(fio_reads '$')" -ge "$1" ]; } # BLOCKS

# typed LINE: types it at the terminal of the round.
typed() { echo "$*" >"$at.keyboard"; }

# start NAME TERMINAL ARGUMENT...: starts a vmm with that terminal on its standard input and output, and the other terminal in
# a file. Leaves pid, and the prefix $at of its files: $at.ttyS0, $at.hvc0 and others.
start() {
    at=/tmp/rounds/$1 terminal=$2
    shift 2
    rm -f "$at".*
    : >"$at.ttyS0"
    : >"$at.hvc0"
    mkfifo "$at.keyboard"
    case $terminal in
        ttyS0) consoles="--serial stdio --console $at.hvc0" ;;
        hvc0) consoles="--serial $at.ttyS0 --console stdio" ;;
    esac
    # shellcheck disable=SC2086 # Four words.
    vmm run --report "$at.json" --api "$at.api" $consoles "$@" <>"$at.keyboard" >>"$at.$terminal" 2>"$at.errors" &
    pid=$!
}

statistics() { vmm ctl "$at.api" statistics 2>/dev/null; }
faults() { statistics | awk '/faults/ { sum += $NF } END { print sum + 0 }'; }

# check WHAT COMMAND...: waits until the command succeeds. If it does not, fails and sets why to WHAT.
check() {
    what=$1
    shift
    eventually "$@" && return
    why=$what
    return 1
}

asks() { timeout 900 device_tool unix-ask "$1" 1234 10000 3 >"$at.asked" 2>&1; }

# iperf: true if a mebibyte goes to the guest while another one comes back. The server may end when a client ends. Then it takes
# a moment until the next server runs.
iperf() {
    connects=0
    until timeout 900 chroot /image /usr/bin/iperf3 -c 10.9.0.2 -n 1M --bidir >"$at.iperf" 2>&1; do
        connects=$((connects + 1))
        if [ $connects -ge 600 ] || ! grep -q 'unable to connect to server: Connection refused' "$at.iperf"; then return 1; fi
        usleep 500000
    done
}

# reached WHAT: notes how many seconds after the begin of the round this step was reached.
reached() { stages="$stages, $1 $(since "$begin")"; }

# works N VSOCK: true if everything goes on in the guest that was just restored, and new connections and requests work.
works() {
    why='' stages=''
    typed "check $1"
    check "the line that was typed at $terminal is not answered" said "$terminal" "^ANSWER $1 $terminal" || return
    reached answer
    check "fio says nothing" said ttyS0 '^FIO [0-9]* [0-9]' || return
    verified=$(($(fio_reads 1) + 160))
    check "fio does not go on" has_verified $verified || return
    reached fio
    check "vsock from the guest does not go on" said hvc0 '^VSOCK' 2 || return
    if ! asks "$2"; then
        why="vsock from the host is not echoed: $(cat "$at.asked")"
        return 1
    fi
    reached vsock
    if [ "${network-yes}" = yes ] && ! iperf; then
        why="iperf3 fails: $(cat "$at.iperf")"
        return 1
    fi
    reached iperf3
    typed "hwrng $1"
    check "no random bytes come" said "$terminal" "^HWRNG $1 [0-9a-f]\{32\}" || return
    check "no clock is told" said hvc0 '^CLOCK [0-9]' 2 || return
    if said hvc0 '^CLOCK-BACK'; then
        why="a clock went back"
        return 1
    fi
    verified=$(($(fio_reads '$') + 32))
    check "fio does not go on after that" has_verified $verified || return
    if said ttyS0 '^FIO-FAILED'; then
        why="fio has found an error, or ended"
        return 1
    fi
    if crashed; then
        why="the guest's kernel complains"
        return 1
    fi
}

kill_guest() {
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    return 0
}

# show: prints everything that may explain why a guest does not work.
show() {
    echo "--- $at: $why"
    if kill -0 "$pid" 2>/dev/null; then
        vmm ctl "$at.api" status
        statistics
        typed state
        usleep 20000000
        for thread in /proc/"$pid"/task/*; do echo "$(cat "$thread/comm") $(cut -d ' ' -f 3,14,15 "$thread/stat") $(cat "$thread/wchan")"; done
    else
        echo "vmm has ended"
    fi
    [ ! -s "$at".errors ] || tail -n 60 "$at".errors
    for file in ttyS0 hvc0; do
        echo "--- $file"
        grep -v '^FIO [0-9]\|^VSOCK\|^CLOCK [0-9]' "$at.$file" | tail -n 150
        tail -n 4 "$at.$file"
    done
    echo "---"
}

# prepare_lab: makes a disk, puts the image's programs into /image, and starts a flood of pings at the guest.
prepare_lab() {
    mkdir -p /tmp/rounds /image
    dd if=/dev/zero of=/tmp/disk bs=1M count=16 2>/dev/null
    mount -t ext4 -o ro /dev/vda /image && mount -o bind /dev /image/dev && mount -t proc proc /image/proc &&
        mount -t tmpfs tmpfs /image/tmp || exit
    # Each tap stays when the vmm that uses it is killed.
    for n in 0 1; do chroot /image /bin/ip tuntap add dev tap$n mode tap vnet_hdr || exit; done
    while :; do ping -q -i 0.1 -s 1000 -c 1000 -W 1 10.9.0.2 >/dev/null 2>&1; usleep 100000; done &
}

# answer_vsock SOCKET...: echoes each connection that the guest makes to port 78 of these sockets.
answer_vsock() {
    for socket in "$@"; do
        while :; do rm -f "${socket}_78"; device_tool unix-answer "${socket}_78" 1000000 2>/dev/null; done &
    done
}

# boot_guest VSOCK ARGUMENT...: boots the guest with tap0, that socket and these arguments. Ends the script if it does not work.
boot_guest() {
    begin=$(now) vsock=$1
    shift
    modules=virtio_mmio,virtio_pci,virtio_console,virtio_blk,virtio_net,virtio_rng,vmw_vsock_virtio_transport,crc32c_generic,ext4
    # On a busy machine a processor of the guest may not run for half a minute. `eventually` finds a guest that hangs for good.
    patience="rcupdate.rcu_cpu_stall_timeout=300 watchdog_thresh=60"
    start boot ttyS0 --transport "${transport-pci}" -m 256M -c 4 --page-size=4K --prefault=all --rng --disk /dev/vda,ro --disk /tmp/disk --net tap=tap0 \
        --vsock "$vsock" "$@" --initrd /guest/initrd /guest/vmlinuz \
        --cmdline "loglevel=5 $patience modules=$modules root_disk=/dev/vda root_init=/root/fio_guest"
    # Input that is typed before that is lost: the kernel empties the serial port when it finds it.
    if ! check "the guest does not start" said ttyS0 '^GUEST STARTED' || ! works 0 "$vsock"; then
        show
        echo "FAIL the guest boots: $why"
        exit 1
    fi
    echo "the guest has booted: $(since "$begin") s"
}

# --- Outside of it ----------------------------------------------------------------------------------------------------

# start_lab SCRIPT ROUNDS PART...: runs the script of that name in the lab, with the word "inside" and the other words.
# lab_options are words for `lab run`; VMM_TRANSPORT says how the guest reaches its devices.
start_lab() {
    script=$1
    shift
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    vmm=${VMM:-$(find "$here/../../build" -name vmm -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)}
    tools=$(dirname "$vmm")/../tests
    image=$("$here/lab" image) || exit
    cp --sparse=always "$image" "$work/root.img"
    debugfs -w -f - "$work/root.img" >"$work/debugfs" 2>&1 <<COMMANDS
write $here/fio_guest /root/fio_guest
write $tools/lab_device_tool /root/device_tool
set_inode_field /root/fio_guest mode 0100755
set_inode_field /root/device_tool mode 0100755
COMMANDS
    # shellcheck disable=SC2086 # Several words.
    "$here/lab" run ${lab_options-} --kvm halt_poll_ns=0 --vmm "$vmm" --memory 4G --timeout $(($1 * 300 + 3600)) --disk "$work/root.img" \
        --file "$tools/lab_device_tool:/bin/device_tool" --file "$here/$script:/bin/$script" \
        --file "$here/fio_lab.sh:/bin/fio_lab.sh" -- env transport="${VMM_TRANSPORT-pci}" "$script" inside "$@" </dev/null
}
