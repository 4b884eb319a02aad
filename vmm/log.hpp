// The library logs to the function it was given, and nowhere else.
#pragma once

#include <functional>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// A function that is called with one line, without its newline. What it throws ends the run, or the construction. An
/// empty sink means that nothing is logged. Threads: it may be called from any thread of the machine, and from several
/// at once.
using LogSink = std::function<void(LogLevel, std::string_view)>;

} // namespace vmm
VMM_API_END
