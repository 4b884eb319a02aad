// The guest's options, read from its command line.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vmm::guest {

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kMaxPasses = 1'000'000;
inline constexpr std::uint64_t kMaxStrideBytes = std::uint64_t{1} << 40;

enum class Order { kSequential, kRandom };

struct Options {
    std::uint64_t passes = 3;
    /// Bytes from one write to the next; a multiple of 4096.
    std::uint64_t stride = kPageBytes;
    /// How many CPUs to use, if the machine has that many.
    std::uint64_t cpus = UINT64_MAX;
    Order order = Order::kSequential;
    /// CPU 0 reads all of the memory before the first pass.
    bool reader_one = false;
    /// Each pass verifies what the pass before it wrote.
    bool check = false;
    /// Whether the results of all passes are printed after the last pass; otherwise those of each pass are printed when
    /// it is over. The default depends on the number of CPUs.
    std::optional<bool> report_at_end;
    /// The address at which the loader says page tables are: 4096-aligned, below 4 GiB.
    std::optional<std::uint64_t> tables;
    /// The address at which the loader says a device tree is: 8-aligned, below 4 GiB.
    std::optional<std::uint64_t> fdt;
    /// Instead of running the passes, CPU 0 has a heartbeat and obeys commands. The value is the rate of the time-stamp
    /// counter in kHz.
    std::optional<std::uint64_t> heartbeat_khz;
};

/// Why an option cannot be used. It refers to the command line that was parsed.
struct OptionError {
    std::string_view option;
    std::string_view value;
    std::string_view reason;
};

struct ParsedOptions {
    Options options;
    std::optional<OptionError> error;
};

namespace detail {

/// Decimal, without a sign; nothing if `text` has any other character, or too many digits.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_decimal(std::string_view text) noexcept {
    if (text.empty() || text.size() > 18) {
        return std::nullopt;
    }
    std::uint64_t value = 0;
    for (const char c : text) {
        if (c < '0' || c > '9') {
            return std::nullopt;
        }
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
}

/// Decimal with an optional suffix K or M (upper or lower case), in units of 1024.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_bytes(std::string_view text) noexcept {
    unsigned shift = 0;
    if (text.ends_with('K') || text.ends_with('k')) {
        shift = 10;
    } else if (text.ends_with('M') || text.ends_with('m')) {
        shift = 20;
    }
    if (shift != 0) {
        text.remove_suffix(1);
    }
    const auto value = parse_decimal(text);
    if (!value || *value > UINT64_MAX >> shift) {
        return std::nullopt;
    }
    return *value << shift;
}

[[nodiscard]] constexpr std::optional<unsigned> hex_digit(char c) noexcept {
    if (c >= '0' && c <= '9') {
        return static_cast<unsigned>(c - '0');
    }
    if (c >= 'a' && c <= 'f') {
        return static_cast<unsigned>(c - 'a' + 10);
    }
    if (c >= 'A' && c <= 'F') {
        return static_cast<unsigned>(c - 'A' + 10);
    }
    return std::nullopt;
}

/// "0x" and one to sixteen hexadecimal digits.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_hex(std::string_view text) noexcept {
    if (!text.starts_with("0x") || text.size() < 3 || text.size() > 18) {
        return std::nullopt;
    }
    text.remove_prefix(2);
    std::uint64_t value = 0;
    for (const char c : text) {
        const auto digit = hex_digit(c);
        if (!digit) {
            return std::nullopt;
        }
        value = (value << 4) | *digit;
    }
    return value;
}

/// False for the word `no`, true for the word `yes`.
[[nodiscard]] constexpr std::optional<bool> parse_choice(std::string_view text, std::string_view no,
                                                         std::string_view yes) noexcept {
    if (text != no && text != yes) {
        return std::nullopt;
    }
    return text == yes;
}

// Each of these stores one option. It returns why it cannot, or an empty text.

[[nodiscard]] constexpr std::string_view set_passes(Options& options, std::string_view value) noexcept {
    const auto passes = parse_decimal(value);
    if (!passes || *passes == 0 || *passes > kMaxPasses) {
        return "not-1-to-1000000";
    }
    options.passes = *passes;
    return {};
}

[[nodiscard]] constexpr std::string_view set_stride(Options& options, std::string_view value) noexcept {
    const auto stride = parse_bytes(value);
    if (!stride) {
        return "not-a-size";
    }
    if (*stride == 0 || *stride % kPageBytes != 0) {
        return "not-a-multiple-of-4096";
    }
    if (*stride > kMaxStrideBytes) {
        return "too-large";
    }
    options.stride = *stride;
    return {};
}

[[nodiscard]] constexpr std::string_view set_cpus(Options& options, std::string_view value) noexcept {
    const auto cpus = parse_decimal(value);
    if (!cpus || *cpus == 0) {
        return "not-a-positive-number";
    }
    options.cpus = *cpus;
    return {};
}

