#include "vmm/sandbox/broker.hpp"

#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/process_memory.hpp"
#include "kvm/host/retry.hpp"
#include "kvm/host/unix_listener.hpp"
#include "vmm/host/child_process.hpp"
#include "vmm/sandbox/broker_message.hpp"
#include "vmm/state/snapshot_files.hpp"

namespace vmm {

namespace {

using broker_message::Act;
using broker_message::Head;
using broker_message::kMostFds;
using broker_message::Parcel;

constexpr std::size_t kMostOutputBytes = 16UL << 20U;
constexpr std::array kFilesOfSnapshots{snapshot_files::kState, snapshot_files::kMemory, snapshot_files::kConfig,
                                       snapshot_files::kWorkingSet};
/// These flags say how a file is used. They grant no rights.
constexpr int kMannerFlags = O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_DIRECT;

/// The identity of a file, whatever its name is.
struct FileId {
    dev_t device = 0;
    ino_t inode = 0;
    friend bool operator==(const FileId&, const FileId&) = default;
};

std::optional<FileId> id_of(int fd) noexcept {
    struct stat facts {};
    return ::fstat(fd, &facts) == 0 ? std::optional(FileId{facts.st_dev, facts.st_ino}) : std::nullopt;
}

std::optional<FileId> id_of_directory(const std::string& path) noexcept {
    struct stat facts {};
    return ::stat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode)
               ? std::optional(FileId{facts.st_dev, facts.st_ino})
               : std::nullopt;
}

std::optional<FileId> id_of_socket(const std::string& path) noexcept {
    struct stat facts {};
    return ::lstat(path.c_str(), &facts) == 0 && S_ISSOCK(facts.st_mode)
               ? std::optional(FileId{facts.st_dev, facts.st_ino})
               : std::nullopt;
}

/// Whether `name` is a name within a directory that leads nowhere else.
bool is_plain_name(std::string_view name) noexcept {
    return !name.empty() && name.size() <= NAME_MAX && name != "." && name != ".." &&
           name.find('/') == std::string_view::npos;
}

/// Splits "/a/b" into the parent "/a" and the name "b".
std::pair<std::string, std::string> parent_and_name(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? std::pair(std::string("."), path)
                                      : std::pair(slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1));
}

std::vector<std::string> words_of(std::string_view text) {
    std::vector<std::string> words;
    for (std::size_t end = text.find('\0'); end != std::string_view::npos; end = text.find('\0')) {
        words.emplace_back(text.substr(0, end));
        text.remove_prefix(end + 1);
    }
    return words;
}

/// The broker's side; it runs in the broker's process.
class Desk {
  public:
    Desk(BrokerRules rules, UniqueFd socket) : rules_(std::move(rules)), socket_(std::move(socket)) {
        if (rules_.user) {
            ::setgroups(0, nullptr); // the user is set for each file
        }
    }

    /// Returns when the other end is gone.
    void serve() {
        for (;;) {
            constexpr int kLookAfterMs = 1000;
            pollfd asked{socket_.get(), POLLIN, 0};
            const int ready = ::poll(&asked, 1, started_.empty() ? -1 : kLookAfterMs);
            std::erase_if(started_, [](const auto& program) { return has_ended(*program); });
            if (ready <= 0) {
                continue;
            }
            std::optional<Parcel> question = broker_message::receive(socket_.get());
            if (!question) {
                if (errno == EINTR || errno == EAGAIN || errno == EPROTO || errno == ENOMEM) {
                    continue;
                }
                break;
            }
            answer(*question);
        }
        for (auto& program : started_) { // They end when their connections do.
            static_cast<void>(program.release());
        }
    }

  private:
    struct Result {
        int error_number = 0;
        UniqueFd fd{};
        pid_t pid = -1;
        std::string text{};
    };

