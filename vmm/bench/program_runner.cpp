#include "vmm/bench/program_runner.hpp"

#include <fstream>
#include <iterator>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::bench {

std::string read_text_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator(file), {}};
}

ChildEnd ProgramRunner::try_run(std::vector<std::string> words, const std::string& input) {
    ChildSpec spec;
    spec.words = std::move(words);
    spec.input = input;
    spec.timeout_seconds = timeout_seconds_;
    spec.stop_fd = stop_.fd();
    ChildEnd end = run_child(spec);
    cost_.runs += end.seconds;
    cost_.own_cpu += end.own_cpu_seconds;
    if (end.stopped) {
        throw Error("a stop was requested");
    }
    return end;
}

std::string ProgramRunner::run(std::vector<std::string> words, const std::string& input) {
    ChildEnd end = try_run(std::move(words), input);
    if (!end.succeeded()) {
        throw Error(end.problem());
    }
    return std::move(end.output);
}

std::string ProgramRunner::ask(const std::string& socket, std::vector<std::string> words) {
    ChildEnd end = try_ask(socket, std::move(words));
    if (!end.succeeded()) {
        throw Error(end.problem());
    }
    return std::move(end.output);
}

ChildEnd ProgramRunner::try_ask(const std::string& socket, std::vector<std::string> words) {
    words.insert(words.begin(), {program_, "ctl", socket});
    words.emplace_back("--json");
    return try_run(std::move(words), "");
}

} // namespace vmm::bench
