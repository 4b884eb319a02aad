#include <gtest/gtest.h>

#include "loader/kernel.hpp"
#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using namespace std::string_literals;
using testing::bytes_of;
using testing::error_of;
using testing::mentions;

std::string error_for(const std::string& content) {
    return error_of([&] { return Kernel::parse(ImageFile::from_bytes("image", bytes_of(content))); });
}

/// A file with `magic` at `offset`, and zeros otherwise.
std::string with_magic(std::size_t offset, const std::string& magic) {
    std::string content(4096, '\0');
    return content.replace(offset, magic.size(), magic);
}

TEST(ForeignImage, EmptyFileIsNamed) {
    EXPECT_EQ(error_for(""), "cannot boot image: it is empty");
}

TEST(ForeignImage, CompressedKernelIsNamedWithTheWayOut) {
    EXPECT_EQ(
        error_for(with_magic(0, "\x1f\x8b")),
        "cannot boot image: it is gzip-compressed data (decompress it first: Linux' scripts/extract-vmlinux does)");
    EXPECT_TRUE(mentions(error_for(with_magic(0, "\x28\xb5\x2f\xfd")), "zstd-compressed"));
    EXPECT_TRUE(mentions(error_for(with_magic(0, "\xfd\x37zXZ\0"s)), "xz-compressed"));
}

TEST(ForeignImage, KernelOfAnotherArchitectureIsNamed) {
    EXPECT_TRUE(mentions(error_for(with_magic(0x38, "ARM\x64")), "it is an ARM64 Image"));
    EXPECT_TRUE(mentions(error_for(with_magic(0x38, "RSC\x05")), "it is a RISC-V Image"));
    EXPECT_TRUE(mentions(error_for(with_magic(0, "MZ\0\0zimg"s)), "a compressed EFI kernel of another architecture"));
    std::string arm64_with_efi_stub = with_magic(0x38, "ARM\x64");
    arm64_with_efi_stub.replace(0, 2, "MZ");
    EXPECT_TRUE(mentions(error_for(arm64_with_efi_stub), "it is an ARM64 Image"));
}

TEST(ForeignImage, EfiProgramIsNotTakenForABzImage) {
    EXPECT_TRUE(mentions(error_for(with_magic(0, "MZ")), "an EFI or Windows program"));
}

TEST(ForeignImage, OtherFilesAreNamed) {
    EXPECT_TRUE(mentions(error_for("070701000"), "name the kernel here, and this as the initrd"));
    EXPECT_TRUE(mentions(error_for(with_magic(0, "QFI\xfb")), "it is a qcow2 disk image"));
    EXPECT_TRUE(mentions(error_for(with_magic(0x1fe, "\x55\xaa")), "a boot sector or a disk image"));
    EXPECT_TRUE(mentions(error_for("#!/bin/sh\n"), "it is a script"));
    EXPECT_TRUE(mentions(error_for("Hello, world\n"), "it is a text file"));
    EXPECT_TRUE(mentions(error_for("!<arch>\ndebian-binary"), "unpack it first"));
}

TEST(ForeignImage, UnknownFileShowsItsFirstBytes) {
    EXPECT_TRUE(mentions(error_for("\x01\x02\xff"), "it starts with 01 02 ff (a kernel for vmm is a bzImage"))
        << error_for("\x01\x02\xff");
}

} // namespace
} // namespace vmm::loader
