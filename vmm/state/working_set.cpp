#include "vmm/state/working_set.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/state/memory_layout.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

namespace {

constexpr const char* kChunkBytes = "chunk_bytes";
constexpr const char* kChunks = "chunks";
constexpr mode_t kWorkingSetMode = 0600;

constexpr std::array kWorkingSetAdvice{
    ErrnoAdvice{ENOSPC, "free some space"},
    ErrnoAdvice{EDQUOT, "free some space"},
    ErrnoAdvice{EROFS, "record it in a copy of the snapshot that can be written"},
    ErrnoAdvice{EACCES, "become the user who made the snapshot, or root"},
};

[[noreturn]] void refuse_set(const char* why) {
    throw Error(format("the working set is damaged: {} (remove it, or record another one)", why));
}

/// Removes a file in its destructor, unless it has been kept.
class TemporaryFile {
  public:
    TemporaryFile(int directory, std::string name) : directory_(directory), name_(std::move(name)) {}
    ~TemporaryFile() {
        if (!name_.empty()) {
            files::remove_at(directory_, name_.c_str());
        }
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    void stays() noexcept { name_.clear(); }
    [[nodiscard]] const std::string& name() const noexcept { return name_; }

  private:
    int directory_;
    std::string name_;
};

} // namespace

std::string to_json(const WorkingSet& set) {
    nlohmann::ordered_json json;
    json[kChunkBytes] = kMemoryChunkBytes;
    json[kChunks] = set;
    return json.dump() + "\n";
}

WorkingSet parse_working_set(std::string_view text, std::size_t chunks) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains(kChunkBytes) || !json.contains(kChunks) || !json[kChunks].is_array()) {
        refuse_set("it is not what vmm writes");
    }
    if (json[kChunkBytes] != kMemoryChunkBytes) {
        refuse_set("its chunks have another size");
    }
    WorkingSet set;
    std::vector<bool> seen(chunks);
    for (const auto& entry : json[kChunks]) {
        if (!entry.is_number_unsigned() || entry.get<std::uint64_t>() >= chunks) {
            refuse_set("it names memory that the guest does not have");
        }
        const auto chunk = entry.get<std::size_t>();
        if (seen[chunk]) {
            refuse_set("it names a part of memory twice");
        }
        seen[chunk] = true;
        set.push_back(chunk);
    }
    return set;
}

WorkingSet read_working_set(const SnapshotReader& snapshot) {
    const std::string path = snapshot.directory() / snapshot_files::kWorkingSet;
    const UniqueFd file =
        files::open_at(snapshot.directory_fd(), snapshot_files::kWorkingSet, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (!file) {
        const int error_number = errno;
        if (error_number == ENOENT) {
            return {};
        }
        throw_errno(error_number, "open " + path);
    }
    struct stat facts {};
    if (::fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode) ||
        static_cast<std::uint64_t>(facts.st_size) > snapshot_files::kMostWorkingSetBytes) {
        throw Error("cannot read " + path + ": it is no file of a working set (remove it)");
    }
    std::string text(static_cast<std::size_t>(facts.st_size), '\0');
    const ssize_t got = uninterrupted([&] { return ::pread(file.get(), text.data(), text.size(), 0); });
    if (got < 0) {
        const int error_number = errno;
        throw_errno(error_number, "read " + path);
    }
    text.resize(static_cast<std::size_t>(got));
    try {
        return parse_working_set(text, snapshot.layout().chunks());
    } catch (const Error& error) {
        throw Error("cannot use " + path + ": " + error.what());
    }
}

void write_working_set(const SnapshotReader& snapshot, const WorkingSet& set) {
    const std::string path = snapshot.directory() / snapshot_files::kWorkingSet;
    const auto fail = [&path](int error_number) { throw_errno(error_number, "write " + path, kWorkingSetAdvice); };
    TemporaryFile temporary(snapshot.directory_fd(), format(".{}.{}", snapshot_files::kWorkingSet, ::getpid()));
    const UniqueFd file = files::open_at(snapshot.directory_fd(), temporary.name().c_str(),
                                         O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, kWorkingSetMode);
    if (!file) {
        fail(errno);
    }
    const std::string text = to_json(set);
    for (std::string_view rest = text; !rest.empty();) {
        const ssize_t written = uninterrupted([&] { return ::write(file.get(), rest.data(), rest.size()); });
        if (written < 0) {
            fail(errno);
        }
        rest.remove_prefix(static_cast<std::size_t>(written));
    }
    if (::fsync(file.get()) != 0 ||
        !files::rename_at(snapshot.directory_fd(), temporary.name().c_str(), snapshot_files::kWorkingSet)) {
        fail(errno);
    }
    temporary.stays();
}

} // namespace vmm
