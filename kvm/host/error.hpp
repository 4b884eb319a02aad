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

/// What a reader can do about one value of errno, where one call gave it.
struct ErrnoAdvice {
    int error_number = 0;
    std::string_view advice;
};

/// What a reader can do about `error_number`, whatever call gave it; empty if that is not known without the call
/// (EINVAL, say). Safe to call from any thread.
[[nodiscard]] std::string_view errno_advice(int error_number) noexcept;

/// What `table` says of `error_number`; if it says nothing, what errno_advice(error_number) says.
[[nodiscard]] std::string_view errno_advice(int error_number, std::span<const ErrnoAdvice> table) noexcept;

/// Throws Error "cannot <tried>: <reason of error_number> (<advice>)", with the advice that `table` has for this
/// number, or else the general one. There are no brackets if there is no advice. `error_number` is a value of errno,
/// taken by the caller before anything can change it. Advice belongs to the number: the same call fails for different
/// reasons.
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::span<const ErrnoAdvice> table);
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::initializer_list<ErrnoAdvice> table);

/// The same with advice that the caller chose by looking at `error_number`; the general one if it is empty.
[[noreturn]] void throw_errno(int error_number, std::string_view tried, std::string_view advice = {});

/// The reason that belongs to a value of errno, e.g. "Permission denied". Safe to call from any thread.
std::string errno_reason(int error_number);

} // namespace vmm
VMM_API_END
