#include "devices/serial_port.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/devices_guest_access.hpp"
#include "support/devices_recording_irq.hpp"

namespace vmm::devices {
namespace {

using testing::HostileGuest;
using testing::inb;
using testing::outb;
using testing::RecordingIrq;

// The registers as a driver knows them.
constexpr std::uint64_t kRbr = 0;
constexpr std::uint64_t kThr = 0;
constexpr std::uint64_t kDll = 0;
constexpr std::uint64_t kDlm = 1;
constexpr std::uint64_t kIer = 1;
constexpr std::uint64_t kIir = 2;
constexpr std::uint64_t kFcr = 2;
constexpr std::uint64_t kLcr = 3;
constexpr std::uint64_t kMcr = 4;
constexpr std::uint64_t kLsr = 5;
constexpr std::uint64_t kMsr = 6;
constexpr std::uint64_t kScr = 7;

constexpr unsigned kIerReceive = 0x01;
constexpr unsigned kIerTransmit = 0x02;
constexpr unsigned kIerLineStatus = 0x04;
constexpr unsigned kIerModemStatus = 0x08;
constexpr unsigned kIirNone = 0x01;
constexpr unsigned kIirTransmit = 0x02;
constexpr unsigned kIirReceive = 0x04;
constexpr unsigned kIirLineStatus = 0x06;
constexpr unsigned kIirTimeout = 0x0c;
constexpr unsigned kIirFifo = 0xc0;
constexpr unsigned kFcrEnable = 0x01;
constexpr unsigned kFcrClearReceiver = 0x02;
constexpr unsigned kFcrTrigger8 = 0x80;
constexpr unsigned kLcrDlab = 0x80;
constexpr unsigned kMcrLoopback = 0x10;
constexpr unsigned kLsrDataReady = 0x01;
constexpr unsigned kLsrOverrun = 0x02;
constexpr unsigned kLsrTransmitterEmpty = 0x60;

std::size_t feed(SerialPort& port, std::string_view text) {
    return port.feed_input(std::as_bytes(std::span{text}));
}

std::string take(SerialPort& port, std::size_t most = 1 << 20) {
    std::string out(most, '\0');
    out.resize(port.take_output(std::as_writable_bytes(std::span{out})));
    return out;
}

void print(Device& port, std::string_view text) {
    for (const char character : text) {
        outb(port, kThr, static_cast<unsigned char>(character));
    }
}

/// Acts as a driver's interrupt handler: reads while there is something to read.
std::string read_all(Device& port) {
    std::string text;
    while ((inb(port, kLsr) & kLsrDataReady) != 0) {
        text += static_cast<char>(inb(port, kRbr));
    }
    return text;
}

class SerialPortTest : public ::testing::Test {
  protected:
    CharacterPort::Callbacks callbacks() {
        return {.output_ready = [this] { ++outputs_ready; }, .input_room_ready = [this] { ++rooms_ready; }};
    }

