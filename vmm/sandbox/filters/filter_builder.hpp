// Builds a filter of system calls with libseccomp.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "vmm/sandbox/refusal.hpp"

namespace vmm {

/// A filter that refuses every system call for which it has no rule. Every member but the destructor throws Error.
class FilterBuilder {
  public:
    /// What happens with a call that no rule names.
    enum class Otherwise {
        kRefused, ///< as `refusal` says
        kEperm,   ///< it is not made, and fails with EPERM; with Refusal::kLog it is made and logged
    };
    explicit FilterBuilder(Refusal refusal, Otherwise otherwise = Otherwise::kRefused);

    void allow(std::initializer_list<int> calls);
    /// Allows the call if the bits of `mask` in this argument (the first is 0) are `value`.
    void allow_if(int call, unsigned argument, std::uint64_t mask, std::uint64_t value);
    /// The call is not made, and returns this error. With 0 the caller believes that it was made.
    void answer(int call, unsigned error_number);
    /// Refuses the calls as `refusal` says, in a filter in which other calls fail with EPERM.
    void refuse(std::initializer_list<int> calls);
    /// Does the same if the bits of `mask` in this argument are `value`.
    void refuse_if(int call, unsigned argument, std::uint64_t mask, std::uint64_t value);
    void allow_ioctls(std::span<const unsigned long> requests);

    /// Returns the program.
    [[nodiscard]] std::vector<sock_filter> take();

  private:
    struct Release {
        void operator()(void* context) const noexcept;
    };
    std::uint32_t refusal_; ///< an action of libseccomp
    std::unique_ptr<void, Release> context_;
};

} // namespace vmm
