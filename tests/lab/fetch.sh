# shellcheck shell=bash
# lab fetch: unpacks what the lab needs from the distribution's packages. lab sources this file. lab
# sets here, repository, lab_dir and the defaults.
# shellcheck disable=SC2154
#
# What it leaves in $lab_dir; each entry is complete or absent:
#   kernel/6.12.117/  vmlinuz and vmlinux, and parts of initramfs: npt_modules.cpio and ept_modules.cpio (/lab/modules
#                     of the AMD and of the Intel machine), guest_modules.cpio (/modules) and guest.cpio (both kernel
#                     files, in /guest)
#   kernel/6.12       a link to the newest of that series when it was fetched
#   busybox/          busybox.cpio (/bin), a part of initramfs, too
#   qemu/             root/ (QEMU and every library it needs), thread (the value of -accel tcg,thread= that works)
#   bochs/            bochs, and root/ (its firmware, and the tools that make its boot disk); fetch_bochs.sh makes it

readonly npt_modules=(kvm_amd tun bridge virtio_pci virtio_console virtio_blk crc32c_generic ext4)
readonly ept_modules=(kvm_intel tun)
readonly guest_modules=(virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng virtio_console virtio_balloon virtio_mem
    vmw_vsock_virtio_transport crc32c_generic ext4)
# Older versions have a race in multi-threaded emulation while the kernel patches its text. It crashes the kernel.
readonly least_qemu_for_threads=9

lab_fetch() {
    local kernels=("$default_kernel" 6.1) optional=6.1 kernel
    while [ $# -gt 0 ]; do
        case $1 in
            --kernel) [ $# -ge 2 ] || refuse "--kernel: which?"; set -- "--kernel=$2" "${@:3}" ;;
            --kernel=*) kernels=("${1#*=}") optional=; check_kernel_version --kernel "${kernels[0]}"; shift ;;
            *) refuse "lab fetch: unknown option '$1'" ;;
        esac
    done

    fetched "${kernels[@]}" && return
    require_tools apt-get apt-cache cpio dpkg-deb flock objcopy xz
    [ "$(dpkg --print-architecture)" = amd64 ] || die "the lab needs packages for amd64, and this machine's are not"

    mkdir -p "$lab_dir" || die "cannot create $lab_dir (set VMM_LAB_DIR)"
    exec 9>"$lab_dir/lock"
    flock -n 9 || { say "waiting for another fetch"; flock 9; }
    fetched "${kernels[@]}" && return
    # We hold the lock, so the remains of an interrupted fetch can be removed.
    fetching=$lab_dir/fetching
    rm -rf "$fetching"
    trap 'rm -rf "$fetching"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    prepare_apt
    mkdir -p "$lab_dir/kernel"
    for kernel in "${kernels[@]}"; do
        fetch_kernel "$kernel" "$optional"
    done
    fetch_busybox
    "fetch_$emulator"
    say "everything is in $lab_dir"
}

fetched() { # KERNEL...
    local kernel
    for kernel in "$@"; do
        [ -e "$lab_dir/kernel/$kernel/$modules_archive" ] || return 1
    done
    [ -e "$lab_dir/busybox" ] && [ -e "$lab_dir/$emulator" ]
}

# All files that apt reads and writes here are private. So the machine's lists, caches and database
# stay as they are, apt needs no root, and the installed packages change nothing. apt uses the
# machine's sources, proxies and keys.
prepare_apt() {
    local list parts apt=$fetching/apt
    mkdir -p "$apt"/{lists,archives}/partial "$apt/sources"
    : >"$apt/status"
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    find "$parts" -maxdepth 1 \( -name '*.list' -o -name '*.sources' \) -exec cp {} "$apt/sources/" \;
    [ ! -e "$list" ] || cp "$list" "$apt/sources/"
    # apt's own download user cannot write in the build tree. The hooks would act on the machine's
    # caches: container images empty their caches with them.
    cat >"$apt/apt.conf" <<CONFIG
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Log "$apt";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONFIG
    say "reading the package lists"
    apt_get update || die "cannot read the package lists: $(apt_error) (is the network there?)"
}

apt_get() { apt-get -qq -c "$fetching/apt/apt.conf" "$@" >"$fetching/apt.log" 2>&1; }

apt_error() { grep -m 1 '^E:' "$fetching/apt.log" || tail -n 1 "$fetching/apt.log"; }

