// The process that opens files and starts programs for a confined process.
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

/// Everything that a broker does for the process that made it (docs/threat-model.md). It does nothing else.
struct BrokerRules {
    /// Files that may be opened for writing again, and created again if they are gone: logs.
    std::vector<std::string> outputs{};
    /// Unix sockets that may be removed.
    std::vector<std::string> sockets{};
    /// Whether snapshots may be made and read, at any place: a client may ask for them.
    bool snapshots = false;
    /// The user with whose rights snapshots and programs are reached if root has started the process; nothing: the user
    /// who has started it.
    std::optional<uid_t> user{};
    std::optional<gid_t> group{}; ///< goes with `user`
    /// The directory of a snapshot whose working set may be written; empty: none.
    std::string working_set{};
    /// Programs that may be started, by the names with which a request names them.
    struct Program {
        std::string name;                           ///< the program's name in a request
        std::vector<std::string> first_arguments{}; ///< the allowed values of the first argument after the name
        std::size_t arguments = 0;                  ///< how many there are, the program's name included
    };
    std::vector<Program> programs{};
    /// It runs in the broker before the first request; null: nothing runs. It must not throw.
    std::function<void()> prepare{};
    /// Writes the output of the process to the one place where it may go; null: there is none. It runs in the broker.
    /// Returns what went wrong, as a sentence without "cannot", or an empty text.
    std::function<std::string(std::string_view path, std::string_view text)> write_output{};
};

/// The broker is a process of its own. It is made before this process can have been taken over, and ends with this
/// process. It has no descriptor but the one for requests. It keeps the rights of the user, and does only what its
/// rules name.
///
/// Threads: any, except for the constructor and the destructor.
class Broker final : public FileServer {
  public:
    /// Makes the process. No other thread may exist. Throws Error.
    explicit Broker(BrokerRules rules);
    /// Makes the process end, and waits for that.
    ~Broker() override;

    /// Adds a socket that may be removed. It must be called before settle(). Throws Error.
    void add_socket(const std::string& path);
    /// From now on the rules cannot change. Throws Error.
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
    /// The descriptor for requests, on loan.
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
