# shellcheck shell=bash
# lab run: boots the lab and runs one command in it. Sourced by lab, which sets here, repository,
# lab_dir and the defaults.
# shellcheck disable=SC2154

lab_run() {
    parse_run_options "$@"
    require_lab
    require_tools cpio ldd setpriv tar
    processes=() run_dir=''
    trap end_run EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    run_dir=$(mktemp -d "${TMPDIR:-/tmp}/lab.XXXXXX")
    build_initramfs
    boot
    report
}

end_run() {
    # The machine has no state that an orderly stop would save.
    [ ${#processes[@]} -eq 0 ] || kill -KILL "${processes[@]}" 2>/dev/null || true
    wait_quietly
    [ -z "$run_dir" ] || rm -rf "$run_dir"
}

# Without bash's notes on what was killed.
wait_quietly() { { wait; } 2>/dev/null || true; }

parse_run_options() {
    local value
    check_count VMM_LAB_BOOT_LIMIT "${VMM_LAB_BOOT_LIMIT:-1}" 1 86400
    cpus='' memory=$default_memory time_limit=$default_timeout
    numa=0 hugepages_2m=0 hugepages_1g=0
    kernel=$default_kernel guest_kernel='' vmm='' console_copy=''
    files=() gets=() disks=() command=()
    while [ $# -gt 0 ]; do
        case $1 in
            --)
                command=("${@:2}")
                break
                ;;
            --*=*) value=${1#*=} ;;
            --*)
                { [ $# -ge 2 ] && [ "$2" != -- ]; } || refuse "$1: unknown option, or its value is missing"
                # Both spellings, "--option value" and "--option=value", are read as the second.
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            *) refuse "unknown option '$1': the command comes after --" ;;
        esac
        case $1 in
            --cpus=*) check_count --cpus "$value" 1 64 && cpus=$value ;;
            --memory=*) memory=$value ;;
            --numa=*) check_count --numa "$value" 1 8 && numa=$value ;;
            --hugepages-2m=*) check_count --hugepages-2m "$value" 0 999999 && hugepages_2m=$value ;;
            --hugepages-1g=*) check_count --hugepages-1g "$value" 0 1024 && hugepages_1g=$value ;;
            --kernel=*) check_kernel_version --kernel "$value" && kernel=$value ;;
            --guest-kernel=*) check_kernel_version --guest-kernel "$value" && guest_kernel=$value ;;
            --disk=*) check_file --disk "$value" && disks+=("$(realpath -- "$value")") ;;
            --vmm=*) vmm=$value && check_file --vmm "$vmm" ;;
            --file=*) check_file_option "$value" && files+=("$value") ;;
            --get=*) check_get_option "$value" && gets+=("$value") ;;
            --timeout=*) check_count --timeout "$value" 1 86400 && time_limit=$value ;;
            --console=*) console_copy=$value && check_folder_of --console "$value" ;;
            *) refuse "unknown option '${1%%=*}'" ;;
        esac
        shift
    done
    [ ${#command[@]} -gt 0 ] || refuse "lab run: no command (put it after --)"
    : "${guest_kernel:=$kernel}"
    check_memory
    check_numa
}

# Every node has processors and memory; so without --cpus there are as many processors as nodes, or more.
check_numa() {
    [ -n "$cpus" ] || cpus=$((numa > default_cpus ? numa : default_cpus))
    ((cpus >= numa)) ||
        refuse "--numa: $numa nodes need $numa processors or more, there are $cpus (raise --cpus, or leave it out)"
    ((memory_mib >= numa * memory_block_mib)) ||
        refuse "--numa: $numa nodes need $((numa * memory_block_mib))M or more, --memory is $memory"
}

check_memory() {
    [[ $memory =~ ^([1-9][0-9]{0,5})([MG])$ ]] || refuse "--memory: '$memory' is no size like 4G or 6144M"
    memory_mib=${BASH_REMATCH[1]}
    [ "${BASH_REMATCH[2]}" = M ] || memory_mib=$((memory_mib * 1024))
    ((memory_mib <= 1024 * 1024)) || refuse "--memory: '$memory' is more than 1024G"
    local need=$((own_memory_mib + 2 * hugepages_2m + 1024 * hugepages_1g))
    ((memory_mib >= need)) || refuse "--memory: $memory is too little, this lab needs ${need}M or more"
}

check_file() { # OPTION FILE
    { [ -f "$2" ] && [ -r "$2" ]; } || refuse "$1: cannot read the file '$2'"
}

check_folder_of() { # OPTION FILE
    { [ -d "$(dirname -- "$2")" ] && [ ! -d "$2" ]; } || refuse "$1: cannot write '$2'"
}

check_guest_path() { # OPTION PATH
    case $2/ in
        */../* | */./* | *//*) refuse "$1: '$2' is not a plain absolute path" ;;
        /proc/* | /sys/* | /dev/* | /lab/* | /init/) [ "$1" = --get ] || refuse "$1: '$2' belongs to the lab" ;;
        /?*) ;;
        *) refuse "$1: '$2' is not a plain absolute path" ;;
    esac
}

check_file_option() { # HOST:GUEST
    [[ $1 == *:* ]] || refuse "--file: '$1' is not HOST:GUEST"
    check_file --file "${1%:*}"
    check_guest_path --file "${1##*:}"
}

check_get_option() { # GUEST:HOST
    [[ $1 == *:?* ]] || refuse "--get: '$1' is not GUEST:HOST"
    check_guest_path --get "${1%%:*}"
    check_folder_of --get "${1#*:}"
}

require_lab() {
    local version
    { [ -e "$lab_dir/qemu" ] && [ -e "$lab_dir/busybox" ]; } || die "there is no lab in $lab_dir (run: lab fetch)"
    for version in "$kernel" "$guest_kernel"; do
        [ -e "$lab_dir/kernel/$version" ] || die "there is no kernel $version in $lab_dir (run: lab fetch --kernel $version)"
    done
}

# The lab's root file system is several cpio archives one after the other, those made by fetch
# and this run's own. None is compressed: decompressing in emulation costs more than reading.
build_initramfs() {
    local root=$run_dir/root option i
    mkdir -p "$root"/{dev,etc,guest,lab/get,mnt,proc,root,run,sys,tmp,usr/bin,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo '127.0.0.1 localhost lab' >"$root/etc/hosts"
    ln -s /bin/busybox "$root/usr/bin/env" # Many a script's first line names it.
    install "$here/lab_init" "$root/init"
    settings >"$root/lab/settings"
    build_guest_initrd "$root/guest/initrd"
    : "${vmm:=$(newest_vmm)}"
    [ -z "$vmm" ] || add_file "$vmm" "$root" /bin/vmm
    for option in "${files[@]}"; do
        add_file "${option%:*}" "$root" "${option##*:}"
    done
    for i in "${!gets[@]}"; do
        ln -s "${gets[i]%%:*}" "$root/lab/get/$i"
    done

    make_cpio "$root" >"$run_dir/own.cpio"
    cat "$lab_dir/busybox/busybox.cpio" "$lab_dir/kernel/$kernel/lab_modules.cpio" \
        "$lab_dir/kernel/$guest_kernel/guest.cpio" "$run_dir/own.cpio" >"$run_dir/initramfs"
    rm -r "$root" "$run_dir/own.cpio"
}

build_guest_initrd() { # FILE
    local root=$run_dir/guest
    mkdir -p "$root"/{dev,proc,sys,tmp}
    install "$here/guest_init" "$root/init"
    make_cpio "$root" |
        cat "$lab_dir/busybox/busybox.cpio" "$lab_dir/kernel/$guest_kernel/guest_modules.cpio" - >"$1"
}

settings() {
    local argument quote=\'
    echo "cpus=$cpus hugepages_2m=$hugepages_2m hugepages_1g=$hugepages_1g gets=${#gets[@]} disks=${#disks[@]}"
    printf 'set --'
    for argument in "${command[@]}"; do
        printf " '%s'" "${argument//$quote/$quote\\$quote$quote}"
    done
    echo
}

newest_vmm() {
    local file
    while read -r file; do
        if is_elf "$file"; then
            echo "$file"
            return
        fi
    done < <(find "$repository/build" -path "$lab_dir" -prune -o -type f -name vmm -perm -u+x -printf '%T@ %p\n' 2>/dev/null |
        sort -rn | cut -d ' ' -f 2-)
}

is_elf() { [ "$(head -c 4 "$1" | tr -d '\0')" = $'\x7fELF' ]; }

add_file() { # FILE ROOT PATH: and, for a dynamically linked ELF file, its libraries
    local library
    mkdir -p "$(dirname "$2$3")"
    cp --remove-destination -L --preserve=mode -- "$1" "$2$3"
    is_elf "$1" || return 0
    # Prints "name => /path (address)" and "/path/of/the/loader (address)"; fails if there are none.
    ldd "$1" >"$run_dir/ldd" 2>/dev/null || return 0
    ! grep -q 'not found' "$run_dir/ldd" || die "$1 lacks a library on this machine: $(grep -m 1 'not found' "$run_dir/ldd")"
    sed -nE 's|^[^/]*(/.+) \(0x[0-9a-f]+\)$|\1|p' "$run_dir/ldd" | while read -r library; do
        [ -e "$2$library" ] || install -D "$library" "$2$library"
    done
}

# Deals memory and processors to the nodes, in order, as evenly as whole memory blocks and processors allow.
# Sets numa_options, and sockets: with nodes each processor has its own, for no socket may be in two nodes. Processor 0,
# which COMMAND does not get, is one more in the first node.
deal_to_nodes() {
    local node other first_cpu next_cpu=0 first_mib next_mib=0
    numa_options=() sockets=1
    ((numa > 0)) || return 0
    sockets=$((cpus + 1))
    for ((node = 0; node < numa; node++)); do
        first_cpu=$next_cpu next_cpu=$(((node + 1) * cpus / numa + 1))
        first_mib=$next_mib next_mib=$(((node + 1) * memory_mib / numa / memory_block_mib * memory_block_mib))
        # What is less than a block goes to the last.
        ((node < numa - 1)) || next_mib=$memory_mib
        numa_options+=(
            -object "memory-backend-ram,id=memory$node,size=$((next_mib - first_mib))M"
            -numa "node,nodeid=$node,memdev=memory$node,cpus=$first_cpu-$((next_cpu - 1))"
        )
    done
    for ((node = 0; node < numa; node++)); do
        for ((other = node + 1; other < numa; other++)); do
            numa_options+=(-numa "dist,src=$node,dst=$other,val=20")
        done
    done
}

# QEMU's FXRSTOR and XRSTOR, on whichever processor, change a word of processor 0 (env->hflags2, for IGNNE#) without any
# lock. Where processor 0 enters or leaves a guest meanwhile, that word says the wrong thing afterwards, and is where
# nested paging and the global interrupt flag are kept: the guest is given the host's state, or no interrupt ends it any
# more. So processor 0 never runs a guest (QEMU 10 and 11: target/i386/tcg/system/fpu_helper.c, cpu_clear_ignne()).
boot() {
    # Emulation's TSC is the host's clock: it is good, even when a busy host makes it look bad.
    # A boot takes 4 s with two processors.
    boot_limit=${VMM_LAB_BOOT_LIMIT:-$((60 + 15 * cpus))}
    local port disk failed_boots=0 stall=$((21 * $(busyness)))
    # The kernel's check of the timer wants ten interrupts within so many turns of a loop, and panics on a busy host.
    local kernel_options=(console=ttyS0 panic=-1 quiet oops=panic mitigations=off tsc=reliable no_timer_check)
    # Where emulation loses an interrupt a processor is stuck for good: the kernel sees that, and ends after the second time
    # it has (a minute and a half), not when all the time is up.
    kernel_options+=(sysctl.kernel.panic_on_rcu_stall=1 sysctl.kernel.max_rcu_stall_to_panic=2
        "rcupdate.rcu_cpu_stall_timeout=$((stall < 300 ? stall : 300))")
    ((hugepages_1g == 0)) || kernel_options+=(hugepagesz=1G "hugepages=$hugepages_1g")
    deal_to_nodes
    find_qemu "$lab_dir/qemu"
    # The ELF kernel (entered through PVH) need not decompress itself, which emulation is slow at.
    qemu+=(
        -nodefaults -no-reboot -display none
        -accel "tcg,thread=$(cat "$lab_dir/qemu/thread")" -cpu "EPYC,+svm,+npt" -M q35
        -smp "$((cpus + 1)),sockets=$sockets" -m "${memory_mib}M" "${numa_options[@]}"
        -kernel "$lab_dir/kernel/$kernel/vmlinux" -initrd initramfs -append "${kernel_options[*]}"
        -serial file:console
        # Without ioeventfd, what the lab has written is in the file before it can power off.
        -device "virtio-serial-pci,ioeventfd=off"
    )
    # The ports' numbers are known to lab_init.
    for port in 1 2 3 4; do
        qemu+=(-chardev "file,id=port$port,path=port$port" -device "virtserialport,nr=$port,chardev=port$port,name=lab$port")
    done
    for disk in "${!disks[@]}"; do
        # A comma within a value is written twice.
        qemu+=(-drive "if=none,id=disk$disk,format=raw,cache=writeback,file=${disks[disk]//,/,,}"
            -device "virtio-blk-pci,drive=disk$disk")
    done
    until start_machine; do
        ((++failed_boots < most_boots)) || break
        show_tail console "the last the lab's kernel said"
        say "it did not boot within $boot_limit s: once more"
    done
}

# By how much longer everything takes because of what else this machine does now: at least 1.
busyness() {
    local load
    read -r load _ </proc/loadavg
    echo $((1 + ${load%.*} / $(nproc)))
}

# Starts QEMU and waits for its end, or until time is up. Fails if its kernel has not come to the command within
# boot_limit (on a busy machine as much longer): in emulation a processor loses a timer interrupt at times, and waits for ever.
start_machine() {
    local port machine timer boot_timer ended
    for port in 1 2 3 4; do
        : >"$run_dir/port$port"
    done
    # If lab is killed outright, nothing of it lives on; the copying ends with the machine.
    (cd "$run_dir" && exec setpriv --pdeathsig KILL "${qemu[@]}" </dev/null >qemu 2>&1) &
    machine=$!
    processes+=("$machine")
    tail -s 0.1 -f -n +1 --pid="$machine" "$run_dir/port1" &
    processes+=($!)
    tail -s 0.1 -f -n +1 --pid="$machine" "$run_dir/port2" >&2 &
    processes+=($!)
    setpriv --pdeathsig KILL sleep "$time_limit" &
    timer=$!
    processes+=("$timer")
    timed_out='' hung=''
    local waited=0
    while :; do
        setpriv --pdeathsig KILL sleep "$boot_limit" &
        boot_timer=$!
        processes+=("$boot_timer")
        wait -n -p ended "$machine" "$timer" "$boot_timer" || true
        [ "$ended" = "$boot_timer" ] || break
        if [ -s "$run_dir/port4" ]; then
            wait -n -p ended "$machine" "$timer" || true
            break
        fi
        waited=$((waited + boot_limit))
        # Who says how long it may take is taken at their word.
        if [ -n "${VMM_LAB_BOOT_LIMIT-}" ] || ((waited >= boot_limit * $(busyness))); then
            break
        fi
    done
    [ "$ended" != "$boot_timer" ] || ! kill -0 "$machine" 2>/dev/null || hung=yes
    [ "$ended" != "$timer" ] || timed_out=yes
    kill -KILL "$machine" "$timer" "$boot_timer" 2>/dev/null || true
    wait_quietly
    processes=()
    [ -z "$hung" ]
}

# Ends lab with the command's exit status, or says why there is none.
report() {
    local outcome
    [ -z "$console_copy" ] || cp "$run_dir/console" "$console_copy"
    outcome=$(tail -n 1 "$run_dir/port4")
    case $outcome in
        'exit '*)
            fetch_files "${outcome#exit }"
            exit "${outcome#exit }"
            ;;
        'failed '*) die "the lab machine: ${outcome#failed }" ;;
    esac
    show_tail console "the last the lab's kernel said"
    if [ -n "$timed_out" ]; then
        say "time was up after $time_limit s (--timeout)"
        exit "$exit_timeout"
    fi
    [ -z "$hung" ] || die "the lab's kernel did not boot in $most_boots times $boot_limit s (more time: VMM_LAB_BOOT_LIMIT)"
    # QEMU names what its EPYC lacks every time.
    sed -i "/TCG doesn't support requested feature/d" "$run_dir/qemu"
    show_tail qemu "the last QEMU said"
    die "the lab machine ended before the command did"
}

show_tail() { # FILE TITLE
    [ -s "$run_dir/$1" ] || return 0
    say "$2:"
    tail -n 80 "$run_dir/$1" | tr -d '\r' | sed 's/^/  | /' >&2
}

fetch_files() { # STATUS
    local i missing=
    mkdir "$run_dir/got"
    [ ! -s "$run_dir/port3" ] || tar -C "$run_dir/got" -xf "$run_dir/port3" --no-same-owner
    for i in "${!gets[@]}"; do
        if [ -f "$run_dir/got/$i" ]; then
            cp -- "$run_dir/got/$i" "${gets[i]#*:}" || missing=yes
        else
            say "--get: the lab has no file ${gets[i]%%:*}"
            missing=yes
        fi
    done
    # A command that failed says more than the file that it did not write.
    [ -z "$missing" ] || [ "$1" != 0 ] || exit "$exit_lab_failed"
}