    int outputs_ready = 0;
    int rooms_ready = 0;
    RecordingIrq irq;
    SerialPort port{irq, callbacks()};
};

// ---- Output

TEST_F(SerialPortTest, OutputComesOutInOrder) {
    print(port, "Linux version");
    EXPECT_EQ(take(port, 5), "Linux");
    EXPECT_EQ(take(port), " version");
    EXPECT_EQ(take(port), "");
}

TEST_F(SerialPortTest, OutputIsAnnouncedOnceUntilAllIsTaken) {
    print(port, "abc");
    EXPECT_EQ(outputs_ready, 1);
    EXPECT_EQ(take(port, 2), "ab");
    print(port, "d");
    EXPECT_EQ(outputs_ready, 1);
    EXPECT_EQ(take(port), "cd");
    print(port, "e");
    EXPECT_EQ(outputs_ready, 2);
}

TEST_F(SerialPortTest, FloodIsDroppedAndCountedNotStalled) {
    SerialPort small(irq, callbacks(), 4);
    print(small, "abcdefghij");
    EXPECT_EQ(small.dropped_output_bytes(), 6U);
    EXPECT_EQ(inb(small, kLsr) & kLsrTransmitterEmpty, kLsrTransmitterEmpty);
    EXPECT_EQ(take(small), "abcd");
    print(small, "k");
    EXPECT_EQ(take(small), "k");
    EXPECT_EQ(small.dropped_output_bytes(), 6U);
}

TEST_F(SerialPortTest, CallbacksMayBeEmpty) {
    SerialPort quiet(irq, {}, 4);
    print(quiet, "a");
    EXPECT_EQ(feed(quiet, "b"), 1U);
    EXPECT_EQ(inb(quiet, kRbr), unsigned{'b'});
}

TEST_F(SerialPortTest, OutputMayBeTakenFromWithinTheAnnouncement) {
    std::string taken;
    SerialPort* self = nullptr;
    SerialPort direct(irq, {.output_ready = [&] { taken += take(*self); }, .input_room_ready = {}});
    self = &direct;
    print(direct, "no deadlock");
    EXPECT_EQ(taken, "no deadlock");
}

// ---- Registers

TEST_F(SerialPortTest, AfterResetNothingIsPendingAndTheLineIsThere) {
    EXPECT_EQ(inb(port, kIer), 0U);
    EXPECT_EQ(inb(port, kIir), kIirNone);
    EXPECT_EQ(inb(port, kLcr), 0U);
    EXPECT_EQ(inb(port, kMcr), 0U);
    EXPECT_EQ(inb(port, kLsr), kLsrTransmitterEmpty);
    EXPECT_EQ(inb(port, kMsr), 0xb0U) << "CTS, DSR and DCD";
    EXPECT_EQ(inb(port, kRbr), 0U);
}

TEST_F(SerialPortTest, DivisorLatchHidesDataAndInterruptEnable) {
    outb(port, kIer, kIerReceive);
    outb(port, kLcr, kLcrDlab | 0x03U);
    outb(port, kDll, 0x0c);
    outb(port, kDlm, 0x01);
    EXPECT_EQ(inb(port, kDll), 0x0cU);
    EXPECT_EQ(inb(port, kDlm), 0x01U);
    outb(port, kLcr, 0x03);
    EXPECT_EQ(inb(port, kIer), kIerReceive);
    EXPECT_EQ(port.state().divisor, 0x010cU);
    EXPECT_EQ(take(port), "") << "the divisor is not output";
}

TEST_F(SerialPortTest, BitsThatA16550DoesNotHaveReadAsZero) {
    outb(port, kIer, 0xff);
    EXPECT_EQ(inb(port, kIer), 0x0fU);
    outb(port, kMcr, 0xff);
    EXPECT_EQ(inb(port, kMcr), 0x1fU);
}

TEST_F(SerialPortTest, StatusRegistersCannotBeWritten) {
    outb(port, kLsr, 0xff);
    outb(port, kMsr, 0xff);
    EXPECT_EQ(inb(port, kLsr), kLsrTransmitterEmpty);
    EXPECT_EQ(inb(port, kMsr), 0xb0U);
}

TEST_F(SerialPortTest, OffsetsBeyondTheRegistersReadAsOnes) {
    outb(port, 8, 0);
    EXPECT_EQ(inb(port, 8), 0xffU);
    EXPECT_EQ(inb(port, UINT64_MAX), 0xffU);
}

TEST_F(SerialPortTest, WideAccessIsOneAccessForEachByte) {
    outb(port, kFcr, kFcrEnable);
    const std::array written{std::byte{'x'}, std::byte{kIerReceive}};
    port.write(kThr, written);
    EXPECT_EQ(take(port), "x");
    EXPECT_EQ(inb(port, kIer), kIerReceive);

    feed(port, "ab");
    std::array<std::byte, 8> all{};
    port.read(0, all);
    EXPECT_EQ(all[0], std::byte{'a'});
    EXPECT_EQ(all[1], std::byte{kIerReceive});
    EXPECT_EQ(all[2], std::byte{kIirFifo | kIirReceive}) << "b is still there";
}

// ---- Detection by Linux: drivers/tty/serial/8250/8250_port.c

TEST_F(SerialPortTest, LinuxFindsAPortByItsInterruptEnableRegister) {
    outb(port, kIer, 0);
    EXPECT_EQ(inb(port, kIer) & 0x0fU, 0U);
    outb(port, kIer, 0x0f);
    EXPECT_EQ(inb(port, kIer) & 0x0fU, 0x0fU);
}

TEST_F(SerialPortTest, LinuxFindsAPortByItsLoopback) {
    outb(port, kMcr, kMcrLoopback | 0x0aU); // RTS and OUT2
    EXPECT_EQ(inb(port, kMsr) & 0xf0U, 0x90U) << "CTS and DCD";
}

TEST_F(SerialPortTest, LinuxTakesItForA16550AAndNothingElse) {
    outb(port, kLcr, 0xbf);
    outb(port, kFcr, 0); // EFR of other chips
    outb(port, kLcr, 0);
    outb(port, kFcr, kFcrEnable);
    EXPECT_EQ(inb(port, kIir) >> 6U, 3U) << "not an 8250, 16450 or 16550";

    outb(port, kLcr, 0x80);
    EXPECT_NE(inb(port, kFcr), 0U) << "not an ST16650";
    outb(port, kLcr, 0xbf);
    EXPECT_NE(inb(port, kFcr), 0U) << "not an ST16650V2 or 16C950";

    // A National Semiconductor SuperIO shows the loopback bit of MCR in its EXCR1.
    outb(port, kLcr, 0);
    const unsigned mcr = inb(port, kMcr);
    outb(port, kMcr, mcr ^ kMcrLoopback);
    outb(port, kLcr, 0xe0);
    EXPECT_EQ((inb(port, kIir) ^ mcr) & kMcrLoopback, 0U) << "not an NS16550A";
    outb(port, kLcr, 0);
    outb(port, kMcr, mcr);

    outb(port, kFcr, kFcrEnable | 0x20U);
    EXPECT_EQ(inb(port, kIir) >> 5U, 6U);
    outb(port, kLcr, 0x80);
    outb(port, kFcr, kFcrEnable | 0x20U);
    EXPECT_EQ(inb(port, kIir) >> 5U, 6U) << "not a TI16750";
    outb(port, kLcr, 0);

    outb(port, kIer, 0x40);
    EXPECT_EQ(inb(port, kIer), 0U) << "not an XScale";
}

TEST_F(SerialPortTest, LinuxCountsSixteenBytesOfFifo) {
    outb(port, kFcr, kFcrEnable | 0x06U);
    outb(port, kMcr, kMcrLoopback);
    for (unsigned i = 0; i < 256; ++i) {
        outb(port, kThr, i);
    }
    const std::string received = read_all(port);
    EXPECT_EQ(received.size(), 16U) << "64 would be a U6 16550A";
    EXPECT_EQ(received.front(), '\0');
    EXPECT_EQ(received.back(), '\x0f');
    EXPECT_EQ(take(port), "") << "loopback is not output";
}

TEST_F(SerialPortTest, LinuxSeesTheTransmitInterruptEachTimeItIsEnabled) {
    // serial8250_THRE_test(): Linux polls a chip by a timer if the chip does not assert the interrupt again.
    for (int i = 0; i < 2; ++i) {
        outb(port, kIer, kIerTransmit);
        EXPECT_EQ(inb(port, kIir), kIirTransmit);
        outb(port, kIer, 0);
    }
}

TEST_F(SerialPortTest, ScratchRegisterTellsA16450FromAn8250) {
    outb(port, kScr, 0xa5);
    EXPECT_EQ(inb(port, kScr), 0xa5U);
    outb(port, kScr, 0x5a);
    EXPECT_EQ(inb(port, kScr), 0x5aU);
}

// ---- Input

TEST_F(SerialPortTest, InputIsReadInOrder) {
    outb(port, kFcr, kFcrEnable);
    EXPECT_EQ(feed(port, "root"), 4U);
    EXPECT_EQ(read_all(port), "root");
    EXPECT_EQ(inb(port, kLsr), kLsrTransmitterEmpty);
}

TEST_F(SerialPortTest, WithoutFifoThereIsRoomForOneByte) {
    EXPECT_EQ(port.input_room(), 1U);
    EXPECT_EQ(feed(port, "ab"), 1U);
    EXPECT_EQ(port.input_room(), 0U);
    EXPECT_EQ(inb(port, kRbr), unsigned{'a'});
    EXPECT_EQ(rooms_ready, 1);
}

TEST_F(SerialPortTest, InputBeyondTheFifoStaysWithTheHost) {
    outb(port, kFcr, kFcrEnable);
    EXPECT_EQ(feed(port, "0123456789abcdefXYZ"), 16U);
    EXPECT_EQ(port.input_room(), 0U);
    EXPECT_EQ(feed(port, "XYZ"), 0U);
    EXPECT_EQ(inb(port, kLsr) & kLsrOverrun, 0U);
    EXPECT_EQ(read_all(port), "0123456789abcdef");
    EXPECT_EQ(feed(port, "XYZ"), 3U);
}

TEST_F(SerialPortTest, RoomIsAnnouncedWhenAFullReceiverHasBeenEmptied) {
    outb(port, kFcr, kFcrEnable);
    feed(port, "abc");
    read_all(port);
    EXPECT_EQ(rooms_ready, 0) << "there always was room";
    feed(port, "0123456789abcdef");
    for (int i = 0; i < 15; ++i) {
        inb(port, kRbr);
    }
    EXPECT_EQ(rooms_ready, 0) << "one wake-up for each byte would be a waste";
    inb(port, kRbr);
    EXPECT_EQ(rooms_ready, 1);
}

TEST_F(SerialPortTest, ClearingAFullReceiverAnnouncesRoom) {
    outb(port, kFcr, kFcrEnable);
    feed(port, "0123456789abcdef");
    outb(port, kFcr, kFcrEnable | kFcrClearReceiver);
    EXPECT_EQ(rooms_ready, 1);
    EXPECT_EQ(port.input_room(), 16U);
    EXPECT_EQ(inb(port, kLsr) & kLsrDataReady, 0U);
}

TEST_F(SerialPortTest, SwitchingTheFifoClearsIt) {
    outb(port, kFcr, kFcrEnable);
    feed(port, "abc");
    outb(port, kFcr, 0);
    EXPECT_EQ(read_all(port), "");
    EXPECT_EQ(inb(port, kIir), kIirNone) << "no FIFO bits";
}

TEST_F(SerialPortTest, ClearBitMeansNothingUnlessTheEnableBitIsSet) {
    feed(port, "a");
    outb(port, kFcr, kFcrClearReceiver);
    EXPECT_EQ(read_all(port), "a");
}

TEST_F(SerialPortTest, InputWaitsWhileTheGuestIsInLoopback) {
    outb(port, kFcr, kFcrEnable);
    outb(port, kMcr, kMcrLoopback);
    EXPECT_EQ(port.input_room(), 0U);
    EXPECT_EQ(feed(port, "typed"), 0U);
    print(port, "test");
    EXPECT_EQ(read_all(port), "test");
    EXPECT_EQ(rooms_ready, 0);
    outb(port, kMcr, 0);
    EXPECT_EQ(rooms_ready, 1);
    EXPECT_EQ(feed(port, "typed"), 5U);
}

// ---- Interrupts

TEST_F(SerialPortTest, InputInterruptsOnlyIfEnabled) {
    outb(port, kFcr, kFcrEnable);
    feed(port, "a");
    EXPECT_EQ(irq.take(), 0U);
    outb(port, kIer, kIerReceive);
    EXPECT_EQ(irq.take(), 1U) << "the byte is already there";
    feed(port, "b");
    EXPECT_EQ(irq.take(), 1U);
}

TEST_F(SerialPortTest, FewerBytesThanTheTriggerInterruptAsTimeout) {
    outb(port, kIer, kIerReceive);
    outb(port, kFcr, kFcrEnable | kFcrTrigger8);
    feed(port, "1234567");
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirTimeout);
    feed(port, "8");
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirReceive);
    inb(port, kRbr);
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirTimeout);
    read_all(port);
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirNone);
}