    static bool has_ended(const ChildProcess& program) noexcept {
        siginfo_t info{};
        return ::waitid(P_PID, static_cast<id_t>(program.pid()), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
               info.si_pid != 0;
    }

    void answer(Parcel& question) noexcept {
        Result result;
        try {
            result = act(question);
        } catch (const std::bad_alloc&) {
            result = {.error_number = ENOMEM};
        } catch (const std::exception& error) {
            result = {.error_number = EIO, .text = error.what()};
        }
        const Head head{.act = question.head.act,
                        .sequence = question.head.sequence,
                        .value = result.error_number,
                        .pid = result.pid};
        std::string_view text = result.text;
        text = text.substr(0, broker_message::kMostTextBytes);
        std::array<int, kMostFds> fds{-1, -1, -1, -1};
        fds[0] = result.fd.get();
        int error = broker_message::send(socket_.get(), head, text, {}, fds);
        for (Retries retries; error == EAGAIN && retries.again();) {
            error = broker_message::send(socket_.get(), head, text, {}, fds);
        }
        if (error != 0 && error != EPIPE) { // Otherwise the client would wait for ever.
            ::shutdown(socket_.get(), SHUT_RDWR);
        }
    }

    /// While it lives, files are reached as the user in the rules, if there is one. The kernel checks the file system
    /// user.
    class AsUser {
      public:
        AsUser(const BrokerRules& rules, bool wanted) : is_other_(wanted && rules.user) {
            if (is_other_) {
                ::setfsgid(*rules.group);
                ::setfsuid(*rules.user);
            }
        }
        ~AsUser() {
            if (is_other_) {
                ::setfsuid(::geteuid());
                ::setfsgid(::getegid());
            }
        }
        AsUser(const AsUser&) = delete;
        AsUser& operator=(const AsUser&) = delete;

      private:
        bool is_other_;
    };

    /// Whether the question is about a place that was named when the process was started. Clients name other places
    /// later.
    [[nodiscard]] bool is_of_the_start(const Parcel& question) const {
        const int directory = question.fds[0].get();
        switch (static_cast<Act>(question.head.act)) {
        case Act::kOpen:
            return directory >= 0 && (is_working_set(directory) || is_output(directory, question.first));
        case Act::kRemove:
            return directory < 0 || is_working_set(directory);
        case Act::kRename:
            return is_working_set(directory);
        case Act::kWriteOutput:
        case Act::kStart: // start() sets the user itself
            return true;
        default:
            return false;
        }
    }

    Result act(Parcel& question) {
        const AsUser as(rules_, !is_of_the_start(question));
        return act_as_asked(question);
    }

    Result act_as_asked(Parcel& question) {
        switch (static_cast<Act>(question.head.act)) {
        case Act::kOpen:
            return open(question);
        case Act::kMakeDirectory:
            return make_directory(question);
        case Act::kRemove:
            return remove(question);
        case Act::kRename:
            return rename(question);
        case Act::kSyncDirectory:
            return sync_directory(question);
        case Act::kCanonical:
            return canonical(question);
        case Act::kWriteOutput:
            return write_output(question);
        case Act::kStart:
            return start(question);
        case Act::kOpenProcessOfPeer:
            return open_process_of_peer(question);
        case Act::kAddSocket:
            if (settled_) {
                return refused();
            }
            rules_.sockets.push_back(question.first);
            return {};
        case Act::kSettle:
            settle();
            return {};
        }
        return {.error_number = ENOSYS};
    }

    /// The sockets that exist now at these paths belong to the client. Another process may put a socket of its own
    /// there later.
    void settle() {
        for (std::string& path : rules_.sockets) {
            if (const auto id = id_of_socket(path); id && !settled_) {
                sockets_.push_back({std::move(path), *id});
            }
        }
        settled_ = true;
    }

    /// Opens the process at the other end of a connection. The client has this connection, and on a newer kernel it
    /// could do this itself (SO_PEERPIDFD, Linux 6.5).
    static Result open_process_of_peer(const Parcel& question) {
        const auto peer = peer_of(question.fds[0].get());
        if (!peer || peer->process <= 0) {
            return refused();
        }
        Result result;
        result.fd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peer->process, 0)));
        result.error_number = result.fd ? 0 : errno;
        return result;
    }

    static Result refused() { return {.error_number = EACCES}; }
    static Result done(bool well) { return {.error_number = well ? 0 : errno}; }

    [[nodiscard]] bool is_made(int directory) const noexcept {
        const auto id = id_of(directory);
        return id && std::ranges::find(made_, *id) != made_.end();
    }
    static bool is_of_snapshot(std::string_view name) noexcept {
        return std::ranges::find(kFilesOfSnapshots, name) != kFilesOfSnapshots.end();
    }
    [[nodiscard]] bool is_working_set(int directory) const {
        return !rules_.working_set.empty() && directory >= 0 && id_of(directory) == id_of_directory(rules_.working_set);
    }
    /// Whether it is the name of a temporary file of a working set. The client appends its process id, which is another
    /// number in its own namespace.
    static bool is_temporary_working_set(std::string_view name) {
        std::string begin = ".";
        begin.append(snapshot_files::kWorkingSet).append(".");
        return name.starts_with(begin) && name.size() > begin.size() &&
               name.find_first_not_of("0123456789", begin.size()) == std::string_view::npos;
    }
    /// Whether the file `name` in this directory is an output.
    [[nodiscard]] bool is_output(int directory, const std::string& name) const {
        const auto id = id_of(directory);
        return id && std::ranges::any_of(rules_.outputs, [&](const std::string& path) {
                   const auto fits = [&](const std::string& where) {
                       const auto [parent, own_name] = parent_and_name(where);
                       return own_name == name && id == id_of_directory(parent);
                   };
                   const std::string real = files::canonical(path.c_str());
                   return fits(path) || (!real.empty() && fits(real));
               });
    }

    Result open(Parcel& question) {
        const int flags = question.head.value;
        const std::string& name = question.first;
        const int directory = question.fds[0].get();
        constexpr int kDirectory = O_PATH | O_DIRECTORY | O_CLOEXEC;
        if ((flags & ~O_NOFOLLOW) == kDirectory) { // nothing can be read or listed through it
            const int from = directory < 0 ? AT_FDCWD : directory;
            return rules_.snapshots ? opened(::openat(from, name.c_str(), flags)) : refused();
        }
        if (directory < 0 || !is_plain_name(name)) {
            return refused();
        }
        const int wanted = flags & ~kMannerFlags;
        const auto mode = static_cast<mode_t>(question.head.mode);
        if (is_of_snapshot(name)) {
            const bool made = is_made(directory);
            const bool reads = wanted == O_RDONLY && (rules_.snapshots || is_working_set(directory));
            const bool makes = made && (wanted == O_RDWR || wanted == (O_RDWR | O_CREAT | O_EXCL));
            if (!reads && !makes) {
                return refused();
            }
            // Opening does not wait if the file is a pipe, for example.
            UniqueFd fd(::openat(directory, name.c_str(), flags | O_CLOEXEC | O_NONBLOCK, mode));
            struct stat facts {};
            if (fd && (::fstat(fd.get(), &facts) != 0 || !S_ISREG(facts.st_mode))) {
                return refused();
            }
            return fd ? Result{.fd = std::move(fd)} : done(false);
        }
        const bool is_set =
            is_working_set(directory) && is_temporary_working_set(name) && wanted == (O_WRONLY | O_CREAT | O_TRUNC);
        const bool is_log = (wanted & ~(O_APPEND | O_CREAT)) == O_WRONLY && is_output(directory, name);
        if (!is_set && !is_log) {
            return refused();
        }
        return opened(::openat(directory, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, mode));
    }

    static Result opened(int fd) { return fd < 0 ? done(false) : Result{.fd = UniqueFd(fd)}; }

    /// Makes a directory for a new snapshot, and remembers it, because files may be made in it.
    Result make_directory(const Parcel& question) {
        const std::string& name = question.first;
        const int parent = question.fds[0].get();
        if (!rules_.snapshots || parent < 0 || !is_plain_name(name) || !name.starts_with('.') ||
            name.find(".partial-") == std::string::npos) {
            return refused();
        }
        constexpr mode_t kMode = 0700;
        if (::mkdirat(parent, name.c_str(), kMode) != 0) {
            return done(false);
        }
        const UniqueFd made(::openat(parent, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        const auto id = made ? id_of(made.get()) : std::nullopt;
        if (!id) {
            const int error_number = errno;
            ::unlinkat(parent, name.c_str(), AT_REMOVEDIR);
            return {.error_number = error_number};
        }
        constexpr std::size_t kMostMade = 64;
        if (made_.size() == kMostMade) {
            made_.erase(made_.begin());
        }
        made_.push_back(*id);
        return {};
    }

    /// Returns the directory that was made for a snapshot, by its name in its parent.
    [[nodiscard]] std::optional<FileId> made_one(int parent, const std::string& name) const {
        const UniqueFd found(::openat(parent, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        return found && is_made(found.get()) ? id_of(found.get()) : std::nullopt;
    }

    Result remove(const Parcel& question) {
        const std::string& name = question.first;
        const int directory = question.fds[0].get();
        if (directory < 0) {
            if (!settled_) { // before that, no guest runs
                const bool listed = std::ranges::find(rules_.sockets, name) != rules_.sockets.end();
                return listed && id_of_socket(name) ? done(::unlink(name.c_str()) == 0) : refused();
            }
            const auto known = std::ranges::find(sockets_, name, &Socket::path);
            return known != sockets_.end() && id_of_socket(name) == known->id ? done(::unlink(name.c_str()) == 0)
                                                                              : refused();
        }
        if (!is_plain_name(name)) {
            return refused();
        }
        if (question.head.value == AT_REMOVEDIR) {
            const auto id = made_one(directory, name);
            if (!id) {
                return refused();
            }
            Result result = done(::unlinkat(directory, name.c_str(), AT_REMOVEDIR) == 0);
            std::erase(made_, *id);
            return result;
        }
        const bool may = (is_made(directory) && is_of_snapshot(name)) ||
                         (is_working_set(directory) && is_temporary_working_set(name));
        return may ? done(::unlinkat(directory, name.c_str(), 0) == 0) : refused();
    }

    /// Gives a complete snapshot its name, or a working set.
    Result rename(const Parcel& question) {
        const std::string& from = question.first;
        const std::string& to = question.second;
        const int directory = question.fds[0].get();
        const auto flags = static_cast<unsigned>(question.head.value);
        if (directory < 0 || !is_plain_name(from) || !is_plain_name(to) || (flags != 0 && flags != RENAME_NOREPLACE)) {
            return refused();
        }
        if (is_working_set(directory) && is_temporary_working_set(from) && to == snapshot_files::kWorkingSet) {
            return done(::renameat(directory, from.c_str(), directory, to.c_str()) == 0);
        }
        const auto id = made_one(directory, from);
        if (!id) {
            return refused();
        }
        // A directory can replace nothing but an empty directory.
        Result result = done(::syscall(SYS_renameat2, directory, from.c_str(), directory, to.c_str(), flags) == 0);
        if (result.error_number == 0) {
            std::erase(made_, *id);
        }
        return result;
    }

    [[nodiscard]] Result sync_directory(const Parcel& question) const {
        if (!rules_.snapshots || question.fds[0].get() < 0) {
            return refused();
        }
        const UniqueFd directory(::openat(question.fds[0].get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        return done(directory && ::fsync(directory.get()) == 0);
    }

    [[nodiscard]] Result canonical(const Parcel& question) const {
        if (!rules_.snapshots) {
            return refused();
        }
        Result result{.text = files::canonical(question.first.c_str())};
        result.error_number = result.text.empty() ? errno : 0;
        return result;
    }

    [[nodiscard]] Result write_output(const Parcel& question) const {
        struct stat facts {};
        const int fd = question.fds[0].get();
        if (!rules_.write_output || fd < 0 || ::fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode) ||
            static_cast<std::size_t>(facts.st_size) > kMostOutputBytes) {
            return refused();
        }
        std::string text(static_cast<std::size_t>(facts.st_size), '\0');
        const ssize_t got = uninterrupted([&] { return ::pread(fd, text.data(), text.size(), 0); });
        if (got < 0) {
            return done(false);
        }
        text.resize(static_cast<std::size_t>(got));
        Result result{.text = rules_.write_output(question.first, text)};
        result.error_number = result.text.empty() ? 0 : EIO;
        return result;
    }

    Result start(const Parcel& question) {
        const std::vector<std::string> words = words_of(question.first); // the program, and its arguments
        const auto rule = std::ranges::find_if(rules_.programs, [&words](const BrokerRules::Program& program) {
            return words.size() == program.arguments + 1 && words[0] == program.name &&
                   std::ranges::find(program.first_arguments, words[2]) != program.first_arguments.end();
        });
        constexpr std::size_t kMostStarted = 64;
        if (rule == rules_.programs.end() || rule->arguments < 2) {
            return refused();
        }
        if (started_.size() == kMostStarted) {
            return {.error_number = EAGAIN};
        }
        const ProgramSpec spec{.program = words[0],
                               .arguments = {words.begin() + 1, words.end()},
                               .in = question.fds[0].get(),
                               .out = question.fds[1].get(),
                               .errors = question.fds[2].get(),
                               .kept = question.fds[3].get(),
                               .user = rules_.user,
                               .group = rules_.group};
        Result result;
        try {
            started_.push_back(std::make_unique<ChildProcess>(spec, question.second));
        } catch (const ProgramError& error) {
            return {.error_number = ENOEXEC, .text = error.what()};
        }
        result.pid = started_.back()->pid();
        result.fd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, result.pid, 0)));
        return result;
    }

    BrokerRules rules_;
    UniqueFd socket_;
    struct Socket {
        std::string path;
        FileId id;
    };
    std::vector<Socket> sockets_; ///< set by settle()
    bool settled_ = false;
    std::vector<FileId> made_; ///< directories of snapshots that are not complete yet
    std::vector<std::unique_ptr<ChildProcess>> started_;
};

void close_all_but(int fd) noexcept {
    const auto close_between = [](unsigned first, unsigned last) {
        if (first <= last && ::syscall(SYS_close_range, first, last, 0U) != 0) {
            const auto most = std::min(last, 1U << 16U);
            for (unsigned number = first; number <= most; ++number) {
                ::close(static_cast<int>(number));
            }
        }
    };
    const auto kept = static_cast<unsigned>(fd);
    if (kept != 0) {
        close_between(0, kept - 1);
    }
    close_between(kept + 1, ~0U);
}

[[noreturn]] void become_broker(BrokerRules rules, UniqueFd socket) noexcept {
    ::prctl(PR_SET_NAME, "vmm-broker");
    ::setpgid(0, 0); // signals of a terminal are for the client
    for (int number = 1; number < NSIG; ++number) {
        ::signal(number, SIG_DFL);
    }
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGXFSZ}) { // It ends when its client does.
        ::signal(number, SIG_IGN);
    }
    ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    close_all_but(socket.get());
    release_program_pages();
    try {
        if (rules.prepare) {
            rules.prepare();
        }
        Desk desk(std::move(rules), std::move(socket));
        desk.serve();
    } catch (const std::exception&) { // The client notices that the broker is gone.
    }
    ::_exit(0);
}

} // namespace