apt_cache() { apt-cache -c "$fetching/apt/apt.conf" "$@"; }

candidate() { # PACKAGE [APT-OPTION]...
    apt_cache "${@:2}" policy "$1" | sed -n 's/^  Candidate: //p'
}

unpack() { # DIRECTORY PACKAGE: downloads one package
    mkdir -p "$fetching/package"
    (cd "$fetching/package" && apt_get download "$2") || die "cannot download $2: $(apt_error)"
    dpkg-deb -x "$fetching/package/"*.deb "$1" || die "cannot unpack $2 in $1 (is the disk full?)"
    rm -r "$fetching/package"
}

fetch_busybox() {
    local busybox applet bin=$fetching/busybox-bin/bin
    [ ! -e "$lab_dir/busybox" ] || return 0
    say "fetching busybox-static $(candidate busybox-static)"
    unpack "$fetching/busybox-root" busybox-static
    busybox=$(find "$fetching/busybox-root" -type f -name busybox -perm -u+x -print -quit)
    [ -n "$busybox" ] || die "the package busybox-static has no busybox in it"
    mkdir -p "$bin" "$fetching/busybox"
    cp "$busybox" "$bin/"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$bin/$applet"
    done
    make_cpio "$fetching/busybox-bin" >"$fetching/busybox/busybox.cpio"
    mv "$fetching/busybox" "$lab_dir/busybox"
}

fetch_kernel() { # VERSION OPTIONAL-VERSION
    local package version directory
    [ ! -e "$lab_dir/kernel/$1/$modules_archive" ] || return 0
    read -r version package < <(newest_kernel_package "$1") || {
        [ "$1" != "$2" ] || { say "this distribution has no kernel $1: left out"; return; }
        die "no configured package source has a cloud kernel $1 (it takes Debian's linux-image-*-cloud-amd64)"
    }
    directory=$lab_dir/kernel/${version%%-*}
    if [ ! -e "$directory/$modules_archive" ]; then
        say "fetching $package $version"
        unpack "$fetching/kernel-root" "$package"
        if [ -e "$directory" ]; then
            # The kernel was fetched by an older version of the lab, which did not need these modules.
            "make_${paging}_modules" "$fetching/$modules_archive"
            mv "$fetching/$modules_archive" "$directory/"
        else
            make_kernel "$directory"
        fi
        rm -rf "$fetching/kernel-root" "$fetching/parts"
    fi
    if [ "$1" != "${version%%-*}" ]; then
        ln -s "${version%%-*}" "$fetching/link"
        mv -T "$fetching/link" "$lab_dir/kernel/$1"
    fi
}

# Makes the folder of the kernel whose package is unpacked in kernel-root.
make_kernel() { # DIRECTORY
    local new=$fetching/kernel
    mkdir -p "$new" "$fetching/parts"/{guest/guest,guest_modules/modules}
    cp "$fetching"/kernel-root/boot/vmlinuz-* "$new/vmlinuz"
    extract_vmlinux "$new/vmlinuz" "$new/vmlinux"
    cp "$new"/vmlinu[xz] "$fetching/parts/guest/guest/"
    extract_modules "$fetching/kernel-root" "$fetching/parts/guest_modules/modules" "${guest_modules[@]}"
    make_cpio "$fetching/parts/guest" >"$new/guest.cpio"
    make_cpio "$fetching/parts/guest_modules" >"$new/guest_modules.cpio"
    make_npt_modules "$new/npt_modules.cpio"
    make_ept_modules "$new/ept_modules.cpio"
    mv -T "$new" "$1"
}

make_npt_modules() { # FILE
    local modules=$fetching/parts/npt/lab/modules
    mkdir -p "$modules"
    extract_modules "$fetching/kernel-root" "$modules" "${npt_modules[@]}"
    [ -e "$modules/kvm_amd.ko" ] || die "the kernel's package has no module kvm_amd"
    make_cpio "$fetching/parts/npt" >"$1"
}

