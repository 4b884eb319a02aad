// JSON that programs print or write.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kvm/host/error.hpp"

namespace vmm::bench {

/// Calls `read` with `text` as JSON. Throws Error, which names `what`.
template <typename Read>
auto with_json(const std::string& text, std::string_view what, Read read) {
    try {
        return read(nlohmann::json::parse(text));
    } catch (const nlohmann::json::exception& error) {
        throw Error(std::string(what) + " is not what it should be: " + error.what());
    }
}

} // namespace vmm::bench
