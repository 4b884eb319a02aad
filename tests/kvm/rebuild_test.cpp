// A guest is paused, and goes on in another machine, which is made from its state and a copy of its memory.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/disk_writer.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine/boot.hpp"
#include "vmm/machine/capture.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/generation_id.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/rebuild.hpp"
#include "vmm/machine/run.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::eventually;
using testing::mentions;

/// Everything that is kept of a machine.
struct Saved {
    MachineState state;
    std::vector<std::vector<std::byte>> memory; ///< by range of `state.memory`
};

/// A machine that goes on from the saved state of another one.
class FromSaved final : public FirstState {
  public:
    /// `saved` outlives it.
    explicit FromSaved(const Saved& saved, const GoingOn& how) : saved_(saved), how_(how) {}
    [[nodiscard]] const MachineState* state() const noexcept override { return &saved_.state; }
    [[nodiscard]] bool adopts_page_tables(const prefault::SecondLevelHost& /*host*/) const override {
        return saved_.state.adopted_page_tables.has_value();
    }
    void put_into(Hardware& hardware, Embedder& /*embedder*/) override {
        if (saved_.state.adopted_page_tables) {
            EXPECT_EQ(hardware.second_level.page_tables(), *saved_.state.adopted_page_tables);
        }
        for (std::size_t i = 0; i < saved_.memory.size(); ++i) {
            EXPECT_TRUE(hardware.ram.memory().copy_in(saved_.state.memory[i].base, saved_.memory[i]));
        }
    }
    void start(Hardware& hardware) override { restore_clocks_and_interrupts(hardware, saved_.state, how_); }
    [[nodiscard]] std::optional<GuestAddress> generation_id_at() const noexcept override {
        return saved_.state.generation_id_at;
    }
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept override { return saved_.state.device_tree; }

  private:
    const Saved& saved_;
    GoingOn how_;
};

/// A machine in parts, like Machine, and the output of its guest on the serial port.
class Guest {
  public:
    /// It boots, or goes on from `saved`, which must outlive it. Destruction stops it.
    explicit Guest(Config wanted, const Saved* saved = nullptr, const GoingOn& how = {})
        : config_(checked(std::move(wanted), *this)), embedder_({}, stop_), first_(first(saved, how)),
          hardware_(config_, stop_, embedder_, *first_),
          run_(config_, hardware_, *first_, stop_, embedder_, report_, std::chrono::steady_clock::now()) {
        if (config_.prefault.scope == prefault::Scope::kAll) {
            hardware_.second_level.prepare();
        }
        first_->put_into(hardware_, embedder_);
        if (config_.prefault.scope == prefault::Scope::kAll) {
            static_cast<void>(hardware_.second_level.fill(config_.prefault, {}));
        }
        running_ = std::jthread([this] { reason_ = run_.execute(); });
    }
    ~Guest() { stop_.request(ExitReason::kStopped); }
    Guest(const Guest&) = delete;
    Guest& operator=(const Guest&) = delete;

    [[nodiscard]] std::string said() const {
        const std::lock_guard hold(lock_);
        return said_;
    }
    [[nodiscard]] bool says(const std::string& text) const {
        return eventually([&] { return mentions(said(), text); });
    }
    [[nodiscard]] ExitReason wait() {
        running_.join();
        return reason_;
    }
    void stop() { stop_.request(ExitReason::kStopped); }

    /// Pauses it, and returns its whole state. It stays paused.
    [[nodiscard]] Saved save() {
        run_.pause().pause(std::chrono::hours(1));
        return save_paused();
    }
    /// Throws UsageError: it is not paused.
    [[nodiscard]] Saved save_paused() {
        return run_.pause().look_while_paused("save the guest", [this] {
            Saved saved{capture(hardware_, config_, *first_), {}};
            for (const GuestRange& range : saved.state.memory) {
                std::vector<std::byte>& bytes = saved.memory.emplace_back(range.size);
                EXPECT_TRUE(hardware_.ram.memory().copy_out(range.base, bytes));
            }
            return saved;
        });
    }
    void go_on() { run_.pause().resume(); }
    [[nodiscard]] Hardware& hardware() noexcept { return hardware_; }

  private:
    static Config checked(Config config, Guest& guest) {
        config.serial.sink = [&guest](std::span<const std::byte> bytes) {
            const std::lock_guard hold(guest.lock_);
            for (const std::byte byte : bytes) {
                guest.said_ += static_cast<char>(byte);
            }
        };
        config = resolved(std::move(config));
        validate(config);
        return config;
    }
    [[nodiscard]] std::unique_ptr<FirstState> first(const Saved* saved, const GoingOn& how) const {
        if (saved != nullptr) {
            return std::make_unique<FromSaved>(*saved, how);
        }
        return std::make_unique<KernelBoot>(config_, stop_);
    }

