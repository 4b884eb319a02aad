// The bytes that a fuzzer made, read as a program. Past their end every byte is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace vmm::fuzz {

class Input {
  public:
    explicit Input(std::span<const std::byte> bytes) noexcept : left_(bytes) {}

    [[nodiscard]] bool empty() const noexcept { return left_.empty(); }

    template <typename T>
    T take() noexcept {
        static_assert(std::is_trivially_copyable_v<T>);
        T value{};
        const std::span<const std::byte> from = take_bytes(sizeof(T));
        if (!from.empty()) {
            std::memcpy(&value, from.data(), from.size());
        }
        return value;
    }
    std::uint8_t byte() noexcept { return take<std::uint8_t>(); }
    /// A number from 0 to `count` - 1; `count` is 1 to 256.
    std::size_t below(std::size_t count) noexcept { return byte() % count; }
    /// The next `count` bytes, or as many as are left.
    std::span<const std::byte> take_bytes(std::size_t count) noexcept {
        const std::span<const std::byte> front = left_.first(std::min(count, left_.size()));
        left_ = left_.subspan(front.size());
        return front;
    }
    std::span<const std::byte> take_rest() noexcept { return take_bytes(left_.size()); }

  private:
    std::span<const std::byte> left_;
};

} // namespace vmm::fuzz
