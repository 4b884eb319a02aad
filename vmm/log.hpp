// How the library speaks: into a function it was given, and nowhere else.
#pragma once

#include <functional>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Takes one line without its newline. May be called from any thread of ours, several at once. What it throws ends the
/// run, or the construction. Empty: silence.
using LogSink = std::function<void(LogLevel, std::string_view)>;

} // namespace vmm
VMM_API_END
