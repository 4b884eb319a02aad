// The built-in guest, as the loader sees it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "loader/image_file.hpp"
#include "loader/kernel.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/loader_images.hpp"
#include "vmm/guest/guest_image.hpp"
#include "vmm/machine/guest_images.hpp"

namespace vmm {
namespace {

loader::Kernel built_in_kernel() {
    return loader::Kernel::parse(loader::ImageFile::from_bytes("the built-in guest", builtin_guest_image()));
}

TEST(BuiltInGuest, IsEnteredByPvh) {
    EXPECT_EQ(built_in_kernel().protocol(), loader::EntryProtocol::kPvh);
}

TEST(BuiltInGuest, DeclaresThatItTakesPageTables) {
    EXPECT_TRUE(built_in_kernel().takes_page_tables());
}

TEST(BuiltInGuest, DeclaresThatItTakesADeviceTree) {
    EXPECT_EQ(built_in_kernel().device_tree_hand_over(), loader::DeviceTreeHandOver::kCommandLine);
}

std::shared_ptr<const std::vector<std::byte>> shared(std::vector<std::byte> bytes) {
    return std::make_shared<const std::vector<std::byte>>(std::move(bytes));
}

std::string opening_of(const Config& config) {
    return testing::error_of([&] { return GuestFiles::open(config); });
}

TEST(GuestFiles, KernelsOf32BitsAreToldOfTheHardwareByADeviceTree) {
    loader::testing::TestBzImage image = loader::testing::make_bzimage();
    image.set(0x236, std::uint16_t{0});
    Config config;
    config.kernel_image = shared(image.bytes);
    for (const auto hardware : {HardwareDescription::kAcpi, HardwareDescription::kFdt, HardwareDescription::kBoth}) {
        config.hardware = hardware;
        EXPECT_EQ(opening_of(config), "");
    }
    image.set(0x206, std::uint16_t{0x208});
    config.kernel_image = shared(image.bytes);
    EXPECT_TRUE(testing::mentions(opening_of(config), "boot protocol is older than 2.09")) << opening_of(config);
    config.kernel_image = shared(loader::testing::make_pvh_elf().bytes());
    EXPECT_TRUE(testing::mentions(opening_of(config), "PVH kernel other than Linux")) << opening_of(config);
}

TEST(GuestFiles, ThatAreDamagedAreNoAccidentWithAnyHardware) {
    std::mt19937 random{7}; // NOLINT(cert-msc32-c,cert-msc51-cpp): the same damage in every run
    for (unsigned i = 0; i < 2000; ++i) {
        loader::testing::TestBzImage image = loader::testing::make_bzimage();
        for (unsigned j = 0; j < 1 + i % 4; ++j) {
            image.bytes[0x1f1 + random() % 0x7b] = static_cast<std::byte>(random());
        }
        Config config;
        config.hardware = i % 2 == 0 ? HardwareDescription::kFdt : HardwareDescription::kBoth;
        config.kernel_image = shared(std::move(image.bytes));
        static_cast<void>(opening_of(config));
    }
}

TEST(GuestFiles, InitrdFromAPipeIsNoLargerThanTheGuestsMemory) {
    std::signal(SIGPIPE, SIG_IGN);
    testing::Pipe pipe;
    std::jthread writer([&] {
        const std::string text(kMiB, 'x');
        while (::write(pipe.writer.get(), text.data(), text.size()) > 0) {
        }
    });
    Config config;
    config.memory_bytes = 16 * kMiB;
    config.initrd_path = "/proc/self/fd/" + std::to_string(pipe.reader.get());
    const std::string error = opening_of(config);
    pipe.reader.reset(); // the writer gets EPIPE
    EXPECT_TRUE(testing::mentions(error, "a pipe that gives more than 16 MiB")) << error;
}

} // namespace
} // namespace vmm
