// The words of --disk, --net, --vsock and --balloon.

#include <gtest/gtest.h>

#include <cctype>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "vmm/cli/device_options.hpp"

namespace vmm {
namespace {

TEST(DiskOption, OfAPathAloneIsAWritableDiskOfOneQueue) {
    const DiskConfig disk = parse_disk_option("a.img");
    EXPECT_EQ(disk, (DiskConfig{.path = "a.img"}));
    EXPECT_EQ(disk.queues, 1U);
    EXPECT_FALSE(disk.read_only);
}

TEST(DiskOption, TakesItsWordsInAnyOrder) {
    const DiskConfig wanted{.path = "/x/a.img", .read_only = true, .direct = true, .queues = 4, .id = "root"};
    EXPECT_EQ(parse_disk_option("/x/a.img,ro,direct,queues=4,id=root"), wanted);
    EXPECT_EQ(parse_disk_option("/x/a.img,id=root,queues=4,direct,ro"), wanted);
}

TEST(DiskOption, SaysHowLargeTheGuestsSectorsAre) {
    EXPECT_EQ(parse_disk_option("a.img").sector_bytes, 512U);
    EXPECT_EQ(parse_disk_option("a.img,sector=4096").sector_bytes, 4096U);
    EXPECT_EQ(parse_disk_option("a.img,direct,sector=512").sector_bytes, 512U);
    for (const char* const text : {"a.img,sector=", "a.img,sector=1024", "a.img,sector=4K", "a.img,sector=0512"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_disk_option(text)); }).find("512, 4096"),
                  std::string::npos)
            << text;
    }
}

TEST(DiskOption, SaysHowItsIoIsDone) {
    EXPECT_EQ(parse_disk_option("a.img").io, devices::DiskIoKind::kAuto);
    EXPECT_EQ(parse_disk_option("a.img,io=uring").io, devices::DiskIoKind::kUring);
    EXPECT_EQ(parse_disk_option("a.img,io=threads").io, devices::DiskIoKind::kThreads);
    EXPECT_NE(
        testing::error_of([] { static_cast<void>(parse_disk_option("a.img,io=native")); }).find("auto, uring, threads"),
        std::string::npos);
}

TEST(DiskOption, HasACommaInItsPathWhereTwoAreWritten) {
    EXPECT_EQ(parse_disk_option("a,,b.img,ro").path, "a,b.img");
    EXPECT_EQ(parse_disk_option("ro").path, "ro") << "the first word is the path, whatever it is";
}

TEST(DiskOption, ThatIsNotUnderstoodNamesTheWord) {
    EXPECT_EQ(testing::error_of([] { static_cast<void>(parse_disk_option("")); }), "'' names no file");
    for (const char* const text : {"a.img,rw", "a.img,", "a.img,queue=2", "a.img,queues", "a.img,format=qcow2"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_disk_option(text)); }).find("is not known here"),
                  std::string::npos)
            << text;
    }
    for (const char* const text :
         {"a.img,queues=", "a.img,queues=two", "a.img,queues=-1", "a.img,queues=99999999999"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_disk_option(text)); }).find("no number of queues"),
                  std::string::npos)
            << text;
    }
}

TEST(DiskOption, IsLockedUnlessSwitchedOff) {
    EXPECT_TRUE(parse_disk_option("a.img").lock);
    EXPECT_TRUE(parse_disk_option("a.img,lock=on").lock);
    EXPECT_FALSE(parse_disk_option("a.img,lock=off").lock);
    for (const char* const text : {"a.img,lock=", "a.img,lock=no", "a.img,lock"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_disk_option(text)); }).find("lock"),
                  std::string::npos)
            << text;
    }
}

TEST(DiskOption, HasItsInterruptsModeratedUnlessSwitchedOff) {
    EXPECT_TRUE(parse_disk_option("a.img").moderation);
    EXPECT_TRUE(parse_disk_option("a.img,moderation=on").moderation);
    EXPECT_FALSE(parse_disk_option("a.img,moderation=off").moderation);
    EXPECT_NE(testing::error_of([] { static_cast<void>(parse_disk_option("a.img,moderation=no")); }).find("moderation"),
              std::string::npos);
}