struct Broker::Question {
    Act act;
    std::string_view first{};
    std::string_view second{};
    int value = 0;
    mode_t mode = 0;
    std::array<int, kMostFds> fds{-1, -1, -1, -1};
};

struct Broker::Answer {
    int error_number = 0;
    Parcel message{};
    bool is_lost = false; ///< the question was sent, and its result is not known
};

Broker::Broker(BrokerRules rules) {
    constexpr const char* kTried = "start the process that opens files for this one (--sandbox on)";
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw_errno(errno, kTried);
    }
    socket_.reset(ends[0]);
    UniqueFd theirs(ends[1]);
    pid_ = ::fork();
    if (pid_ < 0) {
        const int error_number = errno;
        throw_errno(error_number, kTried,
                    error_number == EAGAIN ? "the limit on processes is reached: `ulimit -u`, or the group's pids.max"
                                           : "");
    }
    if (pid_ == 0) {
        socket_.reset();
        become_broker(std::move(rules), std::move(theirs));
    }
}

Broker::~Broker() {
    socket_.reset();
    siginfo_t info{};
    static_cast<void>(uninterrupted([&] { return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED); }));
}

Broker::Answer Broker::ask(const Question& question) noexcept {
    const std::lock_guard hold(asking_);
    const std::uint32_t sequence = ++sequence_;
    const Head head{.act = static_cast<std::uint32_t>(question.act),
                    .sequence = sequence,
                    .value = question.value,
                    .mode = question.mode};
    if (const int error = broker_message::send(socket_.get(), head, question.first, question.second, question.fds);
        error != 0) {
        return {error};
    }
    for (;;) {
        std::optional<Parcel> answer = broker_message::receive(socket_.get());
        if (!answer) {
            return {.error_number = errno == 0 ? EPIPE : errno, .is_lost = true};
        }
        if (answer->head.sequence == sequence) { // if not, it answers an earlier question, whose answer was given up
            return {answer->head.value, std::move(*answer)};
        }
    }
}