# The modules lose their type information (BTF): reading it takes a quarter of the time for loading kvm on the Intel machine.
make_ept_modules() { # FILE
    local modules=$fetching/parts/ept/lab/modules module
    mkdir -p "$modules"
    extract_modules "$fetching/kernel-root" "$modules" "${ept_modules[@]}"
    [ -e "$modules/kvm_intel.ko" ] || die "the kernel's package has no module kvm_intel"
    for module in "$modules"/*.ko; do
        objcopy --remove-section=.BTF --remove-section=.BTF.base "$module" || die "cannot take the type information out of $module"
    done
    make_cpio "$fetching/parts/ept" >"$1"
}

newest_kernel_package() { # VERSION: prints "VERSION PACKAGE"; fails if there is none
    local names
    names=$(apt_cache pkgnames linux-image- | grep -E '^linux-image-[0-9].*cloud-amd64$') || return
    # Packages that depend on another linux-image are metapackages.
    # shellcheck disable=SC2086
    apt_cache show --no-all-versions $names | awk -v wanted="$1" '
        function flush() {
            if (!meta && (version == wanted || index(version, wanted ".") == 1 || index(version, wanted "-") == 1))
                print version, package
            meta = 0
        }
        /^Package: / { package = $2 }
        /^Version: / { version = $2 }
        /^Depends: .*linux-image-/ { meta = 1 }
        /^$/ { flush() }
        END { flush() }' | sort -V | tail -n 1 | grep .
}

little_endian() { # FILE OFFSET SIZE
    od -An -v -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '
}

slice() { # FILE OFFSET SIZE
    dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$2" count="$3" status=none
}

# Finds the compressed ELF file in a bzImage by its setup header (Linux: Documentation/arch/x86/boot.rst).
extract_vmlinux() { # BZIMAGE ELF
    local setup_sectors offset length magic size decompress=()
    [ "$(slice "$1" 514 4)" = HdrS ] || die "$1 is no bzImage"
    setup_sectors=$(little_endian "$1" 497 1)
    [ "$setup_sectors" -ne 0 ] || setup_sectors=4
    offset=$(((setup_sectors + 1) * 512 + $(little_endian "$1" 584 4)))
    length=$(little_endian "$1" 588 4)
    magic=$(od -An -v -t x1 -j "$offset" -N 6 "$1" | tr -d ' ')
    case $magic in
        1f8b*) decompress=(gzip -dc) ;;
        fd377a585a00) decompress=(xz -dc) ;;
        28b52ffd*) decompress=(zstd -dc) ;;
        02214c18*) decompress=(lz4 -dc) ;;
        425a68*) decompress=(bzip2 -dc) ;;
        5d0000*) decompress=(xz --format=lzma -dc) ;;
        894c5a4f*) decompress=(lzop -dc) ;;
        *) die "cannot tell how the kernel in $1 is compressed: it begins with $magic" ;;
    esac
    require_tools "${decompress[0]}"
    # The last four bytes are the size of the contents. With gzip they also belong to its own trailer.
    size=$(little_endian "$1" $((offset + length - 4)) 4)
    [ "${decompress[0]}" = gzip ] || length=$((length - 4))
    slice "$1" "$offset" "$length" | "${decompress[@]}" >"$2" || die "cannot decompress the kernel in $1"
    [ "$(stat -c %s "$2")" = "$size" ] || die "the kernel in $1 decompresses to another size than its header says"
}

# Copies the modules, and those they need, as NAME.ko. Writes the list of modules to load for each,
# in order, as NAME.order. A module that this kernel has built in has neither.
extract_modules() { # PACKAGE-ROOT DIRECTORY MODULE...
    local -A files=()
    local file name
    while read -r file; do
        name=${file##*/}
        name=${name%%.ko*}
        files[${name//-/_}]=$file
    done < <(find "$1" -name '*.ko' -o -name '*.ko.xz' -o -name '*.ko.zst')
    for name in "${@:3}"; do
        [ -n "${files[$name]-}" ] || continue
        module_order "$name" "$2" | awk '!seen[$0]++' >"$2/$name.order"
    done
}

# Uses the files of extract_modules.
module_order() { # NAME DIRECTORY
    local need needs
    [ -n "${files[$1]-}" ] || return 0
    if [ ! -e "$2/$1.ko" ]; then
        case ${files[$1]} in
            *.xz) xz -dc "${files[$1]}" ;;
            *.zst) require_tools zstd && zstd -dc "${files[$1]}" ;;
            *) cat "${files[$1]}" ;;
        esac >"$2/$1.ko" || die "cannot decompress ${files[$1]}"
    fi
    needs=$(tr '\0' '\n' <"$2/$1.ko" | sed -n 's/^depends=//p' | tr ',-' '\n_')
    for need in $needs; do
        module_order "$need" "$2"
    done
    echo "$1"
}