    mutable std::mutex lock_;
    std::string said_;
    Config config_;
    StopRequest stop_;
    Embedder embedder_;
    std::unique_ptr<FirstState> first_;
    Hardware hardware_;
    RunReport report_;
    Run run_;
    ExitReason reason_ = ExitReason::kCrash;
    std::jthread running_;
};

using Capture = testing::KvmTest;

/// In each pass the built-in guest checks that memory holds what it wrote in the pass before.
Config checking_guest(unsigned vcpus) {
    Config config;
    config.memory_bytes = 16 * kMiB;
    config.vcpus = vcpus;
    config.command_line = "passes=1000000 check=1";
    return config;
}

std::size_t count(const std::string& text, const std::string& word) {
    std::size_t found = 0;
    for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
        ++found;
    }
    return found;
}

/// Lets it make some more passes, and checks their results.
void expect_goes_on(const Guest& guest) {
    constexpr std::size_t kSome = 20;
    const std::size_t before = count(guest.said(), " errors=");
    EXPECT_TRUE(eventually([&] { return count(guest.said(), " errors=") > before + kSome; })) << guest.said();
    const std::string said = guest.said();
    EXPECT_LE(count(said, " errors="), count(said, " errors=0") + 1) << said; // the last line may lack its number
    EXPECT_FALSE(mentions(said, "error what")) << said;
}

TEST_F(Capture, GuestInMidPassGoesOnInAnotherMachineAndFindsItsMemory) {
    for (const unsigned vcpus : {1U, 2U}) {
        const Config config = checking_guest(vcpus);
        Guest first(config);
        ASSERT_TRUE(first.says("pass=5 "));
        const Saved saved = first.save();
        EXPECT_EQ(saved.state.vcpus.size(), vcpus);
        EXPECT_EQ(saved.state.adopted_page_tables, std::nullopt);
        Guest second(config, &saved);
        expect_goes_on(second);
        EXPECT_FALSE(mentions(second.said(), "pass=4 ")) << second.said();
        first.go_on(); // The first machine is not affected.
        expect_goes_on(first);
    }
}

TEST_F(Capture, GuestThatAdoptedThePrefaultsPageTablesFindsThemInTheOtherMachine) {
    Config config = checking_guest(2);
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
    Guest first(config);
    ASSERT_TRUE(first.says("pass=5 "));
    const Saved saved = first.save();
    EXPECT_EQ(saved.state.adopted_page_tables.has_value(), first.hardware().second_level.host().may_be_shadow());
    first.stop();
    Guest second(config, &saved);
    expect_goes_on(second);
}

/// The numbers in complete lines "flushed=N".
std::vector<std::uint64_t> flushed(const std::string& said) {
    constexpr std::string_view kWord = "flushed=";
    std::vector<std::uint64_t> numbers;
    for (std::size_t at = said.find(kWord); at != std::string::npos; at = said.find(kWord, at + 1)) {
        if (said.find('\n', at) != std::string::npos) {
            numbers.push_back(std::stoull(said.substr(at + kWord.size())));
        }
    }
    return numbers;
}

TEST_F(Capture, GuestThatWritesToADiskGoesOnAgainAndAgainAndLosesNothing) {
    using namespace testing::disk_writer;
    const testing::TemporaryDirectory directory;
    Config config;
    config.kernel_path = std::filesystem::exists(DISK_WRITER_KERNEL) ? DISK_WRITER_KERNEL : "/bin/disk_writer.elf";
    config.transport = VirtioTransport::kMmio; // The kernel's driver knows no other transport.
    config.memory_bytes = 16 * kMiB;
    config.command_line = "first=1";
    config.disks.push_back({.path = directory.write("disk", "")});
    std::filesystem::resize_file(config.disks[0].path, kPlaces * kBlockBytes);
    config.console = CharacterConfig{};
    config.rng = true;
    config.balloon = BalloonConfig{};

    std::vector<std::uint64_t> all;
    std::optional<Saved> saved;
    for (int round = 0; round < 6; ++round) {
        std::optional<Saved> next;
        {
            Guest guest(config, saved ? &*saved : nullptr);
            // Different moments in each run.
            EXPECT_TRUE(eventually([&] { return flushed(guest.said()).size() > 7U + static_cast<unsigned>(round); }))
                << "round " << round << ": " << guest.said();
            next = guest.save();
            guest.stop();
            static_cast<void>(guest.wait());
            EXPECT_FALSE(mentions(guest.said(), "error")) << guest.said();
            const std::vector<std::uint64_t> numbers = flushed(guest.said());
            all.insert(all.end(), numbers.begin(), numbers.end());
        }
        saved = std::move(next);
    }
    // A pause may have cut a line, so that the next machine prints its second half.
    for (std::size_t i = 1; i < all.size(); ++i) {
        EXPECT_GT(all[i], all[i - 1]);
        EXPECT_LE(all[i], all[i - 1] + 2 * kBatch);
    }
    // Flushed data is on the disk, and the disk has nothing that was never written.
    std::ifstream file(config.disks[0].path, std::ios::binary);
    std::array<std::uint64_t, kBlockBytes / 8> block{};
    for (std::uint64_t place = 0; place < kPlaces; ++place) {
        // The bytes of a file may be of any type.
        ASSERT_TRUE(file.read(reinterpret_cast<char*>(block.data()), sizeof(block)));
        const std::uint64_t number = block[0] >> 16;
        std::uint64_t wanted = 0; // the last flushed write to this place
        for (std::uint64_t write = all.back(); write >= 1 && wanted == 0; --write) {
            wanted = place_of(write) == place ? write : 0;
        }
        EXPECT_GE(number, wanted) << "place " << place;
        for (std::uint64_t word = 0; word < block.size() && number != 0; ++word) {
            ASSERT_EQ(block[word], word_of(number, word)) << "place " << place;
        }
    }
}

