// For embedding programs: see the header it names.
#pragma once

#include "kvm/guest_memory.hpp" // IWYU pragma: export
