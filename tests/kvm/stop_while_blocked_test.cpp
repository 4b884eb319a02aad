// The command, stopped by a signal while it waits for a file that yields no data.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"

namespace vmm {
namespace {

using testing::CommandBeside;
using testing::eventually;

constexpr int kStoppedBySignal = 4;
constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};

class StopWhileBlocked : public testing::KvmTest {
  protected:
    std::string fifo(const std::string& name) const {
        const std::string path = directory_ / name;
        EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
        return path;
    }

    /// The status of the command when it has opened the fifo at `path` and was sent `signal`. `path` yields no data.
    static int status_after(int signal, const std::vector<std::string>& arguments, const std::string& path) {
        CommandBeside command(arguments);
        UniqueFd writer;
        // As long as nobody reads, there is no writer.
        EXPECT_TRUE(eventually([&] {
            writer.reset(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
            return static_cast<bool>(writer);
        })) << "it does not open "
            << path << ": " << command.errors();
        command.send(signal);
        return command.wait();
    }

    testing::TemporaryDirectory directory_;
};

TEST_F(StopWhileBlocked, OnAKernelThatIsAFifoEachSignalEndsIt) {
    const std::string path = fifo("kernel");
    for (const int signal : kSignals) {
        EXPECT_EQ(status_after(signal, {"run", path}, path), kStoppedBySignal) << signal;
    }
}

TEST_F(StopWhileBlocked, OnAnInitrdThatIsAFifoEachSignalEndsIt) {
    const std::string path = fifo("initrd");
    for (const int signal : kSignals) {
        EXPECT_EQ(status_after(signal, {"run", "--initrd", path}, path), kStoppedBySignal) << signal;
    }
}

TEST_F(StopWhileBlocked, OnAConfigurationThatIsAFifoEachSignalEndsIt) {
    const std::string path = fifo("config");
    for (const int signal : kSignals) {
        EXPECT_EQ(status_after(signal, {"run", "--config", path}, path), kStoppedBySignal) << signal;
    }
}

TEST_F(StopWhileBlocked, OnResultsThatAreAFifoItEnds) {
    const std::string path = fifo("results");
    EXPECT_EQ(status_after(SIGTERM, {"bench", "compare", path, path}, path), kStoppedBySignal);
}

TEST_F(StopWhileBlocked, OnAFifoThatNobodyOpensForWritingItEnds) {
    for (const std::vector<std::string>& arguments :
         std::vector<std::vector<std::string>>{{"run", fifo("kernel")},
                                               {"run", "--initrd", fifo("initrd")},
                                               {"run", "--config", fifo("config")},
                                               {"run", "--dump-dtb", directory_ / "tree", fifo("for-the-tree")},
                                               {"bench", "compare", fifo("results"), "/dev/null"}}) {
        CommandBeside command(arguments);
        EXPECT_TRUE(eventually([&] { return command.catches(SIGTERM); }));
        command.send(SIGTERM);
        EXPECT_EQ(command.wait(), kStoppedBySignal) << arguments[1] << command.errors();
    }
}

TEST_F(StopWhileBlocked, MachineInItsConstructorObeysTheRequestOfItsConfiguration) {
    for (const bool is_kernel : {true, false}) {
        Config config;
        config.memory_bytes = 16 * kMiB;
        (is_kernel ? config.kernel_path : config.initrd_path) = fifo(is_kernel ? "k" : "i");
        config.stop = std::make_shared<StopRequest>();
        std::string error;
        std::jthread maker([&] { error = testing::error_of([&] { Machine machine(config); }); });
        UniqueFd writer;
        const std::string& path = is_kernel ? config.kernel_path : config.initrd_path;
        EXPECT_TRUE(eventually([&] {
            writer.reset(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
            return static_cast<bool>(writer);
        }));
        config.stop->request(ExitReason::kStopped);
        maker.join();
        EXPECT_NE(error.find("a stop was requested"), std::string::npos) << error;
    }
}

} // namespace
} // namespace vmm
