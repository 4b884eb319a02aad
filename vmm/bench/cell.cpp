#include "vmm/bench/cell.hpp"

#include "kvm/host/format.hpp"

#include <array>

namespace vmm::bench {

namespace {

template <typename Value, std::size_t size>
std::optional<Value> find_by_name(std::string_view text, const std::array<Value, size>& values) {
    for (const Value value : values) {
        if (to_string(value) == text) {
            return value;
        }
    }
    return std::nullopt;
}

} // namespace

std::string_view to_string(Method method) noexcept {
    switch (method) {
    case Method::kNone:
        return "none";
    case Method::kHost:
        return "host";
    case Method::kTouch:
        return "touch";
    case Method::kIoctl:
        return "ioctl";
    case Method::kIoctlThenTouch:
        return "ioctl+touch";
    case Method::kPool:
        return "pool";
    case Method::kReader:
        return "reader";
    }
    return "";
}

std::string_view to_string(Contender contender) noexcept {
    switch (contender) {
    case Contender::kVmm:
        return "vmm";
    case Contender::kQemu:
        return "qemu";
    case Contender::kCommand:
        return "command";
    }
    return "";
}

std::string_view to_string(Order order) noexcept {
    return order == Order::kRandom ? "random" : "seq";
}

std::optional<Method> parse_method(std::string_view text) {
    return find_by_name(text, kMethods);
}

std::optional<Contender> parse_contender(std::string_view text) {
    return find_by_name(text, kContenders);
}

std::optional<Order> parse_order(std::string_view text) {
    return find_by_name(text, kOrders);
}

std::optional<PageSize> parse_page_size(std::string_view text) {
    return find_by_name(text, kPageSizes);
}

bool uses_workers(Method method) noexcept {
    return method != Method::kNone && method != Method::kReader;
}

bool fills_second_level(Method method) noexcept {
    return method == Method::kTouch || method == Method::kIoctl || method == Method::kIoctlThenTouch ||
           method == Method::kPool;
}

std::string method_name(const Cell& cell, bool show_workers) {
    std::string name(to_string(cell.method));
    if (cell.contender != Contender::kVmm) {
        name = to_string(cell.contender);
        name += cell.method == Method::kHost ? " prealloc" : cell.method == Method::kReader ? " reader" : "";
    }
    if (show_workers && uses_workers(cell.method)) {
        name += vmm::format(", {} worker{}", cell.workers, cell.workers == 1 ? "" : "s");
    }
    return name;
}

std::string shape_name(const Cell& cell) {
    const std::string pages =
        cell.page_size == PageSize::kThp ? "thp" : vmm::format("{} pages", vmm::to_string(cell.page_size));
    return vmm::format("{}, {}, {} vCPU{}{}", pages, format_bytes(cell.memory_bytes), cell.vcpus,
                       cell.vcpus == 1 ? "" : "s", cell.order == Order::kRandom ? ", random" : "");
}

std::string to_string(const Cell& cell) {
    return shape_name(cell) + ", " + method_name(cell, true);
}

bool same_shape(const Cell& one, const Cell& other) noexcept {
    return one.memory_bytes == other.memory_bytes && one.vcpus == other.vcpus && one.page_size == other.page_size &&
           one.order == other.order;
}

} // namespace vmm::bench