TEST_F(Capture, StateOfAnotherMachineIsRefusedByWhatDiffers) {
    const testing::TemporaryDirectory directory;
    const std::string small = directory.write("small", std::string(64 * 512, ' '));
    const std::string large = directory.write("large", std::string(128 * 512, ' '));
    Config config = checking_guest(2);
    config.disks.push_back({.path = small});
    config.rng = true;
    Saved saved;
    {
        Guest first(config);
        ASSERT_TRUE(first.says("pass=1 "));
        saved = first.save();
    }
    const auto refusal = [&saved](const Config& other) { return error_of([&] { Guest guest(other, &saved); }); };
    Config other = config;
    other.vcpus = 1;
    EXPECT_TRUE(mentions(refusal(other), "has 2 vCPUs, and this machine has 1")) << refusal(other);
    other = config;
    other.memory_bytes = 32 * kMiB;
    EXPECT_TRUE(mentions(refusal(other), "has 16 MiB of memory, and this machine has 32 MiB")) << refusal(other);
    other = config;
    other.disks.clear();
    EXPECT_TRUE(mentions(refusal(other), "has the device blk0 where this configuration has rng0")) << refusal(other);
    other = config;
    other.rng = false;
    EXPECT_TRUE(mentions(refusal(other), "has the device rng0, and this configuration has not")) << refusal(other);
    other = config;
    other.console = CharacterConfig{};
    EXPECT_TRUE(mentions(refusal(other), "this configuration has the device con0")) << refusal(other);
    other = config;
    other.disks[0].path = large;
    EXPECT_TRUE(mentions(refusal(other), "has 64 KiB, and had 32 KiB")) << refusal(other);
    other = config;
    other.disks[0].queues = 4;
    EXPECT_TRUE(mentions(refusal(other), "blk0")) << refusal(other);

    saved.state.virtio[0].device = devices::virtio::RngState{};
    EXPECT_TRUE(mentions(refusal(config), "another kind of device")) << refusal(config);
    saved.state.virtio[0].name = "\x1b[2J" + std::string(100'000, 'x');
    EXPECT_LT(refusal(config).size(), 400U);
    saved.state.memory.push_back({GuestAddress{UINT64_MAX - 4095}, 8192});
    saved.state.virtio.clear();
    other = config;
    other.disks.clear();
    other.rng = false;
    EXPECT_TRUE(mentions(refusal(other), "where this machine can have none")) << refusal(other);
}

TEST_F(Capture, AddedMemoryIsThereInTheOtherMachine) {
    const GuestRange added{GuestAddress{8 * kGiB}, 4 * kMiB};
    const Config config = checking_guest(1);
    Guest first(config);
    ASSERT_TRUE(first.says("pass=1 "));
    static_cast<void>(first.hardware().second_level.add_memory(added, {}));
    const std::array word{std::byte{1}, std::byte{2}};
    ASSERT_TRUE(first.hardware().ram.memory().copy_in(added.base, word));
    const Saved saved = first.save();
    first.stop();
    ASSERT_EQ(saved.state.memory.size(), 2U);
    EXPECT_EQ(saved.state.memory[1], added);
    Guest second(config, &saved);
    std::array<std::byte, 2> there{};
    EXPECT_TRUE(second.hardware().ram.memory().copy_out(added.base, there));
    EXPECT_EQ(there, word);
    expect_goes_on(second);
}

/// The identifier that the guest finds at the address in its tables.
GenerationId generation_of(Guest& guest) {
    return generation_id_in(guest.hardware().ram.memory(), memory_map::kGenerationId.base);
}

/// True if an interrupt waits in the PIC. A guest that never asked for interrupts leaves it there.
bool is_told_of_its_generation(Guest& guest) {
    constexpr unsigned kLine = memory_map::kGenerationIdGsi;
    const kvm_irqchip slave = kvm::save_vm(guest.hardware().vm).interrupt_controllers.at(KVM_IRQCHIP_PIC_SLAVE);
    return (slave.chip.pic.irr & 1U << (kLine - 8)) != 0;
}

TEST_F(Capture, GuestIsOfAnotherGenerationEachTimeItGoesOn) {
    const Config config = checking_guest(1);
    Guest booted(config);
    ASSERT_TRUE(booted.says("pass=1 "));
    EXPECT_NE(generation_of(booted), GenerationId{});
    EXPECT_NE(generation_of(booted), generation_of(*std::make_unique<Guest>(config)));
    EXPECT_FALSE(is_told_of_its_generation(booted));
    const Saved saved = booted.save();
    EXPECT_EQ(saved.state.generation_id_at, memory_map::kGenerationId.base);
    EXPECT_EQ(saved.state.generation_id, generation_of(booted));

    Guest one(config, &saved);
    Guest twin(config, &saved);
    for (Guest* const guest : {&one, &twin}) {
        ASSERT_TRUE(guest->says("pass="));
        EXPECT_NE(generation_of(*guest), saved.state.generation_id);
        EXPECT_TRUE(eventually([&] { return is_told_of_its_generation(*guest); }));
    }
    EXPECT_NE(generation_of(one), generation_of(twin));
    const Saved again = one.save();
    EXPECT_EQ(again.state.generation_id, generation_of(one));
    Guest next(config, &again);
    ASSERT_TRUE(next.says("pass="));
    EXPECT_NE(generation_of(next), again.state.generation_id);
}

TEST_F(Capture, GuestThatOnlyMovedIsOfTheSameGeneration) {
    const Config config = checking_guest(1);
    Saved saved;
    {
        Guest booted(config);
        ASSERT_TRUE(booted.says("pass=1 "));
        saved = booted.save();
    }
    Guest moved(config, &saved, {.generation = GenerationPolicy::kSame});
    ASSERT_TRUE(moved.says("pass="));
    EXPECT_EQ(generation_of(moved), saved.state.generation_id);
    EXPECT_TRUE(eventually([&] { return is_told_of_its_generation(moved); }));
}

TEST_F(Capture, GuestWithoutAGenerationGoesOnWithoutOne) {
    const Config config = checking_guest(1);
    Saved saved;
    {
        Guest booted(config);
        ASSERT_TRUE(booted.says("pass=1 "));
        saved = booted.save();
    }
    const GenerationId before = saved.state.generation_id;
    saved.state.generation_id_at.reset();
    saved.state.generation_id = {};
    Guest guest(config, &saved);
    expect_goes_on(guest);
    EXPECT_EQ(generation_of(guest), before) << "what lies there is the guest's own";
    EXPECT_FALSE(is_told_of_its_generation(guest));
    EXPECT_EQ(guest.save().state.generation_id_at, std::nullopt);
}

TEST_F(Capture, GenerationThatIsNotInMemoryIsRefused) {
    const Config config = checking_guest(1);
    Saved saved;
    {
        Guest booted(config);
        ASSERT_TRUE(booted.says("pass=1 "));
        saved = booted.save();
    }
    for (const std::uint64_t at : {UINT64_MAX, UINT64_MAX - 7, 16 * kMiB, 16 * kMiB - 8, std::uint64_t{0xdf014}}) {
        saved.state.generation_id_at = GuestAddress{at};
        const std::string refusal = error_of([&] { Guest guest(config, &saved); });
        EXPECT_TRUE(mentions(refusal, "its generation identifier is at " + to_string(GuestAddress{at}))) << refusal;
    }
}

TEST_F(Capture, OfAMachineThatRunsOrHasADeviceWithoutStateIsRefused) {
    class Silent final : public CustomDevice {
      public:
        void read(std::uint64_t, std::span<std::byte>) override {}
        void write(std::uint64_t, std::span<const std::byte>) override {}
    };
    Config config = checking_guest(1);
    config.devices.push_back({.name = "ours",
                              .space = DeviceSpace::kPortIo,
                              .base = 0x9000,
                              .size = 4,
                              .interrupt = std::nullopt,
                              .make = [](const DeviceHost&) { return std::make_shared<Silent>(); }});
    Guest guest(config);
    ASSERT_TRUE(guest.says("pass=1 "));
    std::string error = error_of([&] { static_cast<void>(guest.save_paused()); });
    EXPECT_TRUE(mentions(error, "cannot save the guest: ")) << error;
    EXPECT_TRUE(mentions(error, "not paused")) << error;
    error = error_of([&] { static_cast<void>(guest.save()); });
    EXPECT_TRUE(mentions(error, "its device ours is the embedding program's")) << error;
}

} // namespace
} // namespace vmm
