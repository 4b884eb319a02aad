#!/usr/bin/env python3
"""Looks at programs and libraries as they were built, and says of each property that makes mistakes harder to use what it found.
The exit status is 0 only if each has all. Needs readelf and objdump (binutils).

hardening_test.py COMPILE-COMMANDS NAME:FILE:OBJECTS...

COMPILE-COMMANDS is the compile_commands.json of the build: some of what the compiler does cannot be seen in what it made. FILE is a
program or a shared library. OBJECTS is a file that lists its object files, one a line: a program may hold code of others that was
compiled in other ways, so what the compiler does is looked for in our own objects.
"""
import json
import os
import pathlib
import re
import subprocess
import sys

# A checked function, which knows the size of its destination. __stack_chk_fail belongs to the stack protector.
CHECKED_CALL = re.compile(r"\bUND (__(?!stack)\w+_chk)\b")
# Functions that _FORTIFY_SOURCE renames at every call.
ALWAYS_CHECKED = re.compile(r"\bUND (snprintf|sprintf|fprintf|printf)\b")
# If the stack is touched page by page, a large frame has a store that changes nothing at its new end: `or` by g++, `mov` by
# clang.
PROBE = re.compile(r"\t(or[lq]?|mov[lq]?) +\$0x0,(0x\w+)?\(%[re]sp(,|\))")
PAGE = 0x1000
CET = {"IBT", "SHSTK"}


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}).stdout


def cet_marks(path):
    """The marks of a file: a set of names."""
    return set(re.findall(r"\b(IBT|SHSTK)\b", output("readelf", "-nW", path)))


