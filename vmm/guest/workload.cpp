#include "vmm/guest/workload.hpp"

#include <cstdint>
#include <string_view>

#include "vmm/guest/cpus.hpp"
#include "vmm/guest/machine.hpp"
#include "vmm/guest/page_order.hpp"
#include "vmm/guest/serial.hpp"
#include "vmm/guest/slots.hpp"

namespace vmm::guest {
namespace {

/// The result of one CPU in one pass.
struct Result {
    std::uint64_t pages = 0;
    std::uint64_t cycles = 0;
    std::uint64_t errors = 0;
};

// CPU 0 writes these between the steps, and all CPUs read them in a step.
constinit WorkloadPlan current;
constinit Slots slots;
constinit std::uint64_t pass = 0; // 0 is the reader's pass
/// One row for each pass, or only one if the results of a pass are printed before the next. A row has an element for
/// each CPU, and only that CPU writes to it.
constinit Result* results = nullptr;

[[nodiscard]] Result& result_of(std::size_t cpu) noexcept {
    return results[(current.report_at_end() ? pass * current.cpus : 0) + cpu];
}

// The slots are in free memory, all of which is mapped, so the casts are in bounds. They are volatile because the
// access itself is the purpose.
std::uint64_t read_word(std::uint64_t address) noexcept {
    return *reinterpret_cast<const volatile std::uint64_t*>(address);
}
void write_word(std::uint64_t address, std::uint64_t value) noexcept {
    *reinterpret_cast<volatile std::uint64_t*>(address) = value;
}

/// What a pass writes to an address. It differs in each pass and at each address, so no two pages are ever alike.
struct Pattern {
    explicit Pattern(std::uint64_t of_pass) noexcept : tag(of_pass * 0x9e3779b97f4a7c15) {}
    [[nodiscard]] std::uint64_t operator()(std::uint64_t address) const noexcept { return address ^ tag; }
    std::uint64_t tag;
};

template <typename Visit>
void visit_share(Share share, std::uint64_t seed, Visit visit) noexcept {
    if (current.options.order == Order::kSequential) {
        slots.for_each(share, visit);
    } else {
        PageOrder(share.count, seed).for_each([&](std::uint64_t number) {
            visit(slots.address(share.first + number));
        });
    }
}

void write_share(std::size_t cpu) noexcept {
    const Share share = share_of(slots.count(), cpu, current.cpus);
    const Pattern now(pass);
    const Pattern before(pass - 1);
    std::uint64_t errors = 0;
    const std::uint64_t start = cycles();
    if (current.options.check && pass > 1) {
        visit_share(share, cpu, [&](std::uint64_t address) {
            errors += read_word(address) != before(address) ? 1 : 0;
            write_word(address, now(address));
        });
    } else {
        visit_share(share, cpu, [&](std::uint64_t address) { write_word(address, now(address)); });
    }
    result_of(cpu) = {share.count, cycles() - start, errors};
}

void read_everything(std::size_t cpu) noexcept {
    if (cpu != 0) {
        return;
    }
    const std::uint64_t start = cycles();
    visit_share({0, slots.count()}, cpu, [](std::uint64_t address) { static_cast<void>(read_word(address)); });
    result_of(cpu) = {slots.count(), cycles() - start, 0};
}

void print_result(Line line, std::size_t cpu) noexcept {
    const Result& result = result_of(cpu);
    line.field("cpu", cpu)
        .field("pages", result.pages)
        .field("cycles", result.cycles)
        .field("cycles_per_page", result.pages == 0 ? 0 : result.cycles / result.pages);
    if (current.options.check) {
        line.field("errors", result.errors);
    }
    serial::print(line);
}

/// Prints the results of the pass with the number `pass`.
void print_pass() noexcept {
    if (pass == 0) {
        print_result(Line().field("pass", "reader"), 0);
        return;
    }
    for (std::size_t cpu = 0; cpu < current.cpus; ++cpu) {
        print_result(Line().field("pass", pass), cpu);
    }
}

/// The content of the summary. The time of a pass is that of its slowest CPU.
struct Summary {
    std::uint64_t first_cycles = 0;
    std::uint64_t last_cycles = 0;
    std::uint64_t errors = 0;

    void add_pass() noexcept {
        last_cycles = 0;
        for (std::size_t cpu = 0; cpu < current.cpus; ++cpu) {
            const Result& result = result_of(cpu);
            last_cycles = result.cycles > last_cycles ? result.cycles : last_cycles;
            errors += result.errors;
        }
        first_cycles = pass == 1 ? last_cycles : first_cycles;
    }

    void print() const noexcept {
        Line line("summary");
        line.field("cpus", current.cpus)
            .field("passes", current.options.passes)
            .field("pages", slots.count())
            .field("first_cycles", first_cycles)
            .field("last_cycles", last_cycles)
            .field_hundredths("first_over_last", ratio_in_hundredths(first_cycles, last_cycles));
        if (current.options.check) {
            line.field("errors", errors);
        }
        serial::print(line);
    }
};

} // namespace

std::uint64_t WorkloadPlan::result_bytes() const noexcept {
    const std::uint64_t rows = report_at_end() ? options.passes + 1 : 1;
    return (rows * cpus * sizeof(Result) + kPageBytes - 1) / kPageBytes * kPageBytes;
}

void plan_workload(const WorkloadPlan& plan, const MemoryRanges& memory, std::uint64_t results_address) noexcept {
    current = plan;
    slots = Slots(memory, plan.options.stride);
    // This is in bounds, because the caller gives as much memory as result_bytes() says.
    results = reinterpret_cast<Result*>(results_address);
}

std::uint64_t slot_count() noexcept {
    return slots.count();
}

void touch(std::uint64_t first, std::uint64_t count) noexcept {
    for (std::uint64_t i = first; i < slots.count() && i - first < count; ++i) {
        const std::uint64_t address = slots.address(i);
        write_word(address, read_word(address));
    }
}

void run_passes() noexcept {
    const std::uint64_t first_pass = current.options.reader_one ? 0 : 1;
    Summary summary;
    for (pass = first_pass; pass <= current.options.passes; ++pass) {
        run_on_all(pass == 0 ? read_everything : write_share);
        if (pass != 0) {
            summary.add_pass();
        }
        if (!current.report_at_end()) {
            print_pass();
        }
    }
    if (current.report_at_end()) {
        stop_others();
        for (pass = first_pass; pass <= current.options.passes; ++pass) {
            print_pass();
        }
    }
    summary.print();
}

} // namespace vmm::guest
