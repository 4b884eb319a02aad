// The guest's options, read from its command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vmm::guest {

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kMaxPasses = 1'000'000;
inline constexpr std::uint64_t kMaxStrideBytes = std::uint64_t{1} << 40;

enum class Order { sequential, random };

struct Options {
    std::uint64_t passes = 3;
    /// Bytes from one write to the next; a multiple of 4096.
    std::uint64_t stride = kPageBytes;
    /// How many CPUs to use, if the machine has that many.
    std::uint64_t cpus = UINT64_MAX;
    Order order = Order::sequential;
    /// CPU 0 reads all of the memory before the first pass.
    bool reader_one = false;
    /// Each pass verifies what the pass before it wrote.
    bool check = false;
    /// Print the results of each pass when it is over, or all of them after the last pass; by default it depends on the
    /// number of CPUs.
    std::optional<bool> report_at_end;
    /// Where the loader says that page tables lie: 4096-aligned, below 4 GiB.
    std::optional<std::uint64_t> tables;
};

/// Why an option cannot be used. Refers to the command line that was parsed.
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

/// Decimal, without a sign; nothing if there is anything else in `text`, or too many digits.
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
    std::uint64_t unit = 1;
    if (!text.empty()) {
        const char last = text.back();
        unit = last == 'K' || last == 'k'   ? std::uint64_t{1} << 10
               : last == 'M' || last == 'm' ? std::uint64_t{1} << 20
                                            : 1;
    }
    if (unit != 1) {
        text.remove_suffix(1);
    }
    const auto value = parse_decimal(text);
    if (!value || *value > UINT64_MAX / unit) {
        return std::nullopt;
    }
    return *value * unit;
}

/// "0x" and one to sixteen hexadecimal digits.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_hex(std::string_view text) noexcept {
    if (!text.starts_with("0x") || text.size() < 3 || text.size() > 18) {
        return std::nullopt;
    }
    text.remove_prefix(2);
    std::uint64_t value = 0;
    for (const char c : text) {
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) {
            return std::nullopt;
        }
        value = value * 16 + static_cast<std::uint64_t>(digit);
    }
    return value;
}

enum class Key : unsigned char { passes, stride, cpus, order, reader, check, report, tables, other };

struct KeyName {
    std::string_view name;
    Key key;
};
inline constexpr KeyName kKeyNames[] = {
    {"passes", Key::passes}, {"stride", Key::stride}, {"cpus", Key::cpus},     {"order", Key::order},
    {"reader", Key::reader}, {"check", Key::check},   {"report", Key::report}, {"tables", Key::tables},
};

[[nodiscard]] constexpr Key key_of(std::string_view name) noexcept {
    for (const KeyName& known : kKeyNames) {
        if (known.name == name) {
            return known.key;
        }
    }
    return Key::other;
}

/// Stores one option; returns why it cannot, or an empty text.
[[nodiscard]] constexpr std::string_view set_option(Options& options, Key key, std::string_view value) noexcept {
    switch (key) {
    case Key::passes: {
        const auto passes = parse_decimal(value);
        if (!passes || *passes == 0 || *passes > kMaxPasses) {
            return "not-1-to-1000000";
        }
        options.passes = *passes;
        return {};
    }
    case Key::stride: {
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
    case Key::cpus: {
        const auto cpus = parse_decimal(value);
        if (!cpus || *cpus == 0) {
            return "not-a-positive-number";
        }
        options.cpus = *cpus;
        return {};
    }
    case Key::order:
        if (value != "seq" && value != "random") {
            return "not-seq-or-random";
        }
        options.order = value == "random" ? Order::random : Order::sequential;
        return {};
    case Key::reader:
        if (value != "one" && value != "none") {
            return "not-one-or-none";
        }
        options.reader_one = value == "one";
        return {};
    case Key::check:
        if (value != "0" && value != "1") {
            return "not-0-or-1";
        }
        options.check = value == "1";
        return {};
    case Key::report:
        if (value != "live" && value != "end") {
            return "not-live-or-end";
        }
        options.report_at_end = value == "end";
        return {};
    case Key::tables: {
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
    case Key::other:
        return {};
    }
    return {};
}

} // namespace detail

/// Reads the words, separated by spaces, of a command line. Words that are none of ours are ignored, since the loader adds
/// its own (console=...). One of ours that is wrong or given twice is an error, and the first of these is returned.
[[nodiscard]] constexpr ParsedOptions parse_options(std::string_view command_line) noexcept {
    ParsedOptions parsed;
    bool seen[static_cast<std::size_t>(detail::Key::other)] = {};
    while (!command_line.empty() && !parsed.error) {
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
        const detail::Key key = detail::key_of(name);
        if (key == detail::Key::other) {
            continue;
        }
        bool& repeated = seen[static_cast<std::size_t>(key)];
        const std::string_view reason =
            repeated ? std::string_view("given-twice") : detail::set_option(parsed.options, key, value);
        if (!reason.empty()) {
            parsed.error = OptionError{name, value, reason};
        }
        repeated = true;
    }
    return parsed;
}

} // namespace vmm::guest
