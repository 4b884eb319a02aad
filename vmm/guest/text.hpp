// Lines of `key=value` words, built in a buffer of fixed size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vmm::guest {

/// One line of output. Text that does not fit is cut off. Because values come from the command line, spaces and bytes
/// that are not printable ASCII become '?'.
class Line {
  public:
    static constexpr std::size_t kCapacity = 240;

    constexpr Line() noexcept = default;
    /// A line that starts with a word without a value, such as "summary".
    constexpr explicit Line(std::string_view first_word) noexcept { append(first_word); }

    constexpr Line& field(std::string_view key, std::string_view value) noexcept {
        start_field(key);
        append(value);
        return *this;
    }
    constexpr Line& field(std::string_view key, std::uint64_t value) noexcept {
        start_field(key);
        append_number(value);
        return *this;
    }
    constexpr Line& field_hex(std::string_view key, std::uint64_t value) noexcept {
        start_field(key);
        append("0x");
        unsigned shift = 60;
        while (shift > 0 && value >> shift == 0) {
            shift -= 4;
        }
        for (unsigned left = shift + 4; left > 0; left -= 4) {
            put("0123456789abcdef"[value >> (left - 4) & 15]);
        }
        return *this;
    }
    /// `hundredths` / 100 with two decimals.
    constexpr Line& field_hundredths(std::string_view key, std::uint64_t hundredths) noexcept {
        start_field(key);
        append_number(hundredths / 100);
        put('.');
        put(static_cast<char>('0' + (hundredths / 10 % 10)));
        put(static_cast<char>('0' + (hundredths % 10)));
        return *this;
    }

    [[nodiscard]] constexpr std::string_view text() const noexcept { return {buffer_.data(), size_}; }

  private:
    constexpr void put(char c) noexcept {
        if (size_ < kCapacity) {
            buffer_[size_] = c;
            ++size_;
        }
    }
    constexpr void append(std::string_view text) noexcept {
        for (const char c : text) {
            put(c > ' ' && c <= '~' ? c : '?');
        }
    }
    constexpr void append_number(std::uint64_t value) noexcept {
        std::array<char, 20> digits{};
        std::size_t count = 0;
        do {
            digits[count] = static_cast<char>('0' + (value % 10));
            ++count;
            value /= 10;
        } while (value != 0);
        while (count > 0) {
            --count;
            put(digits[count]);
        }
    }
    constexpr void start_field(std::string_view key) noexcept {
        if (size_ != 0) {
            put(' ');
        }
        append(key);
        put('=');
    }

    std::array<char, kCapacity> buffer_{};
    std::size_t size_ = 0;
};

/// 100 * `numerator` / `denominator`, rounded to nearest; 0 if `denominator` is 0, the maximum if the result does not
/// fit.
[[nodiscard]] constexpr std::uint64_t ratio_in_hundredths(std::uint64_t numerator, std::uint64_t denominator) noexcept {
    if (denominator == 0) {
        return 0;
    }
    const std::uint64_t whole = numerator / denominator;
    if (whole >= UINT64_MAX / 100) {
        return UINT64_MAX;
    }
    // Numbers so large that the next line would wrap lose low bits, which is far below one hundredth.
    std::uint64_t rest = numerator % denominator;
    while (denominator > UINT64_MAX / 400) {
        rest /= 2;
        denominator /= 2;
    }
    return (whole * 100) + (((rest * 200) + denominator) / (denominator * 2));
}

} // namespace vmm::guest
