/* What the shared library shows of itself: everything declared between the two macros, and nothing else. */
#pragma once

/* One declaration that is part of the library's interface, whatever surrounds it. */
#define VMM_API __attribute__((visibility("default")))

/* Around the declarations of a header that is part of the library's interface (vmm/package lists them). The same
 * objects make the static library, the shared one and the command, so there is no second meaning of these for a static
 * build. The header is for C, too. */
#define VMM_API_BEGIN _Pragma("GCC visibility push(default)")
#define VMM_API_END _Pragma("GCC visibility pop")
