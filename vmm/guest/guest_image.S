// The bytes of guest.elf; the build names the file.
#ifdef __CET__
// The linker marks a program for CET if every object has this mark.
#include <cet.h>
#endif
        .section .rodata
        .balign 16
        .globl  vmm_guest_image_begin, vmm_guest_image_end
        .hidden vmm_guest_image_begin, vmm_guest_image_end
vmm_guest_image_begin:
        .incbin GUEST_IMAGE_FILE
vmm_guest_image_end:

        .section .note.GNU-stack, "", @progbits
