// For embedding programs: the errors that the library throws.
#pragma once

#include "kvm/host/error.hpp" // IWYU pragma: export
