// Page tables that are complete before the first instruction: an identity map of the first GUEST_STATIC_GIB GiB in
// pages of 2 MiB, for ring 3 too. Ring 3 adds what lies above (page_tables.cpp). Pages of 1 GiB are not used: not every
// CPU has them.
#include "vmm/guest/machine_state.h"

        .section .data.page_tables, "aw", @progbits
        .balign 4096
        .globl  static_pml4, static_pdpt
static_pml4:
        .quad   static_pdpt + GUEST_TABLE_FLAGS
        .skip   4096 - 8
static_pdpt:
        .set    i, 0
        .rept   GUEST_STATIC_GIB
        .quad   static_directories + i * 4096 + GUEST_TABLE_FLAGS
        .set    i, i + 1
        .endr
        .skip   4096 - GUEST_STATIC_GIB * 8
static_directories:
        .set    i, 0
        .rept   GUEST_STATIC_GIB * 512
        .quad   (i << 21) | GUEST_LEAF_FLAGS
        .set    i, i + 1
        .endr

        .section .note.GNU-stack, "", @progbits
