// From the two states a CPU can start in (PVH entry, start-up IPI) to C++ in ring 3.
//
// Ring 0 is kept to a few dozen instructions, because under some hypervisors it is emulated, one instruction at a time,
// while ring 3 runs natively. And CR3 is final before ring 3 starts: no page is ever reached through tables that are
// abandoned later, which would count as a fault where the hypervisor shadows the guest's tables.
#include "vmm/guest/machine_state.h"

// Xen's ELF note that names the PVH entry. Eight bytes of address: loaders read as many as the ELF class says.
        .section .note.Xen, "a", @note
        .balign 4
        .long   2f - 1f                 // name size
        .long   4f - 3f                 // descriptor size
        .long   18                      // XEN_ELFNOTE_PHYS32_ENTRY
1:      .asciz  "Xen"
2:      .balign 4
3:      .quad   pvh_entry
4:      .balign 4

// Our own note: this kernel takes page tables by the word tables= of its command line (docs/prefault.md).
        .section .note.vmm, "a", @note
        .balign 4
        .long   4, 0, 1                 // bytes of the name, of the content; type
        .asciz  "vmm"
        .balign 4
// And: it takes a device tree by the word fdt= (docs/devices.md).
        .long   4, 0, 2
        .asciz  "vmm"
        .balign 4

        .section .text.boot, "ax", @progbits

// PVH entry (Xen, docs/misc/pvh): 32-bit protected mode without paging, cs, ds and es flat, ebx = start_info. All else,
// ss and the direction flag among it, is unspecified.
        .code32
        .globl  pvh_entry
        .type   pvh_entry, @function
pvh_entry:
        cld
        xor     %ebp, %ebp              // ebp: the tables that were given, 0 while there are none

// Look for the word tables=0x... in the command line. Options are the business of ring 3 (options.hpp), except for this
// one, which says what CR3 is to be. Anything wrong with it leaves ebp 0, and ring 3 then says what was wrong.
        cmpl    $0, 28(%ebx)            // cmdline_paddr, upper half
        jne     enable_paging
        mov     24(%ebx), %edi          // cmdline_paddr, lower half
        test    %edi, %edi
        jz      enable_paging
        mov     %edi, %edx              // edx: the start of the line
        mov     $GUEST_COMMAND_LINE_BYTES, %ecx
        xor     %eax, %eax
        repne scasb
        jne     enable_paging           // no end in sight
        lea     -1(%edi), %ecx
        sub     %edx, %ecx              // ecx: its length
        mov     %edx, %edi
        mov     $'t', %al
find_tables:
        test    %ecx, %ecx
        jz      enable_paging
        repne scasb
        jne     enable_paging
        cmpl    $0x656c6261, (%edi)     // "able"
        jne     find_tables
        cmpw    $0x3d73, 4(%edi)        // "s="
        jne     find_tables
        lea     -1(%edi), %esi
        cmp     %edx, %esi              // a word starts where the line does, or after a space
        je      read_tables
        cmpb    $' ', -1(%esi)
        jne     find_tables
read_tables:
        cmpw    $0x7830, 6(%edi)        // "0x"
        jne     enable_paging
        lea     8(%edi), %esi
        xor     %edx, %edx              // edx: the number so far
        xor     %eax, %eax
next_digit:
        lodsb
        cmp     $' ', %al
        je      check_tables
        test    %al, %al
        jz      check_tables
        or      $0x20, %al              // lower case; digits have this bit already
        sub     $'0', %al
        cmp     $10, %al
        jb      add_digit
        sub     $('a' - '0'), %al
        cmp     $6, %al
        jae     enable_paging
        add     $10, %al
add_digit:
        test    $0xf0000000, %edx
        jnz     enable_paging           // it passes 32 bits
        shl     $4, %edx
        or      %eax, %edx
        jmp     next_digit

// Only what looks like tables, in the first entry of the first two levels, is used: present, writable, user, no leaf,
// none of the bits that are the system's own, the next level below 4 GiB.
check_tables:
        test    $0xfff, %edx
        jnz     enable_paging
        mov     %edx, %esi
        mov     $2, %ecx
check_level:
        cmpl    $0, 4(%esi)
        jne     enable_paging
        mov     (%esi), %esi
        mov     %esi, %eax
        and     $0xf87, %eax
        cmp     $7, %eax
        jne     enable_paging
        and     $0xfffff000, %esi
        loop    check_level
        mov     %edx, %ebp

// Long mode, from 32-bit code with paging off, and on to 64-bit code at `target`. In: edi = CR3. An iret could go from
// here to ring 3 in one go, but emulators tend to know only the iretq of 64-bit code.
.macro enter_long_mode target
        mov     $GUEST_CR4, %eax
        mov     %eax, %cr4
        mov     %edi, %cr3
        mov     $0xc0000080, %ecx       // IA32_EFER
        mov     $GUEST_EFER, %eax
        xor     %edx, %edx
        wrmsr
        mov     $GUEST_CR0, %eax
        mov     %eax, %cr0
        ljmpl   $GUEST_CODE64_SELECTOR, $\target
