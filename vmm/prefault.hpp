// For embedding programs: populates the memory of their own VM in advance, without a Machine.
#pragma once

#include "kvm/stats.hpp"              // IWYU pragma: export
#include "prefault/existing_vm.hpp"   // IWYU pragma: export
#include "prefault/host/pin_kind.hpp" // IWYU pragma: export
#include "prefault/mapped_pages.hpp"  // IWYU pragma: export
#include "prefault/options.hpp"       // IWYU pragma: export
#include "prefault/report.hpp"        // IWYU pragma: export