TEST_F(SerialPortTest, EveryTriggerLevelIsKept) {
    const std::array levels = {1U, 4U, 8U, 14U};
    for (unsigned code = 0; code < levels.size(); ++code) {
        outb(port, kIer, kIerReceive);
        outb(port, kFcr, kFcrEnable | kFcrClearReceiver | (code << 6U));
        for (unsigned received = 1; received <= 16; ++received) {
            feed(port, "x");
            EXPECT_EQ(inb(port, kIir), kIirFifo | (received < levels[code] ? kIirTimeout : kIirReceive));
        }
    }
}

TEST_F(SerialPortTest, EnablingTheTransmitInterruptCausesOne) {
    outb(port, kIer, kIerTransmit);
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(inb(port, kIir), kIirTransmit);
    EXPECT_EQ(inb(port, kIir), kIirNone) << "reading it acknowledged it";
    outb(port, kIer, kIerTransmit);
    EXPECT_EQ(irq.take(), 0U) << "it was enabled before";
    EXPECT_EQ(inb(port, kIir), kIirNone);
}

TEST_F(SerialPortTest, EachAcknowledgedTransmissionInterruptsAgain) {
    outb(port, kIer, kIerTransmit);
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(irq.take(), 1U);
        EXPECT_EQ(inb(port, kIir), kIirTransmit);
        print(port, "sixteen at once.");
    }
    EXPECT_EQ(irq.take(), 1U) << "one for the sixteen, not sixteen";
}

