#include "vmm/bench/heartbeat_output.hpp"

#include <charconv>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::bench {

namespace {

std::optional<double> number_behind(std::string_view line, std::string_view name) {
    const std::string key = " " + std::string(name) + "=";
    const std::size_t at = line.find(key);
    if (at == std::string_view::npos) {
        return std::nullopt;
    }
    double value = 0;
    const char* const begin = line.data() + at + key.size();
    const auto result = std::from_chars(begin, line.data() + line.size(), value);
    return result.ec == std::errc{} && value >= 0 ? std::optional(value) : std::nullopt;
}

} // namespace

std::optional<HeartbeatLine> parse_heartbeat(std::string_view line) {
    constexpr double kMicrosecond = 1e-6;
    const auto beats = number_behind(line, "beats");
    const auto p50 = number_behind(line, "late_p50_us");
    const auto p99 = number_behind(line, "late_p99_us");
    const auto most = number_behind(line, "late_max_us");
    const auto backward = number_behind(line, "backward");
    if (!line.starts_with("heartbeat ") || !beats || !p50 || !p99 || !most || !backward) {
        return std::nullopt;
    }
    return HeartbeatLine{*beats, *p50 * kMicrosecond, *p99 * kMicrosecond, *most * kMicrosecond, *backward};
}

HeartbeatLine heartbeat_of(const std::string& line) {
    const auto heartbeat = parse_heartbeat(line);
    if (!heartbeat) {
        throw Error("the guest's heartbeat is not what it should be: " + line.substr(0, 200));
    }
    return *heartbeat;
}

/// The guest's lines about its heartbeat, in order.
std::vector<HeartbeatLine> heartbeats_of(const std::string& console) {
    std::vector<HeartbeatLine> lines;
    for (std::size_t at = 0; (at = console.find("heartbeat ", at)) != std::string::npos;) {
        const std::size_t end = console.find('\n', at);
        if (end == std::string::npos) {
            break;
        }
        std::string line = console.substr(at, end - at);
        if (line.ends_with('\r')) {
            line.pop_back();
        }
        lines.push_back(heartbeat_of(line));
        at = end;
    }
    return lines;
}

void add_heartbeat(const HeartbeatLine& line, StateSample& sample) {
    sample[StateFigure::kLateP50] = line.late_p50;
    sample[StateFigure::kLateP99] = line.late_p99;
    sample[StateFigure::kLateMax] = line.late_max;
    sample[StateFigure::kBackward] = sample[StateFigure::kBackward].value_or(0) + line.backward;
}

} // namespace vmm::bench
