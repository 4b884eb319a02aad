# shellcheck shell=bash
# The lab's Intel machine: Bochs emulates it, with VMX and extended page tables (EPT). lab sources this file, and sets lab_dir.
# run.sh calls the functions, and the variables are those of run.sh. npt.sh is the same for the AMD machine.
# shellcheck disable=SC2034,SC2154

readonly lab_option=' --ept' default_memory=1G
readonly vendor_module=kvm_intel paging=ept modules_archive=ept_modules.cpio emulator=bochs
readonly most_processors=4 most_memory_mib=2048
# With less memory the kernel switches transparent huge pages off.
readonly least_memory_mib=512

check_machine_options() {
    ((numa == 0)) || refuse "--numa: Bochs has no NUMA nodes (lab run --numa has)"
    ((${#disks[@]} == 0)) || refuse "--disk: the EPT lab has no disk (lab run --disk has)"
    ((hugepages_1g == 0)) || refuse "--hugepages-1g: the EPT lab finds no free gigabyte (lab run --hugepages-1g does)"
    ((${cpus:-1} <= most_processors)) || refuse "--cpus: the EPT lab has at most $most_processors, not $cpus"
    ((memory_mib <= most_memory_mib)) || refuse "--memory: the EPT lab has at most ${most_memory_mib}M, not $memory"
    ((memory_mib >= least_memory_mib)) || refuse "--memory: the EPT lab needs ${least_memory_mib}M, not $memory"
    # One processor is as fast as several: Bochs emulates all processors in one thread.
    : "${cpus:=1}"
    [ -z "$eptad" ] || parameters+=("eptad=$eptad")
}

prepare_machine() {
    local port
    # A boot takes half a minute, and twice that with more than one processor.
    usual_boot_limit=$((180 + 120 * (cpus - 1)))
    # After an ordinary reboot Bochs would start the machine again, but a triple fault ends Bochs.
    kernel_options+=(reboot=t nowatchdog init_on_alloc=0 audit=0 random.trust_cpu=on)
    # Half of the boot time would be spent on tests of ciphers, and on gathering jitter, which this machine does not have.
    kernel_options+=(cryptomgr.notests=1 initcall_blacklist=jent_mod_init)
    # Without idle=halt, a waiting processor sleeps in MWAIT, and Bochs does not wake it as it wakes a halted one.
    ((cpus == 1)) || kernel_options+=(idle=halt)
    make_boot_image
    # In its turn a halted processor counts `quantum` instructions, and a running one counts those that it runs in one go, about
    # five. With quantum=5 both have the same time.
    cat >"$run_dir/bochsrc" <<SETTINGS
display_library: nogui
cpu: model=corei7_haswell_4770, count=$cpus, quantum=5, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=$memory_mib, host=$memory_mib
romimage: file="$lab_dir/bochs/root/usr/share/bochs/BIOS-bochs-latest", options=fastboot
vgaromimage: file="$lab_dir/bochs/root/usr/share/vgabios/vgabios.bin"
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path="boot.iso", status=inserted
boot: cdrom
clock: sync=none
log: log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
com1: enabled=1, mode=file, dev=console
SETTINGS
    # init_ept.sh knows the numbers of the ports.
    for port in 1 2 4; do
        echo "com$((port == 4 ? 4 : port + 1)): enabled=1, mode=file, dev=port$port"
    done >>"$run_dir/bochsrc"
    machine_command=("$lab_dir/bochs/bochs" -q -f bochsrc)
}

# Makes boot.iso, from which the machine starts: a boot loader, the kernel, and initramfs.
make_boot_image() {
    local root=$run_dir/iso share=$lab_dir/bochs/root/usr/lib
    mkdir "$root"
    cp "$share/ISOLINUX/isolinux.bin" "$share/syslinux/modules/bios/ldlinux.c32" "$root/"
    ln "$run_dir/initramfs" "$root/initramfs"
    cp "$lab_dir/kernel/$kernel/vmlinuz" "$root/vmlinuz"
    printf 'DEFAULT lab\nPROMPT 0\nLABEL lab\nKERNEL vmlinuz\nINITRD initramfs\nAPPEND %s\n' "${kernel_options[*]}" \
        >"$root/isolinux.cfg"
    own_loader "$lab_dir/bochs/root"
    "${own_loader[@]}" "$lab_dir/bochs/root/usr/bin/xorriso" -as mkisofs -quiet -o "$run_dir/boot.iso" -b isolinux.bin -c boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$root" >"$run_dir/xorriso" 2>&1 || {
        show_tail xorriso "the last xorriso said"
        die "cannot make the boot image (is the disk full?)"
    }
    rm -r "$root" "$run_dir/initramfs"
}

show_machine_log() {
    # Linux reads these registers with each tick of its timer.
    sed -i '/RDMSR: Unknown register 0xe[78]$/d' "$run_dir/log"
    show_tail log "the last Bochs logged"
    show_tail emulator "the last Bochs said"
}

# Writes the files named by --get to standard output, as a tar.
files_of_machine() { sed -n 's/^files //p' "$run_dir/port4" | base64 -d | gzip -dc; }

# Bochs logs each EPT violation, with its tick (the number of the instruction, and the machine's time stamp counter), the
# processor and the guest address. lab_init tells at which ticks vmm's vCPU threads began and ended. The two together say
# which violations came before vmm handed over to a guest, and which while the guest ran.
report_violations() {
    : >"$run_dir/counts"
    {
        sed -nE 's/^([0-9]+)[a-z]\[CPU([0-9]+) *\].*VMEXIT: EPT violation for guest paddr 0x([0-9a-f]+).*/\1 \2 \3/p' "$run_dir/log"
        sed -nE 's/^vcpu ([0-9]+) (begins|ends)$/\1 \2/p' "$run_dir/port4"
    } | sort -s -n -k 1,1 | awk -v hole=0000c0000000 -v high=000100000000 -v counts="$run_dir/counts" '
        { sub(/^0+/, "", $1) }
        $2 == "begins" { if (running++ == 0) runs++; next }
        $2 == "ends" { running--; next }
        {
            address = substr("000000000000" $3, length($3) + 1)
            stage = address >= hole && address < high ? "device" : running ? "guest" : "prefault"
            run = running ? runs : runs + 1
            print $1, $2, "0x" address, run, stage
            count[run, stage]++
            if (stage != "device" && run > last) last = run
        }
        END {
            for (run = 1; run <= runs || run <= last; run++)
                printf "run %d: %d before the hand-over, %d in the guest\n", run, count[run, "prefault"], count[run, "guest"] >counts
        }' >"$run_dir/violations"
    [ -z "$violations" ] || cp "$run_dir/violations" "$violations"
    sed 's/^/lab: EPT violations on guest RAM, /' "$run_dir/counts" >&2
}
