// Constants that the assembly and the C++ of the guest share. Macros, because the assembler reads this file too.
//
// The control registers and the page-table flags are a contract with any VMM that fills the second-level table ahead of
// the guest: a KVM that shadows the guest's page tables shares a shadow page only between CPUs whose paging mode and
// page-table flags are the same.
#pragma once

// PG, WP, NE, ET, MP, PE; PAE alone; LME (the CPU adds LMA). No-execute stays off.
#define GUEST_CR0 0x80010033
#define GUEST_CR4 0x20
#define GUEST_EFER 0x100

// Present, writable, user, accessed, dirty; a leaf of 2 MiB adds the page-size bit. Accessed and dirty are set from the
// start, so that the CPU never writes to the tables.
#define GUEST_TABLE_FLAGS 0x67
#define GUEST_LEAF_FLAGS 0xE7

// What the static tables in the image map: the first 4 GiB, which holds the image and the local APIC.
#define GUEST_STATIC_GIB 4

// Ring 3 with I/O privilege level 3, interrupts off; bit 1 of RFLAGS always reads as one.
#define GUEST_USER_FLAGS 0x3002

// Selectors in the guest's descriptor table; the user's with requested privilege level 3.
#define GUEST_CODE32_SELECTOR 0x08
#define GUEST_DATA_SELECTOR 0x10
#define GUEST_USER_DATA_SELECTOR 0x1B
#define GUEST_USER_CODE_SELECTOR 0x23
#define GUEST_CODE64_SELECTOR 0x28
#define GUEST_TASK_SELECTOR 0x30

// The longest command line that is read, in bytes, its final NUL included.
#define GUEST_COMMAND_LINE_BYTES 2048

#define GUEST_BOOT_STACK_BYTES 16384
// One page for every other CPU: its loop calls a few small functions.
#define GUEST_STACK_BYTES 4096
