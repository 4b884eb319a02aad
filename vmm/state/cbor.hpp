// CBOR (RFC 8949) from sources that need not be trusted.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace vmm {

/// A value as it is written and read.
using CborValue = nlohmann::json;

[[nodiscard]] std::vector<std::byte> to_cbor(const CborValue& value);

/// Reads the value that is encoded in `bytes`. Lists and objects may be nested 16 deep, and may have two million values
/// and names in all. `what` is for messages. Throws Error if `bytes` are no such value, or if it is larger.
[[nodiscard]] CborValue from_cbor(std::span<const std::byte> bytes, std::string_view what);

} // namespace vmm