fetch_qemu() {
    local version thread=multi suite from=()
    [ ! -e "$lab_dir/qemu" ] || return 0
    version=$(candidate qemu-system-x86)
    [[ $version == *[0-9]* ]] || die "no configured package source has qemu-system-x86"
    if ! new_enough "$version"; then
        if suite=$(add_backports); then
            from=(-o "APT::Default-Release=$suite")
            version=$(candidate qemu-system-x86 "${from[@]}")
        else
            thread=single
            say "no newer QEMU in backports: $version has to run all processors in one thread, slowly"
        fi
    fi

    say "fetching qemu-system-x86 $version and the libraries it needs"
    unpack_with_libraries "$fetching/qemu/root" "${from[@]}" qemu-system-x86
    echo "$thread" >"$fetching/qemu/thread"
    find_qemu "$fetching/qemu"
    "${qemu[@]}" --version >"$fetching/qemu/version" || die "the QEMU of $version does not start here"
    mv "$fetching/qemu" "$lab_dir/qemu"
}

new_enough() { # VERSION
    local upstream=${1#*:}
    [[ ${upstream%%.*} =~ ^[0-9]+$ ]] && ((${upstream%%.*} >= least_qemu_for_threads))
}

# Downloads packages and all their dependencies, even if they are installed on this machine.
unpack_with_libraries() { # DIRECTORY APT-OPTION... PACKAGE...
    local package
    rm -f "$fetching"/apt/archives/*.deb
    apt_get install --no-install-recommends --download-only -y "${@:2}" || die "cannot download ${*:2}: $(apt_error)"
    mkdir -p "$1"
    for package in "$fetching"/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$1" || die "cannot unpack $package (is the disk full?)"
    done
}

# Adds the backports of this distribution to the private sources, and prints their suite.
add_backports() {
    local main
    main=$(main_suite) || return 1
    main=${main%% *}
    add_suite "$main-backports" deb || return 1
    if new_enough "$(candidate qemu-system-x86 -o "APT::Default-Release=$main-backports")"; then
        echo "$main-backports"
    else
        remove_suite "$main-backports"
        return 1
    fi
}

# Prints the suite of this distribution's main archive, and the entry of the private sources that configures it.
main_suite() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    # The dollar signs are for apt.
    # shellcheck disable=SC2016
    apt-get -c "$fetching/apt/apt.conf" indextargets --format '$(RELEASE) $(SOURCESENTRY)' \
        'Created-By: Packages' "Codename: $codename" 'Component: main' | grep -m 1 .
}

# Adds another suite to the private sources. Its entry is a copy of the entry of this distribution's main suite.
add_suite() { # SUITE deb|deb-src
    local release entry source
    read -r release entry < <(main_suite) || return 1
    # SOURCESENTRY is FILE:N, the Nth line of a .list or the Nth stanza of a .sources file.
    source=${entry%:*}
    case $source in
        *.list)
            sed -n "${entry##*:}{s|^ *deb |$2 |;s| $release | $1 |;p}" "$source" >"$fetching/apt/sources/lab-$1.list"
            ;;
        *.sources)
            grep -v '^#' "$source" | awk -v RS= -v wanted="${entry##*:}" 'NR == wanted' |
                sed "s/^Suites:.*/Suites: $1/; s/^Types:.*/Types: $2/" >"$fetching/apt/sources/lab-$1.sources"
            ;;
    esac
    apt_get update || { remove_suite "$1"; return 1; }
}

remove_suite() { rm -f "$fetching/apt/sources/lab-$1".*; } # SUITE

# Sets the array own_loader to the command that runs a program unpacked in this directory. The program uses the libraries of
# the same directory, because it is made only for those.
own_loader() { # DIRECTORY
    local libraries=lib/x86_64-linux-gnu
    own_loader=(
        "$(find "$1" -type f -name 'ld-linux-x86-64.so.2' -print -quit)"
        --library-path "$1/$libraries:$1/usr/$libraries"
    )
}

# Sets the array qemu to the command of an unpacked QEMU.
find_qemu() { # DIRECTORY
    own_loader "$1/root"
    qemu=(
        env "QEMU_MODULE_DIR=$1/root/usr/lib/x86_64-linux-gnu/qemu" "${own_loader[@]}"
        "$1/root/usr/bin/qemu-system-x86_64"
        -L "$1/root/usr/share/qemu" -L "$1/root/usr/share/seabios"
    )
}
