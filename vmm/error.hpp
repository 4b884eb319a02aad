// For embedding programs: see the header it names.
#pragma once

#include "kvm/host/error.hpp" // IWYU pragma: export