namespace {

/// Returns whether the call succeeded, and sets errno as a system call does.
bool has_worked(int error_number) noexcept {
    errno = error_number != 0 ? error_number : errno;
    return error_number == 0;
}

bool is_there(int directory, const char* name) noexcept {
    struct stat facts {};
    return ::fstatat(directory, name, &facts, AT_SYMLINK_NOFOLLOW) == 0;
}

} // namespace

void Broker::add_socket(const std::string& path) {
    if (const int error = ask({.act = Act::kAddSocket, .first = path}).error_number; error != 0) {
        throw_errno(error, "tell the process that opens files of the socket " + path);
    }
}

void Broker::settle() {
    const std::lock_guard hold(asking_);
    const Head head{.act = static_cast<std::uint32_t>(Act::kSettle), .sequence = ++sequence_};
    // It comes before all that is asked later. Nobody waits for the answer, because to wake the broker takes a while;
    // ask() passes over it.
    if (const int error = broker_message::send(socket_.get(), head, {}, {}, {-1, -1, -1, -1}); error != 0) {
        throw_errno(error, "tell the process that opens files what it may do");
    }
}

UniqueFd Broker::open_at(int directory, const char* path, int flags, mode_t mode) noexcept {
    Answer answer =
        ask({.act = Act::kOpen, .first = path, .value = flags, .mode = mode, .fds = {directory, -1, -1, -1}});
    return has_worked(answer.error_number) ? std::move(answer.message.fds[0]) : UniqueFd();
}