TEST_F(SerialPortTest, IdentificationDoesNotAcknowledgeWhatItDoesNotShow) {
    outb(port, kFcr, kFcrEnable);
    outb(port, kIer, kIerReceive | kIerTransmit);
    feed(port, "a");
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirReceive);
    read_all(port);
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirTransmit);
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirNone);
}

TEST_F(SerialPortTest, InterruptsAreShownInOrderOfPriority) {
    outb(port, kIer, kIerReceive | kIerTransmit | kIerLineStatus | kIerModemStatus);
    outb(port, kMcr, kMcrLoopback); // The modem inputs change,
    print(port, "ab");              // and without FIFO the second byte is an overrun.
    EXPECT_EQ(inb(port, kIir), kIirLineStatus);
    EXPECT_EQ(inb(port, kLsr), kLsrTransmitterEmpty | kLsrOverrun | kLsrDataReady);
    EXPECT_EQ(inb(port, kIir), kIirReceive);
    EXPECT_EQ(inb(port, kRbr), unsigned{'b'}) << "the later byte, without FIFO";
    EXPECT_EQ(inb(port, kIir), kIirTransmit);
    EXPECT_EQ(inb(port, kIir), 0U) << "modem status";
    inb(port, kMsr);
    EXPECT_EQ(inb(port, kIir), kIirNone);
}

