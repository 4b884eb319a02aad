// The process that reaches files and starts programs for a process that is confined.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/file_server.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// What a broker does for the process that made it, and nothing else (docs/threat-model.md).
struct BrokerRules {
    /// Files that may be opened for writing anew, and made where they are gone: logs.
    std::vector<std::string> outputs{};
    /// Unix sockets that may be removed.
    std::vector<std::string> sockets{};
    /// Whether snapshots may be made and read, at any place: a client may ask for them.
    bool snapshots = false;
    /// Who snapshots and programs are reached as, where root has started the process; nothing: who has started it.
    std::optional<uid_t> user{};
    std::optional<gid_t> group{}; ///< goes with `user`
    /// The directory of a snapshot whose working set may be written; empty: none.
    std::string working_set{};
    /// Programs that may be started, by the names that they are asked for with. `word` is what their first argument may
    /// be.
    struct Program {
        std::string name;                           ///< the program as it is asked for
        std::vector<std::string> first_arguments{}; ///< what the first one behind the name may be
        std::size_t arguments = 0;                  ///< how many there are, the program's name included
    };
    std::vector<Program> programs{};
    /// Runs in the broker before it is asked for anything; null: nothing does. It throws nothing.
    std::function<void()> prepare{};
    /// Writes the output of the process, to the one place where it may go; null: nowhere. Returns what went wrong, as a
    /// sentence without "cannot", or nothing. It runs in the broker.
    std::function<std::string(std::string_view path, std::string_view text)> write_output{};
};

/// It is a process of its own, which is made while nothing can be wrong with this one, and ends with it. It has no
/// descriptor but the one that it is asked by. It keeps the rights of the user, and does only what its rules name.
///
/// Threads: any, but for the constructor and the destructor.
class Broker final : public FileServer {
  public:
    /// Makes the process. No other thread may exist. Throws Error.
    explicit Broker(BrokerRules rules);
    /// Has it end, and waits for that.
    ~Broker() override;

    /// One more socket that may be removed; only before settle(). Throws Error.
    void add_socket(const std::string& path);
    /// From now on the rules stay as they are. Throws Error.
    void settle();

    UniqueFd open_at(int directory, const char* path, int flags, mode_t mode) noexcept override;
    bool make_directory_at(int directory, const char* name, mode_t mode) noexcept override;
    bool remove_at(int directory, const char* name, int flags) noexcept override;
    bool rename_at(int directory, const char* from, const char* to, unsigned flags) noexcept override;
    bool sync_directory(int directory) noexcept override;
    std::string canonical(const char* path) noexcept override;
    bool write_output(const char* path, std::string_view text, std::string& problem) noexcept override;
    UniqueFd open_process_of_peer(int socket) noexcept override;
    Started start(const Program& program, const std::string& tried) override;

    [[nodiscard]] pid_t pid() const noexcept { return pid_; }
    /// The descriptor by which it is asked, on loan.
    [[nodiscard]] int fd() const noexcept { return socket_.get(); }

  private:
    struct Answer;
    struct Question;
    Answer ask(const Question& question) noexcept;

    UniqueFd socket_;
    pid_t pid_ = -1;
    std::mutex asking_;
    std::uint32_t sequence_ = 0;
};

} // namespace vmm
