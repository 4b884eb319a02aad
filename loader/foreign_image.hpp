// Describes a file that was given as a kernel but is none, or is one that we cannot boot.
#pragma once

#include <string>
#include <string_view>

#include "loader/image_file.hpp"

namespace vmm::loader {

struct ForeignImage {
    std::string what;        ///< completes "it is ..."
    std::string_view advice; ///< what the reader can do; may be empty
};

/// Guesses from the first bytes what a file is that is neither an ELF file nor a bzImage.
[[nodiscard]] ForeignImage describe_foreign_image(const ImageFile& file);

/// The advice for a file that ends too early or contradicts itself.
inline constexpr std::string_view kDamaged = "the file is damaged or incomplete";

/// Throws Error "cannot boot <file>: <why> (<advice>)". If the advice is empty, it is left out.
[[noreturn]] void refuse_kernel(const ImageFile& file, std::string_view why, std::string_view advice = {});

} // namespace vmm::loader