class Binary:
    """The built files of one program or library."""

    def __init__(self, path, objects, commands):
        self.path = path
        self.objects = objects
        self.commands = [commands[path] for path in objects if path in commands]
        self.header = output("readelf", "-hW", path)
        self.dynamic = output("readelf", "-dW", path)
        # Type, offset, virtual address, size in memory, flags.
        self.segments = [
            (kind, int(offset, 16), int(address, 16), int(size, 16), flags.replace(" ", ""))
            for kind, offset, address, size, flags in re.findall(
                r"^  (\w+) +(0x\w+) (0x\w+) 0x\w+ 0x\w+ (0x\w+) ([RWE ]{3}) 0x", output("readelf", "-lW", path), re.MULTILINE
            )
        ]
        # Name: address, size.
        self.sections = {
            name: (int(address, 16), int(size, 16))
            for name, address, size in re.findall(
                r"^  \[ *\d+\] (\S+) +\S+ +(\w+) \w+ (\w+) ", output("readelf", "-SW", path), re.MULTILINE
            )
        }
        self.undefined = output("readelf", "-sW", *objects)

    def flags(self):
        return set(" ".join(re.findall(r"\(FLAGS(?:_1)?\) +(?:Flags: )?(.*)", self.dynamic)).split())

    # Each of these returns whether the property is there, and what was found.

    def position_independent(self):
        kind = re.search(r"Type: +(\w+)", self.header).group(1)
        shared = "(SONAME)" in self.dynamic
        return kind == "DYN" and (shared or "PIE" in self.flags()), f"type {kind}, {'a library' if shared else ' '.join(self.flags())}"

    def relocations_read_only(self):
        """Full RELRO: everything that the loader writes is read-only when the program starts."""
        ranges = [(address, size) for kind, _, address, size, _ in self.segments if kind == "GNU_RELRO"]
        if not ranges:
            return False, "no segment GNU_RELRO"
        (begin, size), *_ = ranges
        outside = [
            name for name in (".got", ".got.plt", ".dynamic", ".data.rel.ro", ".init_array")
            if name in self.sections and not begin <= self.sections[name][0] < begin + size
        ]  # fmt: skip
        now = bool(self.flags() & {"BIND_NOW", "NOW"})
        return now and not outside, f"GNU_RELRO of {size} bytes, {'bound at start' if now else 'bound at first use'}, outside: {outside}"

    def stack_not_executable(self):
        flags = [flags for kind, *_, flags in self.segments if kind == "GNU_STACK"]
        return flags == ["RW"], f"GNU_STACK {flags}"

    def code_apart(self):
        """Only code can be executed: no segment is both writable and executable, and tables are in other segments."""
        executable = [(address, size) for kind, _, address, size, flags in self.segments if kind == "LOAD" and "E" in flags]
        writable = [flags for *_, flags in self.segments if "W" in flags and "E" in flags]
        inside = [
            name for name in (".rodata", ".eh_frame", ".dynsym", ".dynstr", ".rela.dyn") for begin, size in executable
            if name in self.sections and begin <= self.sections[name][0] < begin + size
        ]  # fmt: skip
        relocated = "(TEXTREL)" in self.dynamic
        good = len(executable) == 1 and not writable and not inside and not relocated
        return good, f"{len(executable)} executable segment, {len(writable)} of them writable, tables among the code: {inside}"

    def stack_protector(self):
        count = self.undefined.count(" UND __stack_chk_fail")
        return count > 0, f"{count} of {len(self.objects)} objects call __stack_chk_fail"

    def fortified(self):
        """A call of a C function that may write beyond its destination passes the destination's size, if the compiler knows that size but
        not the length of the write. A program may have no such call."""
        optimised = [command for command in self.commands if re.findall(r" -O\S*", command)[-1:] not in ([], [" -O0"])]
        if self.commands and not optimised:
            return True, "nothing is optimised, and it needs that"
        asked = sum(re.findall(r" -[DU]_FORTIFY_SOURCE(?:=\d)?", command)[-1:] == [" -D_FORTIFY_SOURCE=3"] for command in optimised)
        calls = sorted(set(CHECKED_CALL.findall(self.undefined)))
        unchecked = sorted(set(ALWAYS_CHECKED.findall(self.undefined)))
        good = asked == len(optimised) > 0 and not unchecked
        return good, f"asked for in {asked} of {len(optimised)} sources; calls: {' '.join(calls + unchecked) or 'none that could be wrong'}"

    def cleared_variables(self):
        asked = sum(" -ftrivial-auto-var-init=zero " in command for command in self.commands)
        return asked == len(self.commands) > 0, f"asked for in {asked} of {len(self.commands)} sources"

    def cet(self):
        """Indirect jumps and returns. The linker marks a file if all of its parts are marked, including those of the C library."""
        without = [path for path in self.objects if cet_marks(path) != CET]
        starts = [output("c++", f"-print-file-name={name}").strip() for name in ("crti.o", "crtn.o")]
        unmarked = [pathlib.Path(path).name for path in starts if cet_marks(path) != CET]
        marked = cet_marks(self.path) == CET
        found = f"{len(self.objects) - len(without)} of {len(self.objects)} objects are marked, {'' if marked else 'not '}the whole"
        if unmarked:
            found += f", as the C library's {' and '.join(unmarked)} are not"
        return not without and (marked or bool(unmarked)), found

    def stack_clash(self):
        """A frame that is larger than a page is touched page by page. Only the code shows it."""
        code = output("objdump", "-d", "--no-show-raw-insn", *self.objects)
        probed = unprobed = 0
        for function in re.split(r"\n\n", code):
            large = [size for size in re.findall(r"\tsub +\$0x(\w+),%rsp", function) if PAGE <= int(size, 16) < 1 << 31]
            if large and PROBE.search(function):
                probed += 1
            elif large:
                unprobed += 1
        return probed > 0 and unprobed == 0, f"{probed} functions with large frames touch them, {unprobed} do not"


PROPERTIES = {
    "position-independent": Binary.position_independent,
    "full RELRO": Binary.relocations_read_only,
    "stack not executable": Binary.stack_not_executable,
    "code apart from data": Binary.code_apart,
    "stack protector": Binary.stack_protector,
    "_FORTIFY_SOURCE": Binary.fortified,
    "variables cleared": Binary.cleared_variables,
    "CET": Binary.cet,
    "stack clash protection": Binary.stack_clash,
}


def main():
    compile_commands, *arguments = sys.argv[1:]
    with open(compile_commands, encoding="utf-8") as file:
        commands = {
            os.path.normpath(os.path.join(entry["directory"], re.search(r" -o (\S+)", entry["command"]).group(1))): entry["command"]
            for entry in json.load(file)
            if entry["file"].endswith((".cpp", ".cxx"))
        }
    failed = 0
    for argument in arguments:
        name, path, list_of_objects = argument.split(":")
        objects = [os.path.normpath(line) for line in pathlib.Path(list_of_objects).read_text().split()]
        binary = Binary(path, objects, commands)
        for title, look in PROPERTIES.items():
            good, found = look(binary)
            failed += not good
            print(f"{'PASS' if good else 'FAIL'} {name}: {title}: {found}")
    print(f"{failed} failed")
    return 1 if failed or not arguments else 0


sys.exit(main())