TEST_F(SerialPortTest, OverrunIsReportedOnceAndKeepsTheFifo) {
    outb(port, kFcr, kFcrEnable);
    outb(port, kIer, kIerLineStatus);
    outb(port, kMcr, kMcrLoopback);
    print(port, "0123456789abcdefLOST");
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(inb(port, kLsr) & kLsrOverrun, kLsrOverrun);
    EXPECT_EQ(inb(port, kLsr) & kLsrOverrun, 0U);
    EXPECT_EQ(read_all(port), "0123456789abcdef");
}

TEST_F(SerialPortTest, ModemInputsReportTheirChanges) {
    outb(port, kMcr, kMcrLoopback); // everything off
    EXPECT_EQ(inb(port, kMsr), 0x0bU) << "CTS, DSR and DCD went away";
    outb(port, kMcr, kMcrLoopback | 0x0fU);
    EXPECT_EQ(inb(port, kMsr), 0xfbU) << "the ring indicator counts only when it ends";
    outb(port, kMcr, kMcrLoopback);
    EXPECT_EQ(inb(port, kMsr), 0x0fU);
    EXPECT_EQ(inb(port, kMsr), 0x00U);
}

TEST_F(SerialPortTest, ChangesOfModemInputsAddUpUntilTheyAreRead) {
    outb(port, kMcr, kMcrLoopback);
    inb(port, kMsr);
    outb(port, kMcr, kMcrLoopback | 0x02U); // RTS is CTS
    outb(port, kMcr, kMcrLoopback | 0x03U); // DTR is DSR
    EXPECT_EQ(inb(port, kMsr), 0x33U);
}

TEST_F(SerialPortTest, ReasonThatIsNotEnabledIsNotShown) {
    outb(port, kMcr, kMcrLoopback);
    print(port, "ab");
    EXPECT_EQ(inb(port, kIir), kIirNone);
    EXPECT_EQ(irq.take(), 0U);
}

TEST_F(SerialPortTest, MovingInterruptsFromOneReasonToAnotherRaisesAgain) {
    outb(port, kFcr, kFcrEnable);
    outb(port, kIer, kIerReceive);
    feed(port, "a");
    EXPECT_EQ(irq.take(), 1U);
    outb(port, kIer, kIerReceive | kIerTransmit);
    EXPECT_EQ(irq.take(), 1U);
    outb(port, kIer, 0);
    outb(port, kIer, kIerReceive);
    EXPECT_EQ(irq.take(), 1U) << "the byte is still there";
}

TEST_F(SerialPortTest, Out2DoesNotGateTheInterrupt) {
    outb(port, kMcr, 0);
    outb(port, kIer, kIerTransmit);
    EXPECT_EQ(irq.take(), 1U);
}

// ---- State

