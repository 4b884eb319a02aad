# shellcheck shell=bash
# lab run: boots the lab and runs one command in it. lab sources this file, and sets here, repository,
# lab_dir and the defaults.
# shellcheck disable=SC2034,SC2154

lab_run() {
    parse_run_options "$@"
    require_lab
    require_tools cpio ldd setpriv tar
    deal_parameters
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

# Hides bash's messages about killed processes.
wait_quietly() { { wait; } 2>/dev/null || true; }

parse_run_options() {
    local value
    check_count VMM_LAB_BOOT_LIMIT "${VMM_LAB_BOOT_LIMIT:-1}" 1 86400
    cpus='' memory=$default_memory time_limit=$default_timeout
    numa=0 hugepages_2m=0 hugepages_1g=0 eptad='' violations='' parameters=()
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
            --kvm=*) check_parameters "$value" ;;
            --eptad=*) check_count --eptad "$value" 0 1 && eptad=$value ;;
            --violations=*) violations=$value && check_folder_of --violations "$value" ;;
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
    check_machine_options
    : "${cpus:=$default_cpus}"
}

# Adds NAME=VALUE,... to the parameters. deal_parameters() checks later that the kernel has them.
check_parameters() { # LIST
    local parameter list
    IFS=, read -r -a list <<<"$1"
    [ ${#list[@]} -gt 0 ] || refuse "--kvm: '$1' is not NAME=VALUE,..."
    for parameter in "${list[@]}"; do
        [[ $parameter =~ ^[a-z][a-z0-9_]*=[A-Za-z0-9_-]+$ ]] || refuse "--kvm: '$parameter' is not NAME=VALUE"
        parameters+=("$parameter")
    done
}

# Finds which module has each parameter. Sets kvm_options and vendor_options, the parameters of the two modules. Sets wanted,
# the values that must be in /sys/module: otherwise the lab's init refuses to run.
deal_parameters() {
    local parameter name
    local -A value=([$paging]=Y [tdp_mmu]=Y) module=([$paging]=$vendor_module [tdp_mmu]=kvm)
    kvm_options='' vendor_options='' wanted=''
    for parameter in "${parameters[@]}"; do
        name=${parameter%%=*}
        if has_parameter kvm "$name"; then
            kvm_options+=" $parameter" module[$name]=kvm
        elif has_parameter "$vendor_module" "$name"; then
            vendor_options+=" $parameter" module[$name]=$vendor_module
        else
            refuse "--kvm: neither kvm nor $vendor_module of Linux $kernel has a parameter '$name'"
        fi
        value[$name]=${parameter#*=}
        # Without nested paging there is no TDP MMU.
        [[ $name != "$paging" || ${value[$name]} == [Yy1] ]] || unset 'value[tdp_mmu]'
    done
    for name in "${!value[@]}"; do
        # For other values, like "auto", the kernel shows the value that it has chosen instead.
        [[ ${value[$name]} == [YyNn01] ]] || continue
        wanted+=" ${module[$name]}/$name=${value[$name]}"
    done
}

has_parameter() { # MODULE NAME
    cpio --quiet -i --to-stdout "lab/modules/$1.ko" <"$lab_dir/kernel/$kernel/$modules_archive" | tr '\0' '\n' |
        grep -c "^parmtype=$2:" >/dev/null
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
    { [ -e "$lab_dir/$emulator" ] && [ -e "$lab_dir/busybox" ]; } || die "there is no lab in $lab_dir (run: lab$lab_option fetch)"
    for version in "$kernel" "$guest_kernel"; do
        [ -e "$lab_dir/kernel/$version/$modules_archive" ] ||
            die "there is no kernel $version in $lab_dir (run: lab$lab_option fetch --kernel $version)"
    done
}

# The lab's root file system is several cpio archives one after the other: those made by fetch
# and this run's own. None is compressed: decompressing in emulation costs more than reading.
build_initramfs() {
    local root=$run_dir/root option i
    mkdir -p "$root"/{dev,etc,guest,lab/get,mnt,proc,root,run,sys,tmp,usr/bin,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo '127.0.0.1 localhost lab' >"$root/etc/hosts"
    ln -s /bin/busybox "$root/usr/bin/env" # Many scripts name it in their first line.
    install "$here/lab_init" "$root/init"
    install -m 644 "$here/init_$paging.sh" "$root/lab/machine"
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
    cat "$lab_dir/busybox/busybox.cpio" "$lab_dir/kernel/$kernel/$modules_archive" \
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
    echo "kvm_options='$kvm_options' vendor_options='$vendor_options' wanted='$wanted'"
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

add_file() { # FILE ROOT PATH: adds the file and, for a dynamically linked ELF file, its libraries
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

boot() {
    local failed_boots=0
    # The emulated TSC is reliable, even if it looks unreliable on a busy host. The kernel's check of the timer wants ten
    # interrupts within a fixed number of turns of a loop; on a busy host it fails and the kernel panics.
    kernel_options=("console=ttyS0,115200" panic=-1 quiet oops=panic mitigations=off tsc=reliable no_timer_check)
    ((hugepages_1g == 0)) || kernel_options+=(hugepagesz=1G "hugepages=$hugepages_1g")
    prepare_machine
    boot_limit=${VMM_LAB_BOOT_LIMIT:-$usual_boot_limit}
    until start_machine; do
        ((++failed_boots < most_boots)) || break
        show_tail console "the last the lab's kernel said"
        say "it did not boot${hung:+ within $boot_limit s}: once more"
    done
}

# Prints the factor by which everything takes longer because of this machine's other load: at least 1.
busyness() {
    local load
    read -r load _ </proc/loadavg
    echo $((1 + ${load%.*} / $(nproc)))
}

# Starts the emulator and waits for its end, or until time is up. Fails if its kernel has not reached the command within
# boot_limit (times busyness() on a busy machine), or has ended before that. In emulation a processor at times loses a timer
# interrupt and waits for ever, or fails at an instruction that another processor is just changing.
start_machine() {
    local port machine timer boot_timer ended
    for port in 1 2 3 4; do
        : >"$run_dir/port$port"
    done
    # If lab is killed by SIGKILL, the emulator and the timers end, too. The copying ends with the machine.
    (cd "$run_dir" && exec setpriv --pdeathsig KILL "${machine_command[@]}" </dev/null >emulator 2>&1) &
    machine=$!
    processes+=("$machine")
    tail -s 0.1 -f -n +1 --pid="$machine" "$run_dir/port1" &
    processes+=($!)
    tail -s 0.1 -f -n +1 --pid="$machine" "$run_dir/port2" >&2 &
    processes+=($!)
    setpriv --pdeathsig KILL sleep "$time_limit" &
    timer=$!
    processes+=("$timer")
    timed_out='' hung='' died=''
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
        # A limit that the user has set is not extended.
        if [ -n "${VMM_LAB_BOOT_LIMIT-}" ] || ((waited >= boot_limit * $(busyness))); then
            break
        fi
    done
    [ "$ended" != "$boot_timer" ] || ! kill -0 "$machine" 2>/dev/null || hung=yes
    [ "$ended" != "$timer" ] || timed_out=yes
    [ "$ended" != "$machine" ] || [ -s "$run_dir/port4" ] || died=yes
    kill -KILL "$machine" "$timer" "$boot_timer" 2>/dev/null || true
    wait_quietly
    processes=()
    [ -z "$hung$died" ]
}

# Ends lab with the command's exit status, or says why there is none.
report() {
    local outcome
    # The emulator makes the console file only when there is output.
    [ -z "$console_copy" ] || cat "$run_dir/console" >"$console_copy" 2>/dev/null || true
    outcome=$(tail -n 1 "$run_dir/port4")
    case $outcome in
        'exit '*)
            report_violations
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
    show_machine_log
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
    [ ${#gets[@]} -eq 0 ] || files_of_machine | tar -C "$run_dir/got" -x --no-same-owner 2>"$run_dir/tar" || true
    for i in "${!gets[@]}"; do
        if [ -f "$run_dir/got/$i" ]; then
            cp -- "$run_dir/got/$i" "${gets[i]#*:}" || missing=yes
        else
            say "--get: the lab has no file ${gets[i]%%:*}"
            missing=yes
        fi
    done
    # If the command failed, its status matters more than a file that it did not write.
    [ -z "$missing" ] || [ "$1" != 0 ] || exit "$exit_lab_failed"
}