bool Broker::make_directory_at(int directory, const char* name, mode_t mode) noexcept {
    const Answer answer =
        ask({.act = Act::kMakeDirectory, .first = name, .mode = mode, .fds = {directory, -1, -1, -1}});
    if (answer.is_lost) { // It may have been made. The broker removes only directories that it has made.
        remove_at(directory, name, AT_REMOVEDIR);
    }
    return has_worked(answer.error_number);
}

bool Broker::remove_at(int directory, const char* name, int flags) noexcept {
    return has_worked(
        ask({.act = Act::kRemove, .first = name, .value = flags, .fds = {directory, -1, -1, -1}}).error_number);
}

bool Broker::rename_at(int directory, const char* from, const char* to, unsigned flags) noexcept {
    const Answer answer = ask({.act = Act::kRename,
                               .first = from,
                               .second = to,
                               .value = static_cast<int>(flags),
                               .fds = {directory, -1, -1, -1}});
    // The answer may be lost although the name was changed. The directory shows whether it was.
    return (answer.is_lost && !is_there(directory, from) && is_there(directory, to)) || has_worked(answer.error_number);
}

bool Broker::sync_directory(int directory) noexcept {
    return has_worked(ask({.act = Act::kSyncDirectory, .fds = {directory, -1, -1, -1}}).error_number);
}