TEST_F(SerialPortTest, StateSurvivesARestore) {
    outb(port, kFcr, kFcrEnable | kFcrTrigger8);
    outb(port, kLcr, 0x13);
    outb(port, kIer, kIerReceive | kIerTransmit);
    outb(port, kScr, 0x77);
    feed(port, "typed ahead");
    print(port, "not yet shown");

    RecordingIrq other_irq;
    SerialPort restored(other_irq, {}, port.state());
    EXPECT_EQ(restored.state(), port.state());
    EXPECT_EQ(other_irq.take(), 0U);
    restored.repeat_interrupt();
    EXPECT_EQ(other_irq.take(), 1U);
    EXPECT_EQ(inb(restored, kIir), kIirFifo | kIirReceive);
    EXPECT_EQ(read_all(restored), "typed ahead");
    EXPECT_EQ(inb(restored, kIir), kIirFifo | kIirTransmit);
    EXPECT_EQ(take(restored), "") << "the host that had it prints it";
    EXPECT_EQ(take(port), "not yet shown");
}

TEST_F(SerialPortTest, PortRestoredFullAnnouncesRoom) {
    outb(port, kFcr, kFcrEnable);
    feed(port, "0123456789abcdef");
    SerialPort restored(irq, callbacks(), port.state());
    read_all(restored);
    EXPECT_EQ(rooms_ready, 1);
}

TEST_F(SerialPortTest, NothingPendingIsNotRaisedAfterARestore) {
    port.repeat_interrupt();
    EXPECT_EQ(irq.take(), 0U);
}

TEST_F(SerialPortTest, DamagedStateIsRefused) {
    const auto refused = [this](const SerialPort::State& state) { EXPECT_THROW(SerialPort(irq, {}, state), Error); };
    refused({.ier = 0x10});
    refused({.mcr = 0x20});
    refused({.msr_changes = 0x10});
    refused({.receive_trigger = 4});
    refused({.fifo_enabled = true, .receive_trigger = 2});
    refused({.received_bytes = 2});
    refused({.fifo_enabled = true, .received_bytes = 17});
    refused({.fifo_enabled = true, .received_bytes = 255});
    refused({.received_bytes = 0, .received = {1}});
}

// ---- Hostile guests, and threads

TEST_F(SerialPortTest, HostileGuestLeavesItInAStateThatCanBeRestored) {
    constexpr std::size_t kCapacity = 64;
    SerialPort victim(irq, callbacks(), kCapacity);
    HostileGuest guest(17);
    for (int step = 0; step < 200'000; ++step) {
        guest.access(victim, SerialPort::kSize);
        if (guest.below(8) == 0) {
            const std::size_t room = victim.input_room();
            ASSERT_LE(room, SerialPort::kReceiveFifoBytes);
            ASSERT_EQ(feed(victim, "twenty bytes of text"), room);
        }
        if (guest.below(2048) == 0) {
            ASSERT_LE(take(victim, kCapacity + 1).size(), kCapacity);
        }
        const SerialPort::State state = victim.state();
        const SerialPort restored(irq, {}, state, 1);
        ASSERT_EQ(restored.state(), state);
    }
    EXPECT_GT(victim.dropped_output_bytes(), 0U);
}

TEST_F(SerialPortTest, RestoredPortGoesOnLikeTheOriginal) {
    const auto traffic = [](SerialPort& target, HostileGuest& guest) {
        guest.access(target, SerialPort::kSize);
        return guest.below(4) == 0 ? feed(target, "typed") : 0;
    };
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        HostileGuest before(seed);
        SerialPort original(irq, {}, 64);
        for (int step = 0; step < 100; ++step) {
            traffic(original, before);
        }
        take(original);
        irq.take();

        RecordingIrq restored_irq;
        SerialPort restored(restored_irq, {}, original.state(), 64);
        HostileGuest guest(seed + 1000);
        HostileGuest same_guest(seed + 1000);
        for (int step = 0; step < 100; ++step) {
            ASSERT_EQ(traffic(restored, same_guest), traffic(original, guest));
            ASSERT_EQ(restored.state(), original.state());
            ASSERT_EQ(restored_irq.pulses(), irq.pulses());
        }
        EXPECT_EQ(take(restored), take(original));
    }
}

