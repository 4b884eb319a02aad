// The one exception type of the project, for faults of the host or of the user.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "kvm/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// What went wrong on the host, or in what the user asked for. `what()` is one line, fit to be shown as it is: what we
/// tried, on what, why it failed and what the reader can do. A fault of the guest is never an Error; it is a value.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The embedding program used an object in a way that it does not allow at this moment: ran a machine twice, say.
class UsageError : public Error {
  public:
    using Error::Error;
};

/// Throws Error "cannot <tried>: <reason of error_number> (<advice>)". The advice is left out where it is empty.
/// `error_number` is a value of errno, taken by the caller before anything can change it.
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::string_view advice = {});

/// The reason that belongs to a value of errno, e.g. "Permission denied". Safe to call from any thread.
std::string errno_reason(int error_number);

} // namespace vmm
VMM_API_END
