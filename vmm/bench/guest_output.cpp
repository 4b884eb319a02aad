#include "vmm/bench/guest_output.hpp"

#include <algorithm>
#include <charconv>
#include <string>

#include "kvm/host/error.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

namespace {

constexpr std::size_t kMaxCpus = 1024;
constexpr std::size_t kMaxPasses = 1'000'000;

/// The number after "NAME=" in a line.
std::optional<std::uint64_t> number_of(std::string_view line, std::string_view name) {
    for (std::size_t at = 0; (at = line.find(name, at)) != std::string_view::npos; ++at) {
        const std::size_t end = at + name.size();
        if ((at == 0 || line[at - 1] == ' ') && end < line.size() && line[end] == '=') {
            std::uint64_t value = 0;
            const auto result = std::from_chars(line.data() + end + 1, line.data() + line.size(), value);
            return result.ec == std::errc{} ? std::optional(value) : std::nullopt;
        }
    }
    return std::nullopt;
}

template <typename Visit>
void for_each_line(std::string_view text, Visit visit) {
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        std::string_view line = text.substr(0, end);
        if (line.ends_with('\r')) {
            line.remove_suffix(1);
        }
        visit(line);
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

void add_pass(GuestOutput& output, std::string_view line) {
    const auto pass = number_of(line, "pass");
    const auto cpu = number_of(line, "cpu");
    const auto cycles = number_of(line, "cycles");
    if (!pass || !cpu || !cycles || *pass == 0 || *pass > kMaxPasses || *cpu >= kMaxCpus) {
        return;
    }
    // The guest prints the passes in order. A line out of order is not the guest's.
    if (*pass == output.pass_cycles.size() + 1) {
        output.pass_cycles.emplace_back();
    }
    if (*pass == output.pass_cycles.size() && *cpu == output.pass_cycles.back().size()) {
        output.pass_cycles.back().push_back(*cycles);
    }
}

double seconds(std::uint64_t cycles, double seconds_per_cycle) {
    return static_cast<double>(cycles) * seconds_per_cycle;
}

} // namespace

GuestOutput parse_guest_output(std::string_view console) {
    GuestOutput output;
    std::string problem;
    for_each_line(console, [&](std::string_view line) {
        if (line.starts_with("pass=reader ")) {
            output.reader_cycles = number_of(line, "cycles");
        } else if (line.starts_with("pass=")) {
            add_pass(output, line);
        } else if (line.starts_with("summary ")) {
            output.cpus = number_of(line, "cpus").value_or(0);
        } else if (line.starts_with("error ") && problem.empty()) {
            problem = line.substr(0, 200);
        }
    });
    if (!problem.empty()) {
        throw Error("the guest says: " + problem);
    }
    const bool whole = !output.pass_cycles.empty() && std::ranges::all_of(output.pass_cycles, [&](const auto& pass) {
        return pass.size() == output.cpus;
    });
    if (output.cpus == 0 || !whole) {
        throw Error("the guest did not come to its end: its console has no whole summary");
    }
    return output;
}

bool has_summary(std::string_view console) noexcept {
    const std::size_t at = console.find("\nsummary ");
    return at != std::string_view::npos && console.find('\n', at + 1) != std::string_view::npos;
}

void add_guest_figures(const GuestOutput& output, double seconds_per_cycle, Sample& sample) {
    std::vector<double> slowest;
    std::vector<double> middle;
    for (const std::vector<std::uint64_t>& pass : output.pass_cycles) {
        std::vector<double> times;
        for (const std::uint64_t cycles : pass) {
            times.push_back(seconds(cycles, seconds_per_cycle));
        }
        slowest.push_back(*std::ranges::max_element(times));
        middle.push_back(median(times));
    }
    sample[Figure::kFirst] = slowest.front();
    sample[Figure::kFirstMedian] = middle.front();
    if (slowest.size() > 1) {
        sample[Figure::kSteady] = median({slowest.begin() + 1, slowest.end()});
        sample[Figure::kSteadyMedian] = median({middle.begin() + 1, middle.end()});
    }
    if (output.reader_cycles) {
        sample[Figure::kReader] = seconds(*output.reader_cycles, seconds_per_cycle);
    }
    derive(sample);
}

} // namespace vmm::bench