TEST_F(SerialPortTest, DriverInTheMiddleOfAnInterruptGoesOnWithARestoredPort) {
    outb(port, kFcr, kFcrEnable | kFcrTrigger8);
    outb(port, kIer, kIerReceive | kIerTransmit);
    feed(port, "login");
    print(port, "ok");
    EXPECT_EQ(inb(port, kIir), kIirFifo | kIirTimeout);
    EXPECT_EQ(inb(port, kRbr), unsigned{'l'});

    RecordingIrq restored_irq;
    SerialPort restored(restored_irq, callbacks(), port.state());
    EXPECT_EQ(read_all(restored), "ogin");
    EXPECT_EQ(inb(restored, kIir), kIirFifo | kIirTransmit);
    EXPECT_EQ(inb(restored, kIir), kIirFifo | kIirNone);
    print(restored, "!");
    EXPECT_EQ(restored_irq.take(), 1U);
    EXPECT_EQ(take(restored), "!");
    EXPECT_EQ(feed(restored, "12345678"), 8U);
    EXPECT_EQ(inb(restored, kIir), kIirFifo | kIirReceive);
}

TEST_F(SerialPortTest, DriverInTheMiddleOfSettingTheSpeedGoesOnWithARestoredPort) {
    outb(port, kLcr, kLcrDlab | 0x03U);
    outb(port, kDll, 0x0c);

    SerialPort restored(irq, {}, port.state());
    outb(restored, kDlm, 0x01);
    outb(restored, kLcr, 0x03);
    EXPECT_EQ(restored.state().divisor, 0x010cU);
    EXPECT_EQ(inb(restored, kIer), 0U);
}

TEST(SerialPortThreads, EveryByteOfAFloodIsTakenOrCounted) {
    constexpr std::uint64_t kBytesEach = 100'000;
    constexpr int kVcpus = 2;
    std::atomic<int> wakeups = 0;
    RecordingIrq irq;
    SerialPort port(irq,
                    {.output_ready =
                         [&] {
                             ++wakeups;
                             wakeups.notify_one();
                         },
                     .input_room_ready = {}},
                    4096);

    std::uint64_t taken = 0;
    std::jthread loop([&] {
        // The contract of output_ready: take until nothing is left, then wait. The end causes one more wake-up.
        int seen = 0;
        std::array<std::byte, 512> chunk{};
        while (seen >= 0) {
            wakeups.wait(seen);
            seen = wakeups.load();
            while (const std::size_t count = port.take_output(chunk)) {
                taken += count;
            }
        }
    });
    {
        std::vector<std::jthread> vcpus;
        for (int i = 0; i < kVcpus; ++i) {
            vcpus.emplace_back([&port] {
                for (std::uint64_t sent = 0; sent < kBytesEach; ++sent) {
                    outb(port, kThr, 'x');
                }
            });
        }
    }
    wakeups = -1'000'000;
    wakeups.notify_one();
    loop.join();
    EXPECT_EQ(taken + port.dropped_output_bytes(), kBytesEach * kVcpus);
}

TEST(SerialPortThreads, DriverThatWaitsForInterruptsMissesNoInputAndTheHostMissesNoRoom) {
    constexpr std::size_t kBytes = 50'000;
    /// Wakes the vCPU like the interrupt controller: pulses merge with one that is pending.
    class WakingIrq final : public IrqLine {
      public:
        void raise() noexcept override {
            pending_.store(true);
            pending_.notify_one();
        }
        void wait() noexcept {
            pending_.wait(false);
            pending_.store(false);
        }

      private:
        std::atomic<bool> pending_ = false;
    };
    WakingIrq irq;
    std::atomic<bool> room = true;
    SerialPort port(irq, {.output_ready = {}, .input_room_ready = [&] {
                              room = true;
                              room.notify_one();
                          }});
    outb(port, kFcr, kFcrEnable | kFcrTrigger8);
    outb(port, kIer, kIerReceive);

    std::string received;
    std::jthread vcpu([&] {
        while (received.size() < kBytes) {
            irq.wait();
            while ((inb(port, kIir) & kIirNone) == 0) {
                received += read_all(port);
            }
        }
    });
    std::string sent;
    for (std::size_t i = 0; i < kBytes; ++i) {
        sent += static_cast<char>('a' + i % 26);
    }
    for (std::string_view rest = sent; !rest.empty();) {
        room.wait(false);
        room = false;
        while (const std::size_t accepted = feed(port, rest.substr(0, 1 + rest.size() % 40))) {
            rest.remove_prefix(accepted);
        }
    }
    vcpu.join();
    EXPECT_EQ(received, sent);
}

} // namespace
} // namespace vmm::devices
