/* The interface of the shared library: it exports what is declared with these macros, and nothing else. */
#pragma once

/* Marks one declaration as part of the library's interface, wherever it stands. */
#define VMM_API __attribute__((visibility("default")))

/* These two enclose the declarations of a header that is part of the library's interface (vmm/package lists them). They
 * mean the same in a static build, because the static library, the shared one and the command are made from the same
 * objects. This header is for C, too. */
#define VMM_API_BEGIN _Pragma("GCC visibility push(default)")
#define VMM_API_END _Pragma("GCC visibility pop")
