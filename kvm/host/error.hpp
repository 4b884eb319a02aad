// The one exception type of the project, for faults of the host or of the user.
#pragma once

#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// An error of the host, or in what the user asked for. `what()` is one line that can be shown as it is: what we tried,
/// on what, why it failed and what the reader can do. A fault of the guest is never an Error; it is a value.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The embedding program used an object in a way that is not allowed at this moment, e.g. it ran a machine twice.
class UsageError : public Error {
  public:
    using Error::Error;
};

/// What a reader can do about one value of errno that one particular call gave.
struct ErrnoAdvice {
    int error_number = 0;
    std::string_view advice;
};

/// What a reader can do about `error_number`, whatever call gave it. Empty if that depends on the call (e.g. EINVAL).
/// Safe to call from any thread.
[[nodiscard]] std::string_view errno_advice(int error_number) noexcept;

/// The advice that `table` has for `error_number`; if it has none, that of errno_advice(error_number).
[[nodiscard]] std::string_view errno_advice(int error_number, std::span<const ErrnoAdvice> table) noexcept;

/// Throws Error "cannot <tried>: <reason of error_number> (<advice>)". The advice is that of `table` for this number,
/// or else the general one; without advice there are no brackets. The caller must read `error_number` from errno before
/// another call can change it. Advice belongs to the number because the same call fails for different reasons.
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::span<const ErrnoAdvice> table);
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::initializer_list<ErrnoAdvice> table);

/// As above, with advice that the caller chose by looking at `error_number`. If it is empty, the general advice is
/// used.
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::string_view advice = {});

/// The reason for a value of errno, e.g. "Permission denied". Safe to call from any thread.
std::string errno_reason(int error_number);

} // namespace vmm
VMM_API_END
