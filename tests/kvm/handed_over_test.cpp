// Disks for a guest whose process is confined: it opens nothing itself, and gets descriptors that somebody else has
// opened.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"
#include "vmm/control/client.hpp"

namespace vmm {
namespace {

using control::Client;
using testing::CommandResult;
using testing::eventually;
using testing::mentions;

/// A guest whose process is confined as a whole.
class HandedOver : public testing::KvmTest {
  protected:
    void begin() {
        ASSERT_TRUE(eventually([&] {
            try {
                return mentions(client_.ask("GET", "/status").body, "\"running\"") || guest_.has_ended();
            } catch (const control::NobodyThere&) {
                return guest_.has_ended();
            }
        }));
        ASSERT_FALSE(guest_.has_ended()) << guest_.errors();
    }
    std::string disk(const std::string& name) const {
        std::string path = directory_.write(name, "");
        std::filesystem::resize_file(path, 1U << 20U);
        return path;
    }
    [[nodiscard]] CommandResult ctl(const std::vector<std::string>& words) const {
        std::vector<std::string> all{"ctl", socket_};
        all.insert(all.end(), words.begin(), words.end());
        return testing::run_command(all);
    }
    /// The result of a request to add that device, as text.
    [[nodiscard]] std::string outcome(const std::string& target, const std::string& body,
                                      std::span<const int> descriptors) const {
        const auto begun = client_.ask("POST", target, body, descriptors);
        if (begun.status != 202) {
            return begun.body;
        }
        const std::string job = "/jobs/" + nlohmann::json::parse(begun.body).at("id").dump();
        std::string text;
        EXPECT_TRUE(eventually([&] {
            text = client_.ask("GET", job).body;
            return !mentions(text, "\"running\"");
        }));
        return text;
    }

    testing::TemporaryDirectory directory_;
    std::string socket_ = directory_ / "api";
    testing::CommandBeside guest_{
        {"run", "-m", "32M", "--cmdline", "passes=1000000", "--serial", "none", "--api", socket_}};
    Client client_{socket_};
};

TEST_F(HandedOver, DiskOfTheCommandIsThereAndLocked) {
    begin();
    const std::string path = disk("a");
    const CommandResult added = ctl({"add-disk", path});
    EXPECT_EQ(added.exit_status, 0) << added.errors;
    EXPECT_TRUE(mentions(added.output, "blk0")) << added.output;
    // The thread sets its name when it runs.
    EXPECT_TRUE(eventually([&] { return guest_.has_thread("blk0"); }));
    EXPECT_TRUE(mentions(ctl({"status"}).output, "blk0"));

    const CommandResult again = ctl({"add-disk", path});
    EXPECT_EQ(again.exit_status, 1);
    EXPECT_TRUE(mentions(again.output + again.errors, "uses it")) << again.output << again.errors;

    for (const std::vector<std::string>& more : {std::vector<std::string>{"--read-only"}, {"--direct"}}) {
        std::vector<std::string> words{"add-disk", disk("b" + more.front())};
        words.insert(words.end(), more.begin(), more.end());
        const CommandResult other = ctl(words);
        EXPECT_EQ(other.exit_status, 0) << other.output << other.errors;
    }
    EXPECT_FALSE(guest_.has_ended()) << guest_.errors();
}

TEST_F(HandedOver, NetworksOfTheCommandRunOnWithoutIt) {
    begin();
    const std::vector<std::vector<std::string>> networks{{"add-net", "--user"},
                                                         {"add-net", "--user", "--host-loopback"}};
    for (std::size_t i = 0; i < networks.size(); ++i) {
        const CommandResult added = ctl(networks[i]);
        if (mentions(added.errors, "install the package passt")) {
            GTEST_SKIP() << "passt is not installed";
        }
        EXPECT_EQ(added.exit_status, 0) << added.output << added.errors;
        const std::string name = "net" + std::to_string(i);
        EXPECT_TRUE(mentions(added.output, name)) << added.output;
        EXPECT_TRUE(eventually([&] { return guest_.has_thread(name); }));
    }
    const CommandResult wrong = ctl({"add-net", "--user", "--queues", "2"});
    EXPECT_EQ(wrong.exit_status, 1);
    EXPECT_TRUE(mentions(wrong.errors, "passt has one stream of frames")) << wrong.errors;
    const CommandResult nothing = ctl({"add-net"});
    EXPECT_EQ(nothing.exit_status, 1);
    EXPECT_TRUE(mentions(nothing.errors, "neither a tap interface nor user mode")) << nothing.errors;
    EXPECT_FALSE(guest_.has_ended()) << guest_.errors();
}

TEST_F(HandedOver, WhatTheCommandCannotOpenItSaysItself) {
    begin();
    const CommandResult missing = ctl({"add-disk", directory_ / "none"});
    EXPECT_EQ(missing.exit_status, 1);
    EXPECT_TRUE(mentions(missing.errors, "cannot open the disk ")) << missing.errors;
}

TEST_F(HandedOver, RequestWithoutADescriptorIsRefusedWithAdvice) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "a sanitizer's runtime makes calls of its own, so the sandbox is off";
#endif
    begin();
    const std::string refusal = outcome("/add-disk", R"({"path": ")" + disk("a") + R"("})", {});
    EXPECT_TRUE(mentions(refusal, "this process is confined") && mentions(refusal, "vmm ctl")) << refusal;
    EXPECT_TRUE(mentions(outcome("/add-net", R"({"tap": "tap7"})", {}), "this process is confined"));
    EXPECT_TRUE(mentions(outcome("/add-net", R"({"tap": "tap7", "queues": 2})", {}), "this process is confined"));
    EXPECT_TRUE(mentions(outcome("/add-net", R"({"user": true})", {}), "this process is confined"));
}

TEST_F(HandedOver, DescriptorThatIsSomethingElseIsRefused) {
    begin();
    const std::string path = disk("a");
    const std::string body = R"({"path": ")" + path + R"("})";
    const auto refusal = [&](const std::string& what, int flags, const std::string& target, const std::string& text) {
        const UniqueFd fd(::open(what.c_str(), flags | O_CLOEXEC));
        return outcome(target, text, std::array{fd.get()});
    };
    EXPECT_TRUE(mentions(refusal(path, O_RDONLY, "/add-disk", body), "it is not open for reading and writing"));
    EXPECT_TRUE(mentions(refusal("/dev/null", O_RDWR, "/add-disk", body), "neither a regular file nor a block device"));
    EXPECT_TRUE(mentions(refusal(path, O_RDWR, "/add-net", R"({"tap": "tap7"})"), "it is no tap interface"));
    EXPECT_TRUE(
        mentions(refusal(path, O_RDWR, "/add-net", R"({"user": true, "host_loopback": true})"), "1 descriptors came"));
    EXPECT_TRUE(mentions(refusal(path, O_RDWR, "/add-disk", body), "blk0")) << "the name is free, and so is the image";
    EXPECT_FALSE(guest_.has_ended()) << guest_.errors();
}

} // namespace
} // namespace vmm
