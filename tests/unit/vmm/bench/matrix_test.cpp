// From lists to cells, the cells that fit a host, and the meaning of presets.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "support/host_errors.hpp"
#include "vmm/bench/contenders.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/presets.hpp"

namespace vmm::bench {
namespace {

Matrix small_matrix() {
    Matrix matrix;
    matrix.memory_bytes = {64 * kMiB, 128 * kMiB};
    matrix.vcpus = {1};
    matrix.workers = {1, 2};
    matrix.page_sizes = {PageSize::k4K, PageSize::k2M};
    matrix.methods = {Method::kNone, Method::kTouch};
    return matrix;
}

HostRoom roomy_host() {
    HostRoom room;
    room.available_bytes = 16 * kGiB;
    room.may_raise_pools = true;
    room.most_vcpus = 254;
    return room;
}

/// The message of check_fits, or nothing if all cells fit.
std::string refusal(const std::vector<Cell>& cells, const HostRoom& room) {
    return testing::error_of([&] {
        check_fits(cells, room);
        return 0;
    });
}

TEST(BenchMatrix, IsEveryCombinationOnce) {
    const std::vector<Cell> cells = cells_of(small_matrix());
    // By size and page size: `none` once, for any number of workers, and `touch` for each number of workers.
    EXPECT_EQ(cells.size(), 2U * 2U * 3U);
    std::set<std::string> names;
    for (const Cell& cell : cells) {
        names.insert(to_string(cell));
    }
    EXPECT_EQ(names.size(), cells.size());
}

TEST(BenchMatrix, IsMeasuredWholeInEachRoundAndInAnotherOrder) {
    for (unsigned round = 0; round < 5; ++round) {
        std::vector<std::size_t> order = round_order(12, round);
        EXPECT_EQ(order, round_order(12, round));
        EXPECT_NE(order, round_order(12, round + 1));
        std::sort(order.begin(), order.end());
        for (std::size_t i = 0; i < order.size(); ++i) {
            EXPECT_EQ(order[i], i);
        }
    }
    EXPECT_TRUE(round_order(0, 0).empty());
}

TEST(BenchMatrix, PutsOtherVmmsBesideEachShape) {
    Matrix matrix = small_matrix();
    matrix.workers = {2};
    matrix.qemu = true;
    matrix.command = true;
    const std::vector<Cell> cells = cells_of(matrix);
    EXPECT_EQ(cells.size(), 4U * (2U + 2U + 1U));
    EXPECT_EQ(std::count_if(
                  cells.begin(), cells.end(),
                  [](const Cell& cell) { return cell.contender == Contender::kQemu && cell.method == Method::kHost; }),
              4);
}

TEST(BenchMatrix, WordsOfCellsAreReadAsTheyAreWritten) {
    for (const Method method : kMethods) {
        EXPECT_EQ(parse_method(to_string(method)), method);
    }
    for (const PageSize page_size : {PageSize::k4K, PageSize::kThp, PageSize::k2M, PageSize::k1G}) {
        EXPECT_EQ(parse_page_size(vmm::to_string(page_size)), page_size);
    }
    EXPECT_EQ(parse_order("random"), Order::kRandom);
    EXPECT_EQ(parse_contender("qemu"), Contender::kQemu);
    EXPECT_EQ(parse_method("all"), std::nullopt);
    EXPECT_EQ(parse_page_size("4k"), std::nullopt);
}

TEST(BenchFit, AcceptsWhatFits) {
    EXPECT_EQ(refusal(cells_of(small_matrix()), roomy_host()), "");
}

TEST(BenchFit, NamesTheLargestCellThatDoesNot) {
    Matrix matrix = small_matrix();
    matrix.memory_bytes = {64 * kMiB, 32 * kGiB};
    matrix.page_sizes = {PageSize::kThp};
    const std::string text = refusal(cells_of(matrix), roomy_host());
    EXPECT_NE(text.find("32 GiB"), std::string::npos) << text;
    EXPECT_NE(text.find("16 GiB available"), std::string::npos) << text;
}

TEST(BenchFit, CountsThePoolThatOtherCellsNeed) {
    Matrix matrix = small_matrix();
    matrix.memory_bytes = {10 * kGiB};
    EXPECT_NE(refusal(cells_of(matrix), roomy_host()), "") << "10 GiB of 4K beside a pool of 10 GiB";
    HostRoom room = roomy_host();
    room.free_2m_bytes = 10 * kGiB;
    EXPECT_EQ(refusal(cells_of(matrix), room), "");
}

TEST(BenchFit, OnlyRootRaisesPools) {
    HostRoom room = roomy_host();
    room.may_raise_pools = false;
    const std::string text = refusal(cells_of(small_matrix()), room);
    EXPECT_NE(text.find("nr_hugepages"), std::string::npos) << text;
    EXPECT_NE(text.find("2M pages, 128 MiB"), std::string::npos) << text;
    room.free_2m_bytes = 128 * kMiB;
    EXPECT_EQ(refusal(cells_of(small_matrix()), room), "");
}

TEST(BenchFit, RefusesMoreVcpusThanAVmCanHave) {
    Matrix matrix = small_matrix();
    matrix.vcpus = {1, 200};
    HostRoom room = roomy_host();
    room.most_vcpus = 100;
    EXPECT_NE(refusal(cells_of(matrix), room).find("200 vCPUs"), std::string::npos);
}

TEST(BenchPreset, RfcIsScaledToTheHostAndFullOnDemand) {
    const Matrix scaled = preset_facts(Preset::kRfc, roomy_host(), {2, false, false}, false).matrix;
    EXPECT_EQ(scaled.vcpus, std::vector<unsigned>{2});
    EXPECT_EQ(scaled.memory_bytes, std::vector<std::uint64_t>{4 * kGiB});
    EXPECT_EQ(refusal(cells_of(scaled), roomy_host()), "");
    const Matrix full = preset_facts(Preset::kRfc, roomy_host(), {2, false, false}, true).matrix;
    EXPECT_EQ(full.vcpus, std::vector<unsigned>{32});
    EXPECT_EQ(full.memory_bytes, std::vector<std::uint64_t>{64 * kGiB});
    EXPECT_NE(refusal(cells_of(full), roomy_host()), "") << "64 GiB on 16";
}

TEST(BenchPreset, LeavesOutWhatTheHostDoesNotOffer) {
    HostRoom room = roomy_host();
    room.may_raise_pools = false;
    const Matrix matrix = preset_facts(Preset::kQuick, room, {2, false, false}, false).matrix;
    EXPECT_EQ(std::count(matrix.methods.begin(), matrix.methods.end(), Method::kIoctl), 0);
    EXPECT_EQ(std::count(matrix.page_sizes.begin(), matrix.page_sizes.end(), PageSize::k2M), 0);
    const Matrix all = preset_facts(Preset::kQuick, roomy_host(), {2, true, false}, false).matrix;
    const auto pools = [](bool thp_pool) {
        const PresetHost host{2, false, false, thp_pool};
        const std::vector<Cell> cells = cells_of(preset_facts(Preset::kQuick, roomy_host(), host, false).matrix);
        return std::ranges::count_if(cells, [](const Cell& cell) { return cell.method == Method::kPool; });
    };
    EXPECT_EQ(pools(true), 3);
    EXPECT_EQ(pools(false), 2) << "with transparent huge pages there is none";
    EXPECT_EQ(std::count(all.methods.begin(), all.methods.end(), Method::kIoctl), 1);
    EXPECT_EQ(std::count(all.methods.begin(), all.methods.end(), Method::kIoctlThenTouch), 0);
    EXPECT_EQ(std::count(all.page_sizes.begin(), all.page_sizes.end(), PageSize::k2M), 1);
}

TEST(BenchPreset, TakesTheIoctlWithTouchesWhereTheHostIsItselfAGuest) {
    for (const bool has_ioctl : {false, true}) {
        const Matrix matrix = preset_facts(Preset::kQuick, roomy_host(), {2, has_ioctl, true}, false).matrix;
        EXPECT_EQ(std::count(matrix.methods.begin(), matrix.methods.end(), Method::kIoctlThenTouch), has_ioctl ? 1 : 0);
    }
}

TEST(BenchPreset, FitsSmallHostsToo) {
    HostRoom room = roomy_host();
    room.available_bytes = kGiB;
    for (const Preset preset : {Preset::kNone, Preset::kQuick, Preset::kRfc, Preset::kScale}) {
        EXPECT_EQ(refusal(cells_of(preset_facts(preset, room, {2, true, false}, false).matrix), room), "")
            << to_string(preset);
    }
}

TEST(BenchPreset, ScaleDoublesMemoryAndWorkers) {
    const Matrix matrix = preset_facts(Preset::kScale, roomy_host(), {6, false, false}, false).matrix;
    EXPECT_EQ(matrix.workers, (std::vector<unsigned>{1, 2, 4, 6}));
    EXPECT_EQ(matrix.memory_bytes, (std::vector<std::uint64_t>{256 * kMiB, 512 * kMiB, kGiB, 2 * kGiB}));
}

Cell cell_of(Contender contender, Method method, PageSize page_size) {
    Cell cell;
    cell.contender = contender;
    cell.memory_bytes = 256 * kMiB;
    cell.vcpus = 2;
    cell.workers = 3;
    cell.page_size = page_size;
    cell.method = method;
    return cell;
}

/// True if `words` has `one` followed by `other`.
bool has_pair(const std::vector<std::string>& words, const std::string& one, const std::string& other) {
    const std::vector<std::string> pair{one, other};
    return std::search(words.begin(), words.end(), pair.begin(), pair.end()) != words.end();
}

TEST(BenchContender, VmmIsToldTheMethod) {
    const auto words =
        vmm_words(cell_of(Contender::kVmm, Method::kTouch, PageSize::k2M), RunSettings(), "/vmm", "report", "console");
    EXPECT_EQ(words.front(), "/vmm");
    EXPECT_TRUE(has_pair(words, "--prefault", "all"));
    EXPECT_TRUE(has_pair(words, "--prefault-method", "touch"));
    EXPECT_TRUE(has_pair(words, "--prefault-workers", "3"));
    EXPECT_TRUE(has_pair(words, "--page-size", "2M"));
}

TEST(BenchContender, VmmIsToldThePool) {
    RunSettings settings;
    settings.pool = "/tmp/pool";
    const auto words = vmm_words(cell_of(Contender::kVmm, Method::kPool, PageSize::k2M), settings, "/vmm", "r", "c");
    EXPECT_TRUE(has_pair(words, "--memory-from", "/tmp/pool"));
    EXPECT_TRUE(has_pair(words, "--prefault-method", "auto"));
    EXPECT_TRUE(has_pair(words, "--prefault", "all"));
}

TEST(BenchContender, ReaderPopulatesNothingAndAsksTheGuestToRead) {
    const auto words =
        vmm_words(cell_of(Contender::kVmm, Method::kReader, PageSize::k4K), RunSettings(), "vmm", "r", "c");
    EXPECT_TRUE(has_pair(words, "--prefault", "none"));
    EXPECT_TRUE(has_pair(words, "--cmdline", "passes=5 order=seq reader=one"));
}

TEST(BenchContender, QemuPreallocatesWithAsManyThreads) {
    const auto with = qemu_words(cell_of(Contender::kQemu, Method::kHost, PageSize::k2M), RunSettings(), "k", "c");
    EXPECT_TRUE(has_pair(with, "-object",
                         "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,id=ram,size=256M,prealloc=on,"
                         "prealloc-threads=3"));
    const auto without = qemu_words(cell_of(Contender::kQemu, Method::kNone, PageSize::k4K), RunSettings(), "k", "c");
    EXPECT_TRUE(has_pair(without, "-object", "memory-backend-ram,id=ram,size=256M"));
    EXPECT_TRUE(has_pair(without, "-smp", "2"));
}

TEST(BenchContender, TemplateIsFilledIn) {
    RunSettings settings;
    settings.command = "x -k {kernel} -a {cmdline} -m {memory_mib} -c {vcpus}";
    EXPECT_EQ(expand_template(cell_of(Contender::kCommand, Method::kNone, PageSize::k4K), settings, "/g.elf"),
              "x -k /g.elf -a 'passes=5 order=seq reader=none' -m 256 -c 2");
}

TEST(BenchContender, TemplateWithUnknownNamesOrNoKernelIsRefused) {
    const Cell cell = cell_of(Contender::kCommand, Method::kNone, PageSize::k4K);
    RunSettings settings;
    for (const char* const text : {"x {kernel} {colour}", "x {memory_mib}", "x {kernel", "x"}) {
        settings.command = text;
        EXPECT_THROW(static_cast<void>(expand_template(cell, settings, "k")), Error) << text;
    }
}

} // namespace
} // namespace vmm::bench
