// The commands of the program, and the texts around their options.
#pragma once

#include <span>

#include "vmm/cli/option.hpp"

namespace vmm {

/// One command, or the program itself.
struct CommandRow {
    const char* name;
    const char* help;
    const char* notes;    ///< the text below the options
    Place place;          ///< where its options are allowed
    bool is_shown = true; ///< whether help, manual pages and completions name it
};

/// The row of the program itself.
[[nodiscard]] const CommandRow& program_row() noexcept;

/// The commands that follow the program's name.
[[nodiscard]] std::span<const CommandRow> command_rows();

/// The commands that follow `vmm bench`.
[[nodiscard]] std::span<const CommandRow> bench_rows() noexcept;

/// The option that every command has, and the program, too.
[[nodiscard]] const Option& help_option();

/// The option that only the program has.
[[nodiscard]] const Option& version_option();

} // namespace vmm
