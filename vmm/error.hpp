// For embedding programs: see the header it names.
#pragma once

#include "kvm/error.hpp" // IWYU pragma: export