TEST(NetOption, NamesATapAndMayNameAMac) {
    EXPECT_EQ(parse_net_option("tap=tap0"), (NetConfig{.tap = "tap0"}));
    EXPECT_EQ(parse_net_option("tap=tap0,queues=4"), (NetConfig{.tap = "tap0", .queues = 4}));
    EXPECT_EQ(parse_net_option("mac=52:54:00:00:00:01,tap=tap0"),
              (NetConfig{.tap = "tap0", .mac = "52:54:00:00:00:01"}));
}

TEST(VsockOption, NamesASocketAndMayNameACid) {
    EXPECT_EQ(parse_vsock_option("/run/v").path, "/run/v");
    EXPECT_EQ(parse_vsock_option("/run/v").cid, 3U);
    EXPECT_EQ(parse_vsock_option("v,cid=77").cid, 77U);
    for (const char* const text : {"", "v,cid=", "v,cid=x", "v,port=1"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_vsock_option(text)); }), "") << text;
    }
}

TEST(NetOption, ThatIsNotUnderstoodNamesTheWord) {
    EXPECT_NE(testing::error_of([] { static_cast<void>(parse_net_option("mac=52:54:00:00:00:01")); }).find("no tap"),
              std::string::npos);
    for (const char* const text : {"tap0", "tap=", "tap=tap0,vhost=on", ""}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_net_option(text)); }), "") << text;
    }
}

TEST(NetOption, OfUserModeMayForwardPorts) {
    EXPECT_EQ(parse_net_option("user"), (NetConfig{.user = true}));
    EXPECT_EQ(parse_net_option("user,mac=52:54:00:00:00:01,host-loopback"),
              (NetConfig{.mac = "52:54:00:00:00:01", .user = true, .host_loopback = true}));
    const NetConfig net = parse_net_option("user,udp=53,tcp=8080:80,tcp=192.0.2.1/2222:22");
    EXPECT_EQ(net.forwards,
              (std::vector<PortForward>{
                  {false, "127.0.0.1", 8080, 80}, {false, "192.0.2.1", 2222, 22}, {true, "127.0.0.1", 53, 53}}));
}

TEST(NetOption, ThatIsBothOrNeitherIsRefused) {
    for (const char* const text : {"user,tap=tap0", "tap=tap0,tcp=80", "tap=tap0,host-loopback", "tcp=80", "user=1"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_net_option(text)); }), "") << text;
    }
    for (const char* const text : {"user,tcp=", "user,tcp=0", "user,tcp=80:", "user,tcp=80:65536", "user,tcp=ssh",
                                   "user,tcp=1:2:3", "user,udp=/"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_net_option(text)); }).find("port"), std::string::npos)
            << text;
    }
}

TEST(DeviceOption, WithAWordTwiceIsRefused) {
    EXPECT_EQ(testing::error_of([] { static_cast<void>(parse_disk_option("a,ro,queues=1,queues=2")); }),
              "'queues' is there twice");
    EXPECT_NE(testing::error_of([] { static_cast<void>(parse_net_option("user,user")); }), "");
}

TEST(MemoryFromOption, HasAPathAndMayFallBack) {
    EXPECT_EQ(parse_memory_from_option("/run/pool"), (MemoryFrom{"/run/pool", false}));
    EXPECT_EQ(parse_memory_from_option("a,,b,fallback"), (MemoryFrom{"a,b", true}));
    for (const char* const text : {"", ",fallback", "/run/pool,fall", "/run/pool,fallback=on"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_memory_from_option(text)); }), "") << text;
    }
}

TEST(BalloonOption, HasASizeAndMayHaveReports) {
    EXPECT_EQ(parse_balloon_option("256M"), (BalloonConfig{256 * kMiB, false}));
    EXPECT_EQ(parse_balloon_option("0,reporting"), (BalloonConfig{0, true}));
    for (const char* const text : {"", "reporting", "1G,report", "1G,reporting=on"}) {
        EXPECT_NE(testing::error_of([&] { static_cast<void>(parse_balloon_option(text)); }), "") << text;
    }
}

TEST(DeviceSyntax, NamesEveryWordInItsUsage) {
    for (const DeviceSyntax& syntax : device_syntaxes()) {
        for (const DeviceWord& word : syntax.words) {
            std::string shown(word.name);
            if (word.kind == DeviceWord::Kind::kFirst) {
                for (char& c : shown) {
                    c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
                }
            }
            EXPECT_NE(syntax.usage.find(shown), std::string::npos) << syntax.option << " " << word.name;
        }
    }
}

} // namespace
} // namespace vmm
