# shellcheck shell=bash
# The lab's AMD machine: QEMU emulates it, with nested paging (NPT). Sourced by lab, which sets lab_dir; the variables are
# those of run.sh, which calls the functions. ept.sh is the same for the Intel machine.
# shellcheck disable=SC2034,SC2154

readonly lab_option='' default_memory=2G
readonly vendor_module=kvm_amd paging=npt modules_archive=npt_modules.cpio emulator=qemu
# A memory block of Linux on x86-64: no NUMA node of the lab begins or ends within one.
readonly memory_block_mib=128

check_machine_options() {
    [ -z "$eptad" ] || refuse "--eptad: an AMD machine has no EPT (lab --ept run has)"
    [ -z "$violations" ] || refuse "--violations: this emulator does not log what the second level lacks (lab --ept run does)"
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
prepare_machine() {
    local port disk stall=$((21 * $(busyness)))
    # Where emulation loses an interrupt a processor is stuck for good: the kernel sees that, and ends after the second time
    # it has (a minute and a half), not when all the time is up.
    kernel_options+=(sysctl.kernel.panic_on_rcu_stall=1 sysctl.kernel.max_rcu_stall_to_panic=2
        "rcupdate.rcu_cpu_stall_timeout=$((stall < 300 ? stall : 300))")
    # A boot takes 4 s with two processors.
    usual_boot_limit=$((60 + 15 * cpus))
    deal_to_nodes
    find_qemu "$lab_dir/qemu"
    # The ELF kernel (entered through PVH) need not decompress itself, which emulation is slow at.
    machine_command=(
        "${qemu[@]}"
        -nodefaults -no-reboot -display none
        -accel "tcg,thread=$(cat "$lab_dir/qemu/thread")" -cpu "EPYC,+svm,+npt,-hypervisor" -M q35
        -smp "$((cpus + 1)),sockets=$sockets" -m "${memory_mib}M" "${numa_options[@]}"
        -kernel "$lab_dir/kernel/$kernel/vmlinux" -initrd initramfs -append "${kernel_options[*]}"
        -serial file:console
        # Without ioeventfd, what the lab has written is in the file before it can power off.
        -device "virtio-serial-pci,ioeventfd=off"
    )
    # The ports' numbers are known to init_npt.sh.
    for port in 1 2 3 4; do
        machine_command+=(-chardev "file,id=port$port,path=port$port"
            -device "virtserialport,nr=$port,chardev=port$port,name=lab$port")
    done
    for disk in "${!disks[@]}"; do
        # A comma within a value is written twice.
        machine_command+=(-drive "if=none,id=disk$disk,format=raw,cache=writeback,file=${disks[disk]//,/,,}"
            -device "virtio-blk-pci,drive=disk$disk")
    done
}

show_machine_log() {
    # QEMU names what its EPYC lacks every time.
    sed -i "/TCG doesn't support requested feature/d" "$run_dir/emulator"
    show_tail emulator "the last QEMU said"
}

# The files that were asked for, as a tar on standard output.
files_of_machine() { cat "$run_dir/port3"; }

report_violations() { :; }
