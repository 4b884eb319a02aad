#include "devices/pci/msix.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "support/devices_pci_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"

namespace vmm::devices::pci {
namespace {

using testing::kMsixEnable;
using testing::kMsixFunctionMask;
using testing::RecordingMessage;
using testing::RecordingMessages;
using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr Message kMessage{0x12fee00004, 0xabcd};

class MsixTest : public ::testing::Test {
  protected:
    static constexpr std::size_t kVectors = 3;

    template <typename T>
    T read(std::uint64_t offset) {
        T value{};
        msix.read_table(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    template <typename T>
    void write(std::uint64_t offset, T value) {
        msix.write_table(offset, std::as_bytes(std::span(&value, 1)));
    }
    void set_message(std::uint64_t vector, Message message) {
        write<std::uint64_t>(vector * 16, message.address);
        write<std::uint32_t>(vector * 16 + 8, message.data);
    }
    void mask(std::uint64_t vector, bool masked) { write<std::uint32_t>(vector * 16 + 12, masked ? 1 : 0); }
    std::uint64_t pending() {
        std::uint64_t bits = 0;
        msix.read_pending(0, std::as_writable_bytes(std::span(&bits, 1)));
        return bits;
    }

    RecordingMessages lines{kVectors};
    Msix msix{lines.lines()};
};

// PCI Local Bus 3.0, 6.8.2.9: "the default value is 1 (entry is masked)".
TEST_F(MsixTest, IsOffAndAllVectorsAreMaskedAtFirst) {
    EXPECT_EQ(msix.vectors(), kVectors);
    EXPECT_FALSE(msix.is_enabled());
    for (std::uint64_t vector = 0; vector < kVectors; ++vector) {
        EXPECT_EQ(read<std::uint64_t>(vector * 16), 0U);
        EXPECT_EQ(read<std::uint64_t>(vector * 16 + 8), std::uint64_t{1} << 32U);
    }
    msix.set_control(kMsixEnable, true);
    msix.raise(0);
    EXPECT_EQ(lines[0].take(), 0U);
    EXPECT_EQ(pending(), 1U);
}

// 6.8.2.3.
TEST_F(MsixTest, TheCapabilitySaysHowManyVectorsThereAreAndWhere) {
    ConfigSpace config(Identity{});
    const std::uint8_t at = Msix::add_capability(config, 128, 0x4000, 0x5000);
    EXPECT_EQ(config.word(at), 0x11U);
    EXPECT_EQ(config.word(at + Msix::kControlOffset), 127U);
    EXPECT_EQ(config.double_word(at + 4U), 0x4000U);
    EXPECT_EQ(config.double_word(at + 8U), 0x5000U);
    config.write(at, std::vector(12, std::byte{0xff}));
    EXPECT_EQ(config.word(at), 0x11U);
    EXPECT_EQ(config.word(at + Msix::kControlOffset), 127U | kMsixEnable | kMsixFunctionMask);
    EXPECT_EQ(config.double_word(at + 4U), 0x4000U);
    EXPECT_EQ(config.double_word(at + 8U), 0x5000U);
}

TEST_F(MsixTest, AMessageIsWhatTheDriverWrote) {
    set_message(1, kMessage);
    EXPECT_EQ(read<std::uint64_t>(16), kMessage.address);
    EXPECT_EQ(read<std::uint32_t>(24), kMessage.data);
    mask(1, false);
    msix.set_control(kMsixEnable, true);
    EXPECT_EQ(lines[1].message(), kMessage);
    msix.raise(1);
    EXPECT_EQ(lines[1].take(), 1U);
    EXPECT_EQ(lines[0].take() + lines[2].take(), 0U);
    const Message other{0xfee01000, 7};
    set_message(1, other);
    EXPECT_EQ(lines[1].message(), other) << "also while the vector is not masked";
}

TEST_F(MsixTest, AVectorThatIsMaskedIsPendingUntilItIsNot) {
    set_message(2, kMessage);
    msix.set_control(kMsixEnable, true);
    msix.raise(2);
    msix.raise(2);
    EXPECT_EQ(lines[2].take(), 0U);
    EXPECT_EQ(pending(), 4U);
    mask(2, false);
    EXPECT_EQ(lines[2].take(), 1U) << "once, however often it was raised";
    EXPECT_EQ(pending(), 0U);
    mask(2, true);
    mask(2, false);
    EXPECT_EQ(lines[2].take(), 0U);
    mask(2, true);
    msix.raise(2);
    set_message(2, {0xfee02000, 9});
    mask(2, false);
    EXPECT_EQ(lines[2].take(), 1U);
    EXPECT_EQ(lines[2].message(), (Message{0xfee02000, 9})) << "it goes by the message that is there then";
}

// 6.8.2.3: "If 1, all of the vectors associated with the function are masked, regardless of their per-vector Mask".
TEST_F(MsixTest, AMaskedFunctionHasAllVectorsPending) {
    mask(0, false);
    mask(1, false);
    msix.set_control(kMsixEnable | kMsixFunctionMask, true);
    for (std::uint16_t vector = 0; vector < kVectors; ++vector) {
        msix.raise(vector);
    }
    EXPECT_EQ(lines[0].take() + lines[1].take() + lines[2].take(), 0U);
    EXPECT_EQ(pending(), 7U);
    msix.set_control(kMsixEnable, true);
    EXPECT_EQ(lines[0].take(), 1U);
    EXPECT_EQ(lines[1].take(), 1U);
    EXPECT_EQ(lines[2].take(), 0U) << "its own mask remains";
    EXPECT_EQ(pending(), 4U);
    EXPECT_EQ(read<std::uint32_t>(12), 0U) << "the mask of the function is not that of a vector";
}

// A message is a write to memory (6.8), and 6.2.2: without Bus Master a function makes no access.
TEST_F(MsixTest, AMessageWaitsUntilTheFunctionMastersTheBus) {
    mask(1, false);
    msix.set_control(kMsixEnable, false);
    msix.raise(1);
    EXPECT_EQ(lines[1].take(), 0U);
    EXPECT_EQ(pending(), 2U);
    msix.set_control(kMsixEnable, true);
    EXPECT_EQ(lines[1].take(), 1U);
    EXPECT_EQ(pending(), 0U);
    RecordingMessages others{kVectors};
    msix.set_control(kMsixEnable, false);
    msix.raise(1);
    Msix restored(others.lines(), msix.state(), kMsixEnable, false, "blk0");
    restored.repeat_pending();
    EXPECT_EQ(others[1].take(), 0U);
    restored.set_control(kMsixEnable, true);
    EXPECT_EQ(others[1].take(), 1U);
}

TEST_F(MsixTest, ThatIsOffSendsNothingAndForgetsWhatIsPending) {
    mask(0, false);
    msix.raise(0);
    EXPECT_EQ(pending(), 0U);
    msix.set_control(kMsixFunctionMask, true);
    EXPECT_FALSE(msix.is_enabled());
    msix.raise(0);
    msix.set_control(kMsixEnable, true);
    EXPECT_TRUE(msix.is_enabled());
    EXPECT_EQ(lines[0].take(), 0U);
    msix.raise(1);
    EXPECT_EQ(pending(), 2U);
    msix.set_control(0, true);
    EXPECT_EQ(pending(), 0U);
    msix.set_control(kMsixEnable, true);
    mask(1, false);
    EXPECT_EQ(lines[1].take(), 0U);
    msix.raise(1);
    EXPECT_EQ(lines[1].take(), 1U);
}

TEST_F(MsixTest, AVectorThatThereIsNotIsNotRaised) {
    msix.set_control(kMsixEnable, true);
    for (const unsigned vector : {3U, 127U, 0x8000U, 0xffffU}) {
        msix.raise(static_cast<std::uint16_t>(vector));
    }
    EXPECT_EQ(pending(), 0U);
}

TEST_F(MsixTest, WritesOfOtherBitsOfControlDoNothing) {
    set_message(0, kMessage);
    mask(0, false);
    msix.set_control(kMsixEnable, true);
    const std::uint64_t before = lines[0].preparations();
    msix.set_control(kMsixEnable | 0x3fff, true);
    EXPECT_EQ(lines[0].preparations(), before);
    set_message(0, kMessage);
    mask(0, false);
    EXPECT_EQ(lines[0].preparations(), before) << "a write that changes nothing is not handed on";
}

// 6.8.2.7 and 6.8.2.9.
TEST_F(MsixTest, BitsThatThereAreNotReadAsZeros) {
    write<std::uint32_t>(0, 0xfee00003);
    EXPECT_EQ(read<std::uint32_t>(0), 0xfee00000U);
    write<std::uint32_t>(12, UINT32_MAX);
    EXPECT_EQ(read<std::uint32_t>(12), 1U);
    write<std::uint32_t>(12, 0xfffffffe);
    EXPECT_EQ(read<std::uint32_t>(12), 0U);
}

// 6.8.2: "software must always use aligned full DWORD or aligned full QWORD transactions".
TEST_F(MsixTest, AccessesOfEveryWidthAtEveryOffset) {
    for (std::uint64_t vector = 0; vector < kVectors; ++vector) {
        set_message(vector, kMessage);
    }
    const Msix::State before = msix.state();
    std::array<std::byte, kVectors * 16> table{};
    for (std::size_t at = 0; at < table.size(); at += 8) {
        msix.read_table(at, std::span(table).subspan(at, 8));
    }
    for (std::size_t length = 0; length <= 9; ++length) {
        for (std::uint64_t offset = 0; offset < table.size() + 16; ++offset) {
            const bool is_there = (length == 4 || length == 8) && offset % length == 0 && offset < table.size();
            std::vector<std::byte> data(length, std::byte{0x5a});
            msix.read_table(offset, data);
            if (is_there) {
                EXPECT_TRUE(std::ranges::equal(data, std::span(table).subspan(offset, length))) << offset << length;
            } else {
                EXPECT_EQ(data, std::vector(length, std::byte{0xff})) << offset << " " << length;
                msix.write_table(offset, std::vector(length, std::byte{0x21}));
                EXPECT_EQ(msix.state(), before) << offset << " " << length;
            }
        }
    }
    for (const std::uint64_t offset : {std::uint64_t{0x1000}, UINT64_MAX - 15, UINT64_MAX - 7, UINT64_MAX - 3}) {
        EXPECT_EQ(read<std::uint32_t>(offset), UINT32_MAX);
        write<std::uint32_t>(offset, 0);
        EXPECT_EQ(msix.state(), before);
    }
}

TEST_F(MsixTest, PendingBitsAreReadOfEveryWidthAtEveryOffset) {
    RecordingMessages many{70};
    Msix wide{many.lines()};
    wide.set_control(kMsixEnable, true);
    for (const std::uint16_t vector : {std::uint16_t{0}, std::uint16_t{31}, std::uint16_t{32}, std::uint16_t{69}}) {
        wide.raise(vector);
    }
    const auto read_bits = [&wide](std::uint64_t offset, std::size_t length) {
        std::uint64_t bits = 0;
        wide.read_pending(offset, std::as_writable_bytes(std::span(&bits, 1)).first(length));
        return bits;
    };
    EXPECT_EQ(read_bits(0, 8), 0x180000001U);
    EXPECT_EQ(read_bits(0, 4), 0x80000001U);
    EXPECT_EQ(read_bits(4, 4), 1U);
    EXPECT_EQ(read_bits(8, 8), 0x20U);
    EXPECT_EQ(read_bits(12, 4), 0U);
    for (std::size_t length = 1; length <= 8; ++length) {
        const std::uint64_t ones = UINT64_MAX >> (64 - 8 * length);
        for (std::uint64_t offset = 0; offset < 40; ++offset) {
            const bool is_there = (length == 4 || length == 8) && offset % length == 0 && offset + length <= 16;
            if (!is_there) {
                EXPECT_EQ(read_bits(offset, length), ones) << offset << " " << length;
            }
        }
    }
    EXPECT_EQ(read_bits(UINT64_MAX - 7, 8), UINT64_MAX) << "the end of such an access is at 0";
    EXPECT_EQ(read_bits(UINT64_MAX - 3, 4), UINT32_MAX);
}

TEST_F(MsixTest, GoesOnFromItsState) {
    set_message(0, kMessage);
    mask(0, false);
    set_message(1, {0xfee03000, 3});
    msix.set_control(kMsixEnable, true);
    msix.raise(1);
    const Msix::State state = msix.state();
    ASSERT_EQ(state.pending, (std::vector<std::uint8_t>{0, 1, 0}));

    RecordingMessages others{kVectors};
    Msix restored(others.lines(), state, kMsixEnable, true, "blk0");
    EXPECT_TRUE(restored.is_enabled());
    EXPECT_EQ(restored.state(), state);
    EXPECT_EQ(others[0].message(), kMessage);
    restored.raise(0);
    EXPECT_EQ(others[0].take(), 1U);
    restored.repeat_pending();
    EXPECT_EQ(others[1].take(), 0U) << "it is masked";
    const std::uint32_t open = 0;
    restored.write_table(16 + 12, std::as_bytes(std::span(&open, 1)));
    EXPECT_EQ(others[1].take(), 1U);
    EXPECT_EQ(others[1].message(), (Message{0xfee03000, 3}));
}

TEST_F(MsixTest, WhatIsPendingInAStateIsSentWhenItIsAskedFor) {
    Msix::State state = msix.state();
    state.entries[0] = {kMessage, 0};
    state.entries[1] = {kMessage, 0};
    state.pending = {1, 0, 1};
    RecordingMessages others{kVectors};
    Msix restored(others.lines(), state, kMsixEnable, true, "blk0");
    EXPECT_EQ(others[0].take(), 0U) << "the interrupt controllers have no state yet";
    restored.repeat_pending();
    restored.repeat_pending();
    EXPECT_EQ(others[0].take(), 1U);
    EXPECT_EQ(others[1].take() + others[2].take(), 0U);
    EXPECT_EQ(restored.state().pending, (std::vector<std::uint8_t>{0, 0, 1}));

    Msix masked(others.lines(), state, kMsixEnable | kMsixFunctionMask, true, "blk0");
    masked.repeat_pending();
    EXPECT_EQ(others[0].take(), 0U);
    masked.set_control(kMsixEnable, true);
    EXPECT_EQ(others[0].take(), 1U);
}

TEST_F(MsixTest, BitsOfAStateThatThereAreNotAreLeftOut) {
    Msix::State state = msix.state();
    state.entries[0] = {{0xfee00003, 1}, 0xfffffffe};
    state.pending[0] = 7;
    const Msix restored(lines.lines(), state, 0, true, "blk0");
    const Msix::State again = restored.state();
    EXPECT_EQ(again.entries[0], (Msix::Entry{{0xfee00000, 1}, 0}));
    EXPECT_EQ(again.pending[0], 1U);
}

TEST_F(MsixTest, AStateWithAnotherNumberOfVectorsIsRefused) {
    for (const std::size_t count : {0U, 2U, 4U, 4096U}) {
        for (const bool of_entries : {false, true}) {
            Msix::State state = msix.state();
            if (of_entries) {
                state.entries.resize(count);
            } else {
                state.pending.resize(count);
            }
            const std::string error = error_of([&] { Msix(lines.lines(), state, 0, true, "blk0"); });
            EXPECT_TRUE(mentions(error, "blk0") && mentions(error, "MSI-X")) << error;
        }
    }
}

/// A message line on which a thread waits for the next interrupt, like a guest.
class WaitedFor final : public MessageLine {
  public:
    void prepare(Message /*message*/) noexcept override {}
    void raise() noexcept override { raised_.fetch_add(1); }
    [[nodiscard]] std::uint64_t raised() const noexcept { return raised_.load(); }

  private:
    std::atomic<std::uint64_t> raised_ = 0;
};

/// One thread raises an interrupt, and raises the next one when that has come. The other thread does `change` all the
/// time, and unmasks the vector at the end. If an interrupt were lost, the first thread would wait in vain.
template <typename Change>
void expect_nothing_lost(Change change) {
    constexpr int kInterrupts = 2000;
    WaitedFor line;
    const std::array<MessageLine*, 1> lines{&line};
    Msix msix{lines};
    const auto set_mask = [&msix](std::uint32_t value) { msix.write_table(12, std::as_bytes(std::span(&value, 1))); };
    set_mask(0);
    msix.set_control(kMsixEnable, true);
    std::atomic<bool> is_over = false;
    std::thread driver([&] {
        while (!is_over.load()) {
            change(msix, set_mask);
            std::this_thread::yield();
        }
    });
    bool all_came = true;
    for (int i = 0; i < kInterrupts && all_came; ++i) {
        const std::uint64_t before = line.raised();
        msix.raise(0);
        all_came = vmm::testing::eventually([&] { return line.raised() > before; });
    }
    is_over = true;
    driver.join();
    EXPECT_TRUE(all_came) << "an interrupt was lost";
}

TEST(MsixThreads, NoInterruptIsLostWhileTheVectorIsMaskedAndUnmasked) {
    expect_nothing_lost([](Msix& /*msix*/, const auto& set_mask) {
        set_mask(1);
        set_mask(0);
    });
}

TEST(MsixThreads, NoInterruptIsLostWhileTheFunctionIsMaskedAndUnmasked) {
    expect_nothing_lost([](Msix& msix, const auto& /*set_mask*/) {
        msix.set_control(kMsixEnable | kMsixFunctionMask, true);
        msix.set_control(kMsixEnable, true);
    });
}

TEST(MsixThreads, NoInterruptIsLostWhileItsMessageMoves) {
    expect_nothing_lost([](Msix& msix, const auto& set_mask) {
        static std::uint32_t data = 0;
        set_mask(1);
        ++data;
        msix.write_table(8, std::as_bytes(std::span(&data, 1)));
        set_mask(0);
    });
}

} // namespace
} // namespace vmm::devices::pci
