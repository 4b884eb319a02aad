# shellcheck shell=bash
# The lab's AMD machine: QEMU emulates it, with nested paging (NPT). lab sources this file, and sets lab_dir. run.sh calls the
# functions, and the variables are those of run.sh. ept.sh is the same for the Intel machine.
# shellcheck disable=SC2034,SC2154

readonly lab_option='' default_memory=2G
readonly vendor_module=kvm_amd paging=npt modules_archive=npt_modules.cpio emulator=qemu
# The size of Linux's memory blocks on x86-64. No NUMA node of the lab begins or ends within a block.
readonly memory_block_mib=128

check_machine_options() {
    [ -z "$eptad" ] || refuse "--eptad: an AMD machine has no EPT (lab --ept run has)"
    [ -z "$violations" ] || refuse "--violations: this emulator does not log what the second level lacks (lab --ept run does)"
    check_numa
}

# Every node has processors and memory. So without --cpus there is at least one processor for each node.
check_numa() {
    [ -n "$cpus" ] || cpus=$((numa > default_cpus ? numa : default_cpus))
    ((cpus >= numa)) ||
        refuse "--numa: $numa nodes need $numa processors or more, there are $cpus (raise --cpus, or leave it out)"
    ((memory_mib >= numa * memory_block_mib)) ||
        refuse "--numa: $numa nodes need $((numa * memory_block_mib))M or more, --memory is $memory"
}

# Deals memory and processors to the nodes, in order, as evenly as whole memory blocks and processors allow.
# Sets numa_options and sockets. With nodes each processor has its own socket, because no socket may be in two nodes.
# Processor 0, which COMMAND does not get, is an additional processor in the first node.
deal_to_nodes() {
    local node other first_cpu next_cpu=0 first_mib next_mib=0
    numa_options=() sockets=1
    ((numa > 0)) || return 0
    sockets=$((cpus + 1))
    for ((node = 0; node < numa; node++)); do
        first_cpu=$next_cpu next_cpu=$(((node + 1) * cpus / numa + 1))
        first_mib=$next_mib next_mib=$(((node + 1) * memory_mib / numa / memory_block_mib * memory_block_mib))
        # The last node gets the rest that is smaller than a block.
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

# QEMU's FXRSTOR and XRSTOR, on any processor, change a word of processor 0 without a lock (env->hflags2, for IGNNE#). The
# same word holds the flags of nested paging and of the global interrupt flag. If processor 0 enters or leaves a guest
# meanwhile, the word is wrong afterwards: the guest gets the host's state, or no interrupt ends it any more. So processor 0
# never runs a guest (QEMU 10 and 11: target/i386/tcg/system/fpu_helper.c, cpu_clear_ignne()).
prepare_machine() {
    local port disk stall=$((21 * $(busyness)))
    # If emulation loses an interrupt, a processor is stuck for good. The kernel detects that, and ends after the second
    # detection (a minute and a half), not only when the time limit is reached.
    kernel_options+=(sysctl.kernel.panic_on_rcu_stall=1 sysctl.kernel.max_rcu_stall_to_panic=2
        "rcupdate.rcu_cpu_stall_timeout=$((stall < 300 ? stall : 300))")
    # A boot takes 4 s with two processors.
    usual_boot_limit=$((60 + 15 * cpus))
    deal_to_nodes
    find_qemu "$lab_dir/qemu"
    # The ELF kernel (entered through PVH) need not decompress itself: in emulation that is slow.
    machine_command=(
        "${qemu[@]}"
        -nodefaults -no-reboot -display none
        -accel "tcg,thread=$(cat "$lab_dir/qemu/thread")" -cpu "EPYC,+svm,+npt,-hypervisor" -M q35
        -smp "$((cpus + 1)),sockets=$sockets" -m "${memory_mib}M" "${numa_options[@]}"
        -kernel "$lab_dir/kernel/$kernel/vmlinux" -initrd initramfs -append "${kernel_options[*]}"
        -serial file:console
        # Without ioeventfd, the output of the lab is in the file before the lab can power off.
        -device "virtio-serial-pci,ioeventfd=off"
    )
    # init_npt.sh knows the numbers of the ports.
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
    # In every run QEMU prints the features that its EPYC model lacks.
    sed -i "/TCG doesn't support requested feature/d" "$run_dir/emulator"
    show_tail emulator "the last QEMU said"
}

# Writes the files named by --get to standard output, as a tar.
files_of_machine() { cat "$run_dir/port3"; }

report_violations() { :; }