[[nodiscard]] constexpr std::string_view set_order(Options& options, std::string_view value) noexcept {
    const auto random = parse_choice(value, "seq", "random");
    if (!random) {
        return "not-seq-or-random";
    }
    options.order = *random ? Order::kRandom : Order::kSequential;
    return {};
}

[[nodiscard]] constexpr std::string_view set_reader(Options& options, std::string_view value) noexcept {
    const auto one = parse_choice(value, "none", "one");
    if (!one) {
        return "not-one-or-none";
    }
    options.reader_one = *one;
    return {};
}

[[nodiscard]] constexpr std::string_view set_check(Options& options, std::string_view value) noexcept {
    const auto check = parse_choice(value, "0", "1");
    if (!check) {
        return "not-0-or-1";
    }
    options.check = *check;
    return {};
}

[[nodiscard]] constexpr std::string_view set_report(Options& options, std::string_view value) noexcept {
    options.report_at_end = parse_choice(value, "live", "end");
    return options.report_at_end ? std::string_view() : "not-live-or-end";
}

[[nodiscard]] constexpr std::string_view set_tables(Options& options, std::string_view value) noexcept {
    const auto tables = parse_hex(value);
    if (!tables) {
        return "not-0x-and-hexadecimal";
    }
    if (*tables == 0 || *tables % kPageBytes != 0) {
        return "not-a-multiple-of-4096";
    }
    if (*tables > UINT32_MAX) {
        return "not-below-4-gib";
    }
    options.tables = tables;
    return {};
}

[[nodiscard]] constexpr std::string_view set_fdt(Options& options, std::string_view value) noexcept {
    constexpr std::uint64_t kAlignment = 8;
    const auto fdt = parse_hex(value);
    if (!fdt) {
        return "not-0x-and-hexadecimal";
    }
    if (*fdt == 0 || *fdt % kAlignment != 0) {
        return "not-a-multiple-of-8";
    }
    if (*fdt > UINT32_MAX) {
        return "not-below-4-gib";
    }
    options.fdt = fdt;
    return {};
}

[[nodiscard]] constexpr std::string_view set_heartbeat(Options& options, std::string_view value) noexcept {
    constexpr std::uint64_t kMostKhz = 100'000'000;
    const auto khz = parse_decimal(value);
    if (!khz || *khz == 0 || *khz > kMostKhz) {
        return "not-1-to-100000000-khz";
    }
    options.heartbeat_khz = khz;
    return {};
}

struct Known {
    std::string_view name;
    std::string_view (*set)(Options& options, std::string_view value) noexcept;
};

inline constexpr std::array kKnown{
    Known{"passes", set_passes},       Known{"stride", set_stride}, Known{"cpus", set_cpus},
    Known{"order", set_order},         Known{"reader", set_reader}, Known{"check", set_check},
    Known{"report", set_report},       Known{"tables", set_tables}, Known{"fdt", set_fdt},
    Known{"heartbeat", set_heartbeat},
};

} // namespace detail

/// Reads the words, separated by spaces, of a command line. Unknown words are ignored, because the loader adds its own
/// (console=...). A known word that is wrong or given twice is an error, and the first of these errors is returned.
[[nodiscard]] constexpr ParsedOptions parse_options(std::string_view command_line) noexcept {
    ParsedOptions parsed;
    std::array<bool, detail::kKnown.size()> seen{};
    while (!command_line.empty()) {
        std::string_view word = command_line;
        if (const std::size_t end = word.find(' '); end != std::string_view::npos) {
            word.remove_suffix(word.size() - end);
        }
        command_line.remove_prefix(word.size() < command_line.size() ? word.size() + 1 : word.size());

        const std::size_t equals = word.find('=');
        if (equals == std::string_view::npos) {
            continue;
        }
        std::string_view name = word;
        name.remove_suffix(word.size() - equals);
        std::string_view value = word;
        value.remove_prefix(equals + 1);
        for (std::size_t i = 0; i < detail::kKnown.size(); ++i) {
            if (detail::kKnown[i].name != name) {
                continue;
            }
            const std::string_view reason =
                seen[i] ? std::string_view("given-twice") : detail::kKnown[i].set(parsed.options, value);
            if (!reason.empty()) {
                parsed.error = OptionError{name, value, reason};
                return parsed;
            }
            seen[i] = true;
        }
    }
    if (parsed.options.heartbeat_khz && parsed.options.report_at_end.value_or(false)) {
        // The other CPUs are gone once results are printed at the end, and commands may ask for more passes.
        parsed.error = OptionError{"report", "end", "not-with-heartbeat"};
    }
    return parsed;
}

} // namespace vmm::guest
