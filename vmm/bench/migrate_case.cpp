#include "vmm/bench/migrate_case.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"

namespace vmm::bench {

namespace {

void add_if_new(std::vector<MigrateCase>& cases, const MigrateCase& each) {
    if (can_migrate(each) && std::ranges::find(cases, each) == cases.end()) {
        cases.push_back(each);
    }
}

/// The first value of every list, and the cases that differ from it in one value.
std::vector<MigrateCase> cases_around_first(const MigrateLists& lists) {
    const MigrateCase first{lists.modes.front(), lists.page_sizes.front(), lists.vcpus.front(),
                            lists.links.front(), lists.streams.front(),    lists.fills.front()};
    std::vector<MigrateCase> cases;
    const auto vary = [&](auto MigrateCase::*member, const auto& values) {
        for (const auto& value : values) {
            MigrateCase each = first;
            each.*member = value;
            add_if_new(cases, each);
        }
    };
    vary(&MigrateCase::page_size, lists.page_sizes);
    vary(&MigrateCase::fill, lists.fills);
    vary(&MigrateCase::vcpus, lists.vcpus);
    vary(&MigrateCase::link, lists.links);
    vary(&MigrateCase::streams, lists.streams);
    vary(&MigrateCase::mode, lists.modes);
    return cases;
}

std::vector<MigrateCase> every_case(const MigrateLists& lists) {
    std::vector<MigrateCase> cases;
    for (const MigrateMode mode : lists.modes) {
        for (const PageSize page_size : lists.page_sizes) {
            for (const unsigned vcpus : lists.vcpus) {
                for (const MigrateLink link : lists.links) {
                    for (const unsigned streams : lists.streams) {
                        for (const MigrateFill fill : lists.fills) {
                            add_if_new(cases, {mode, page_size, vcpus, link, streams, fill});
                        }
                    }
                }
            }
        }
    }
    return cases;
}

} // namespace

std::string_view to_string(MigrateMode mode) noexcept {
    switch (mode) {
    case MigrateMode::kIdle:
        return "idle";
    case MigrateMode::kWorker:
        return "worker";
    case MigrateMode::kWriter:
        return "writer";
    case MigrateMode::kLocal:
        return "local";
    case MigrateMode::kPostCopy:
        return "post-copy";
    }
    return "";
}

std::string_view to_string(MigrateFill fill) noexcept {
    return fill == MigrateFill::kAll ? "all" : "none";
}

std::string_view to_string(MigrateLink link) noexcept {
    return link == MigrateLink::kUnix ? "unix" : "tcp";
}

std::string to_string(const MigrateCase& each) {
    const std::string streams = each.streams == 1 ? "" : vmm::format(" x {}", each.streams);
    return vmm::format("{}, {}, {} vCPU{}, {}{}{}", to_string(each.mode), vmm::to_string(each.page_size), each.vcpus,
                       each.vcpus == 1 ? "" : "s", to_string(each.link), streams,
                       each.fill == MigrateFill::kNone ? ", none" : "");
}

bool writes_always(MigrateMode mode) noexcept {
    return mode == MigrateMode::kWriter || mode == MigrateMode::kPostCopy;
}

bool copies_first(MigrateMode mode) noexcept {
    return mode == MigrateMode::kIdle || mode == MigrateMode::kWorker || mode == MigrateMode::kWriter;
}

bool can_migrate(const MigrateCase& each) noexcept {
    switch (each.mode) {
    case MigrateMode::kLocal:
        return each.link == MigrateLink::kUnix && each.streams == 1 && each.fill == MigrateFill::kAll;
    case MigrateMode::kPostCopy:
        return each.page_size != PageSize::k1G && each.fill == MigrateFill::kAll;
    case MigrateMode::kIdle:
    case MigrateMode::kWorker:
    case MigrateMode::kWriter:
        break;
    }
    return true;
}

std::vector<MigrateCase> migrate_cases(const MigrateLists& lists, bool every) {
    return every ? every_case(lists) : cases_around_first(lists);
}

} // namespace vmm::bench
