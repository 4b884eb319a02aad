// For embedding programs: see the header it names.
#pragma once

#include "kvm/host/guest_memory.hpp" // IWYU pragma: export
