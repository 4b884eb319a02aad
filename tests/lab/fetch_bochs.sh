# shellcheck shell=bash
# Fetches what the EPT lab needs beside the kernels: Bochs, built from the distribution's source package, its firmware, and the
# tools that make its boot disk. lab sources this file; it calls functions of fetch.sh.
# shellcheck disable=SC2154

# The version for which mend_bochs() is written, and the suite that has it.
readonly bochs_version=3.0 bochs_suite=trixie

readonly bochs_options=(--with-nogui --without-x --enable-vmx=2 --enable-smp --enable-x86-64 --enable-cpu-level=6 --enable-avx
    --enable-evex --enable-long-phy-address --enable-monitor-mwait --enable-memtype --enable-pci
    --enable-all-optimizations --disable-show-ips --disable-docbook)

fetch_bochs() {
    local source=$fetching/bochs-source
    [ ! -e "$lab_dir/bochs" ] || return 0
    require_tools g++ make tar
    say "fetching isolinux, xorriso and the firmware of Bochs"
    unpack_with_libraries "$fetching/bochs/root" isolinux syslinux-common xorriso bochsbios vgabios
    fetch_bochs_source "$source"
    mend_bochs "$source"
    say "building Bochs $bochs_version (three minutes of processor time)"
    (cd "$source" && ./configure CFLAGS=-O2 CXXFLAGS=-O2 "${bochs_options[@]}" && make -j "$(nproc)" bochs) \
        >"$fetching/build.log" 2>&1 || {
        tail -n 20 "$fetching/build.log" >&2
        die "cannot build Bochs $bochs_version"
    }
    cp "$source/bochs" "$fetching/bochs/bochs"
    # No grep -q: it would end before Bochs has written all its output, and so end Bochs.
    "$fetching/bochs/bochs" --help cpu 2>&1 | grep corei7_haswell_4770 >/dev/null || die "the Bochs that was built does not start here"
    mv "$fetching/bochs" "$lab_dir/bochs"
    rm -r "$source"
}

fetch_bochs_source() { # DIRECTORY
    local version
    version=$(bochs_source_version)
    if [ -z "$version" ]; then
        add_suite "$bochs_suite" deb-src || die "cannot read the package lists of $bochs_suite, which has Bochs $bochs_version: $(apt_error)"
        version=$(bochs_source_version)
        [ -n "$version" ] || die "no configured package source has the source of Bochs $bochs_version"
    fi
    say "fetching the source of bochs $version"
    mkdir -p "$fetching/tarball" "$1"
    (cd "$fetching/tarball" && apt_get source --download-only --tar-only "bochs=$version") ||
        die "cannot download the source of bochs $version: $(apt_error)"
    tar -C "$1" --strip-components=1 -xf "$fetching"/tarball/bochs_*.orig.tar.* || die "cannot unpack the source of bochs $version"
}

# Prints the version of the source package in a configured suite, or nothing.
bochs_source_version() {
    { apt_cache showsrc bochs 2>/dev/null || true; } | sed -n "s/^Version: \(${bochs_version}[^0-9.].*\)/\1/p" | sort -V | tail -n 1
}

# Mends the errors that keep KVM from running in Bochs:
# - At VM entry Bochs 3.0 decides whether the interrupt flag masks interrupts before it notes that a guest runs. So a guest that
#   runs with interrupts disabled is never interrupted, not even by the host's timer.
# - It wants the posted-interrupt descriptor to be aligned to a page. The rule is 64 bytes (Intel SDM, volume 3, checks on
#   VM-execution control fields).
# - Its loop over the processors keeps variables in registers, and a longjmp gives those registers old values.
mend_bochs() { # DIRECTORY
    replace_once "$1/cpu/vmx.cc" 's/^  BX_CPU_THIS_PTR in_vmx_guest = true;$/&\n  handleInterruptMaskChange();/'
    replace_once "$1/cpu/vmx.cc" \
        's/! IsValidPageAlignedPhyAddr(vm->pid_addr)/! IsValidPhyAddr(vm->pid_addr) || (vm->pid_addr \& 0x3f)/'
    replace_once "$1/main.cc" 's/^ *Bit32u executed = 0, processor = 0;/volatile &/'
    replace_once "$1/main.cc" 's/^ *bool run = true;/volatile &/'
}

# Applies the sed command to the file, and fails unless exactly one place changes.
replace_once() { # FILE COMMAND
    cp "$1" "$1.before"
    sed -i "$2" "$1"
    [ "$(diff "$1.before" "$1" | grep -c '^[0-9]')" -eq 1 ] ||
        die "the source of Bochs is not the one that the lab mends: $(basename "$1") lacks what is to be changed"
}
