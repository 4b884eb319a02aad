// Compiles the rules of this folder with libseccomp, while vmm is built, and writes them as a C++ source file:
//
//     vmm_compile_filters FILE
#include <linux/filter.h>
#include <seccomp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/filters/filter_builder.hpp"
#include "vmm/sandbox/filters/process_rules.hpp"
#include "vmm/sandbox/filters/thread_rules.hpp"

namespace vmm {
namespace {

constexpr int kMostCalls = 1024; ///< x86-64 has some 470

constexpr const char* kBeginning = R"(// Made by vmm_compile_filters from the rules in vmm/sandbox/filters/.
#include "vmm/sandbox/compiled_filters.hpp"

namespace vmm::compiled_filters {

namespace {

)";

// In the names of programs, the first number is the Refusal, and the second the kind of a thread or
// ProcessNeeds::network.
constexpr const char* kEnd = R"(
} // namespace

std::span<const sock_filter> of_thread(ThreadKind kind, Refusal refusal) noexcept {
    const auto number = static_cast<unsigned>(kind);
    switch (refusal) {
    case Refusal::kSignal:
        return kThreads0[number];
    case Refusal::kLog:
        return kThreads1[number];
    }
    return {};
}

std::span<const sock_filter> of_process(const ProcessNeeds& needs, Refusal refusal) noexcept {
    if (refusal == Refusal::kSignal) {
        return needs.network ? std::span<const sock_filter>(kProcess0_1) : kProcess0_0;
    }
    return needs.network ? std::span<const sock_filter>(kProcess1_1) : kProcess1_0;
}

std::string_view name_of_call(int number) noexcept {
    constexpr int kCalls = sizeof(kNameAt) / sizeof(kNameAt[0]);
    return number >= 0 && number < kCalls ? kNames + kNameAt[number] : "";
}

} // namespace vmm::compiled_filters
)";

void write_program(std::ostream& to, const std::string& name, const std::vector<sock_filter>& program) {
    to << "constexpr sock_filter " << name << "[] = {";
    for (const sock_filter& instruction : program) {
        to << '{' << instruction.code << ',' << unsigned{instruction.jt} << ',' << unsigned{instruction.jf} << ','
           << instruction.k << "},";
    }
    to << "};\n";
}

void write_threads(std::ostream& to, Refusal refusal) {
    const std::string name = "kThread" + std::to_string(static_cast<unsigned>(refusal)) + "_";
    std::string all;
    for (unsigned kind = 0; kind <= static_cast<unsigned>(kLastThreadKind); ++kind) {
        FilterBuilder filter(refusal);
        allow_thread(filter, static_cast<ThreadKind>(kind));
        write_program(to, name + std::to_string(kind), filter.take());
        all += name + std::to_string(kind) + ",";
    }
    to << "constexpr std::span<const sock_filter> kThreads" << static_cast<unsigned>(refusal) << "[] = {" << all
       << "};\n";
}

void write_process(std::ostream& to, Refusal refusal, bool network) {
    FilterBuilder filter(refusal, FilterBuilder::Otherwise::kEperm);
    allow_process(filter, {.network = network});
    const std::vector<sock_filter> program = filter.take();
    const auto places = std::count_if(program.begin(), program.end(), [](const sock_filter& instruction) {
        return instruction.k == compiled_filters::kAnyProcess;
    });
    if (places != 1) {
        throw Error("cannot compile the filter of a process: its number stands in it " + std::to_string(places) +
                    " times, and not once");
    }
    write_program(to, "kProcess" + std::to_string(static_cast<unsigned>(refusal)) + (network ? "_1" : "_0"), program);
}

/// Writes all names as one text. So there are no pointers that the start of the program would have to relocate.
void write_names(std::ostream& to) {
    struct Free {
        void operator()(char* text) const noexcept { std::free(text); }
    };
    std::string places;
    std::size_t length = 1; // the empty name is first
    to << "constexpr char kNames[] = \"\\0\"";
    for (int number = 0; number < kMostCalls; ++number) {
        const std::unique_ptr<char, Free> known(::seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number));
        const std::string name = known ? known.get() : "";
        places += (name.empty() ? "0" : std::to_string(length)) + ",";
        if (!name.empty()) {
            to << "\n    \"" << name << "\\0\"";
            length += name.size() + 1;
        }
    }
    to << ";\nconstexpr std::uint16_t kNameAt[] = {" << places << "};\n";
}

void compile(std::ostream& to) {
    to << kBeginning;
    for (const Refusal refusal : {Refusal::kSignal, Refusal::kLog}) {
        write_threads(to, refusal);
        write_process(to, refusal, false);
        write_process(to, refusal, true);
    }
    write_names(to);
    to << kEnd;
}

} // namespace
} // namespace vmm

int main(int count, char** words) {
    if (count != 2) {
        std::cerr << "usage: vmm_compile_filters FILE\n";
        return 2;
    }
    try {
        std::ofstream file(words[1]);
        vmm::compile(file);
        file.close();
        if (file) {
            return 0;
        }
        std::cerr << "vmm_compile_filters: cannot write " << words[1] << "\n";
    } catch (const std::exception& error) {
        std::cerr << "vmm_compile_filters: " << error.what() << "\n";
    }
    return 1;
}