std::string Broker::canonical(const char* path) noexcept {
    Answer answer = ask({.act = Act::kCanonical, .first = path});
    return has_worked(answer.error_number) ? std::move(answer.message.first) : std::string();
}

bool Broker::write_output(const char* path, std::string_view text, std::string& problem) noexcept {
    const UniqueFd file(::memfd_create("output", MFD_CLOEXEC));
    for (std::string_view rest = text; file && !rest.empty();) {
        const ssize_t written = uninterrupted([&] { return ::write(file.get(), rest.data(), rest.size()); });
        if (written <= 0) {
            return has_worked(written == 0 ? EIO : errno);
        }
        rest.remove_prefix(static_cast<std::size_t>(written));
    }
    if (!file) {
        return false;
    }
    Answer answer = ask({.act = Act::kWriteOutput, .first = path, .fds = {file.get(), -1, -1, -1}});
    problem = std::move(answer.message.first);
    return has_worked(answer.error_number);
}

UniqueFd Broker::open_process_of_peer(int socket) noexcept {
    Answer answer = ask({.act = Act::kOpenProcessOfPeer, .fds = {socket, -1, -1, -1}});
    return has_worked(answer.error_number) ? std::move(answer.message.fds[0]) : UniqueFd();
}

FileServer::Started Broker::start(const Program& program, const std::string& tried) {
    std::string words;
    for (const std::string& word : program.words) {
        words += word + '\0';
    }
    Question question{.act = Act::kStart, .first = words, .second = tried};
    std::copy_n(program.fds.begin(), std::min(program.fds.size(), kMostFds), question.fds.begin());
    Answer answer = ask(question);
    if (!answer.message.first.empty()) {
        if (answer.error_number == ENOEXEC) {
            throw ProgramError(answer.message.first);
        }
        throw Error(answer.message.first);
    }
    if (answer.error_number != 0) {
        throw_errno(answer.error_number, tried,
                    {{EACCES, "the process that starts programs for a confined one does not know this one"}});
    }
    return {answer.message.head.pid, std::move(answer.message.fds[0])};
}

} // namespace vmm
