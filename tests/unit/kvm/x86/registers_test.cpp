#include <gtest/gtest.h>

#include <string>

#include "kvm/x86/registers.hpp"
#include "support/host_errors.hpp"

namespace vmm::kvm {
namespace {

using testing::mentions;

TEST(DescribeRegisters, GivesEachGeneralRegisterItsOwnValue) {
    kvm_regs registers{};
    registers.rip = 0x100;
    registers.rax = 0x101;
    registers.rbx = 0x102;
    registers.rcx = 0x103;
    registers.rdx = 0x104;
    registers.rsp = 0x105;
    registers.r15 = 0x106;
    registers.rflags = 0x107;
    const std::string text = describe_registers(registers, {});
    for (const char* const line :
         {"rip 0000000000000100", "rax  0000000000000101", "rbx  0000000000000102", "rcx  0000000000000103",
          "rdx  0000000000000104", "rsp  0000000000000105", "r15  0000000000000106", "rflags 0000000000000107"}) {
        EXPECT_TRUE(mentions(text, line)) << line << " is not in\n" << text;
    }
}

TEST(DescribeRegisters, TellsTheModeOfTheProcessor) {
    kvm_sregs special{};
    special.cr0 = 0x80000011;
    special.cr2 = 0xdeadbeef;
    special.efer = 0x500;
    special.cs.selector = 0x33;
    special.cs.dpl = 3;
    special.cs.l = 1;
    const std::string text = describe_registers({}, special);
    for (const char* const line :
         {"cr0  0000000080000011", "cr2  00000000deadbeef", "efer 0000000000000500", "cs 0033 base 0 dpl 3 l 1"}) {
        EXPECT_TRUE(mentions(text, line)) << line << " is not in\n" << text;
    }
}

TEST(DescribeRegisters, EndsWithANewline) {
    EXPECT_EQ(describe_registers({}, {}).back(), '\n');
}

} // namespace
} // namespace vmm::kvm