.endm

// In: ebx = start_info, ebp = tables or 0; both are kept for ring 3.
enable_paging:
        lgdt    gdt_pointer
        lidt    idt_pointer
        mov     $GUEST_DATA_SELECTOR, %eax
        mov     %eax, %ss
        mov     %ebp, %edi
        test    %edi, %edi
        jnz     1f
        mov     $static_pml4, %edi
1:      enter_long_mode boot_ring0

// The other CPUs, out of their trampoline: 32-bit protected mode without paging, cs flat, the guest's descriptor tables
// loaded.
ap_protected:
        mov     $GUEST_DATA_SELECTOR, %eax
        mov     %eax, %ss
        mov     %ss:ap_cr3, %edi
        enter_long_mode ap_ring0

        .code64
boot_ring0:
        mov     $GUEST_TASK_SELECTOR, %eax
        ltr     %ax
        mov     $boot_frame, %esp
        iretq
// Only CPU 0 uses ports; the others need no task state segment.
ap_ring0:
        mov     $ap_frame, %esp
        iretq

// C++ of CPU 0. Upper halves of registers are undefined after the change of mode; 32-bit moves clear them.
boot_ring3:
        lea     boot_stack_top(%rip), %rsp
        mov     %ebx, %edi
        mov     %ebp, %esi
        xor     %ebp, %ebp
        call    guest_main
        ud2

// C++ of the others. Each takes a ticket, and with it a stack. No stack left: a CPU started that was not asked to, and
// must do nothing.
ap_ring3:
        mov     $1, %edi
        lock xadd %edi, ap_tickets(%rip)
        cmp     ap_stack_count(%rip), %edi
        jae     1f
        lea     1(%rdi), %eax
        imul    $GUEST_STACK_BYTES, %rax, %rsp
        add     ap_stacks(%rip), %rsp
        xor     %ebp, %ebp
        call    ap_main
1:      pause
        jmp     1b

// Copied to a page below 1 MiB, where a start-up IPI can point a CPU to: real mode, cs = address >> 4, ip = 0. It
// refers to itself through cs only, so it may be copied anywhere without a change.
        .code16
        .globl  ap_trampoline, ap_trampoline_end
ap_trampoline:
        lgdtl   %cs:ap_gdt_pointer - ap_trampoline
        lidtl   %cs:ap_idt_pointer - ap_trampoline
        mov     $0x11, %eax             // ET and PE; leaves caching on
        mov     %eax, %cr0
        ljmpl   $GUEST_CODE32_SELECTOR, $ap_protected
        .balign 4
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
ap_idt_pointer:
        .word   0
        .long   0
ap_trampoline_end:

        .section .rodata.boot, "a", @progbits
        .balign 8
// The accessed bit is set in every descriptor, so that loading one does not write to the table.
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      // ring 0, 32-bit code
        .quad   0x00cf93000000ffff      // ring 0, data
        .quad   0x00cff3000000ffff      // ring 3, data
        .quad   0x00affb000000ffff      // ring 3, 64-bit code
        .quad   0x00af9b000000ffff      // ring 0, 64-bit code
// An available 64-bit task state segment. guest.ld cuts its address into the pieces.
        .word   task_state_end - task_state - 1
        .word   task_state_bits_0_15
        .byte   task_state_bits_16_23, 0x89, 0, task_state_bits_24_31
        .quad   0
gdt_end:

// What iretq pops: rip, cs, rflags, rsp, ss. Ring 3 sets up its own stack first.
        .balign 8
boot_frame:
        .quad   boot_ring3, GUEST_USER_CODE_SELECTOR, GUEST_USER_FLAGS, 0, GUEST_USER_DATA_SELECTOR
ap_frame:
        .quad   ap_ring3, GUEST_USER_CODE_SELECTOR, GUEST_USER_FLAGS, 0, GUEST_USER_DATA_SELECTOR

gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .balign 4
// An empty interrupt table: any exception becomes a triple fault, which is also the guest's last way to stop.
idt_pointer:
        .word   0
        .long   0

// The task state segment permits every port to ring 3. On hardware the I/O privilege level does so too; but where the
// hypervisor has no hardware to run the guest on, ring 3 runs with the flags of a program of the host, in which that
// level is lost: only the bitmap remains.
        .data
        .balign 128
        .globl  task_state
task_state:
        .skip   102
        .word   io_bitmap - task_state
io_bitmap:
        .skip   65536 / 8
        .byte   0xff                    // A CPU reads one byte further.
task_state_end:

        .bss
        .balign 16
        .skip   GUEST_BOOT_STACK_BYTES
boot_stack_top:

        .section .note.GNU-stack, "", @progbits
