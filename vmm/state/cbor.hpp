// CBOR (RFC 8949), from those who need not be trusted.
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

/// The value that `bytes` are. It is bounded: lists and objects are nested 16 deep at most, and there are two million
/// values and names in it at most. `what` is for messages.
/// Throws Error: it is none.
[[nodiscard]] CborValue from_cbor(std::span<const std::byte> bytes, std::string_view what);

} // namespace vmm
