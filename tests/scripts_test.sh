#!/usr/bin/env bash
# Some scripts print a value that a caller reads from their standard output. They must print only that value, whatever the
# tools that they run print. For the test a folder of stand-ins that print noise comes first in PATH.
set -uo pipefail
export LC_ALL=C
umask 022
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
export PATH=$work/bin:$PATH
passed=0 failed=0

# stand_in NAME: makes a program that prints noise, and then runs the script on standard input (bash).
stand_in() {
    { echo '#!/usr/bin/env bash'; echo 'echo "Creating regular file"'; cat; } >"$work/bin/$1"
    chmod +x "$work/bin/$1"
}

# prints NAME VALUE COMMAND...: checks that the command succeeds, and that VALUE is all of its standard output.
prints() {
    local name=$1 value=$2 output
    output=$("${@:3}" 2>"$work/errors")
    local status=$?
    if ((status == 0)) && [[ $output == "$value" ]]; then
        echo "PASS $name"
        passed=$((passed + 1))
    else
        echo "FAIL $name: status $status; it printed '$output', not '$value'"
        sed 's/^/  | /' "$work/errors"
        failed=$((failed + 1))
    fi
}

if ((EUID == 0)); then
    # mmdebstrap ... SUITE FOLDER SOURCES...: the folder is the argument that ends in /root.
    stand_in mmdebstrap <<'END'
for word; do
    [[ $word != */root ]] || mkdir -p "$word"/{etc/systemd/system,usr/local/sbin}
done
END
    stand_in mke2fs <<'END'
for word; do
    [[ $word != *.img ]] || : >"$word"
done
END
    export VMM_LAB_DIR=$work/lab
    image=$work/lab/debian-$(sed -n 's/^readonly image_packages=//p' "$root/tests/lab/image.sh" | cksum | cut -d ' ' -f 1).img
    prints "the image's name alone, when it is made (compare died of what mke2fs printed)" "$image" "$root/tests/lab/lab" image
    prints "the image's name alone, when it is there" "$image" "$root/tests/lab/lab" image
else
    echo "SKIPPED: lab image needs root"
fi

stand_in dpkg-query <<<'exit 1'
stand_in apt-get <<<''
prints "scripts/setup prints nothing: what it is run for does" "" "$root/scripts/setup"
rm "$work/bin/dpkg-query" "$work/bin/apt-get"

stand_in doxygen <<<''
mkdir -p "$work/build/vmm/package/include"
prints "scripts/api-docs prints the name of the first page" "$work/build/api/html/index.html" \
    "$root/scripts/api-docs" "$work/build"

# refuses NAME STATUS WORDS ARGUMENT...: checks that scripts/fleet/slurm ends with the status, says WORDS, and makes no folder.
refuses() {
    local name=$1 status=$2 words=$3 output
    shift 3
    output=$("$root/scripts/fleet/slurm" "$@" 2>&1)
    local is=$?
    if ((is == status)) && [[ $output == *"$words"* && ! -e $work/run ]]; then
        echo "PASS $name"
        passed=$((passed + 1))
    else
        echo "FAIL $name: status $is; it printed '$output'"
        failed=$((failed + 1))
    fi
}
for program in sbatch squeue scontrol scancel vmm; do stand_in "$program" <<<''; done
refuses "scripts/fleet/slurm needs a folder" 2 "--out FOLDER" --tasks 2
refuses "scripts/fleet/slurm refuses no tasks" 2 "--tasks N" --out "$work/run" --tasks 0
refuses "scripts/fleet/slurm refuses an option that there is not" 2 "--tasks N" --out "$work/run" --cells 1/2
refuses "scripts/fleet/slurm gives each share its own --json" 1 "--json=x is this script's own" --out "$work/run" -- --json=x
refuses "scripts/fleet/slurm refuses a command that cannot be run" 1 "nobody cannot be run here" --out "$work/run" --vmm nobody
mkdir "$work/taken"
refuses "scripts/fleet/slurm refuses a folder that is there" 1 "name one that is not there yet" --out "$work/taken"
stand_in sbatch <<<'exit 1'
output=$("$root/scripts/fleet/slurm" --out "$work/refused" -- quick 2>&1)
if (($? == 1)) && [[ $output == *"sbatch refused the job array"* ]]; then
    echo "PASS scripts/fleet/slurm says that Slurm refuses the job"
    passed=$((passed + 1))
else
    echo "FAIL scripts/fleet/slurm says that Slurm refuses the job: it printed '$output'"
    failed=$((failed + 1))
fi
rm "$work"/bin/{sbatch,squeue,scontrol,scancel,vmm}

# finds NAME FILE: checks that scripts/lint fails in a tree that has only itself and this file, and names the file.
finds() {
    local name=$1 file=$2
    if output=$("$work/tree/scripts/lint" 2>&1) || [[ $output != *"$file"* ]]; then
        echo "FAIL $name: scripts/lint printed '$output'"
        failed=$((failed + 1))
    else
        echo "PASS $name"
        passed=$((passed + 1))
    fi
    rm "$work/tree/$file"
}
if command -v clang-format >/dev/null && command -v shellcheck >/dev/null; then
    mkdir -p "$work/tree/scripts"
    cp "$root/scripts/lint" "$work/tree/scripts"
    cp "$root/.clang-format" "$work/tree"
    prints "scripts/lint prints nothing about a tree that is as it should be" "" "$work/tree/scripts/lint"
    echo 'int  x;' >"$work/tree/spaces.hpp"
    finds "scripts/lint finds a C++ file that is not formatted" spaces.hpp
    # shellcheck disable=SC2016 # The text is written unexpanded.
    printf '#!/bin/sh\nrm $1\n' >"$work/tree/unquoted"
    finds "scripts/lint knows a shell script by its first line" unquoted
    # shellcheck disable=SC2016 # The text is written unexpanded.
    printf '# shellcheck shell=bash\nrm $1\n' >"$work/tree/sourced.sh"
    finds "scripts/lint checks what scripts read in" sourced.sh
else
    echo "SKIPPED: scripts/lint needs clang-format and shellcheck"
fi

echo "$passed passed, $failed failed"
((failed == 0))
