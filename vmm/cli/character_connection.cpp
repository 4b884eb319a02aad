#include "vmm/cli/character_connection.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <span>
#include <utility>

#include "vmm/cli/terminal.hpp"
#include "vmm/machine/character_console.hpp"

namespace vmm {

namespace {

constexpr const char* kKeysHelp = "\r\nCtrl-A x  stop the guest\r\nCtrl-A h  this help\r\n"
                                  "Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

bool is_regular(int fd) {
    struct stat facts {};
    return ::fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
}

} // namespace

FileOutput::FileOutput(std::shared_ptr<OutputTarget> target, int hurry_fd)
    : queue_(std::move(target), {.capacity_bytes = 4 * kMiB, .overrun = QueuedOutput::Overrun::kDropNewest}),
      patience_{.hurry_fd = hurry_fd, .hurried = std::chrono::milliseconds(500)} {}

FileOutput::~FileOutput() {
    queue_.finish(patience_);
}

void FileOutput::connect(CharacterConfig& config) {
    config.sink = [this](std::span<const std::byte> bytes) {
        // chars may alias any bytes.
        queue_.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    };
    config.sink_lost = [this] {
        queue_.finish(patience_);
        const QueuedOutput::Lost lost = queue_.lost();
        return LostOutput{lost.bytes, lost.error_number != 0 ? why_output_is_lost(lost.error_number)
                                                             : "the file was written too slowly"};
    };
}

CharacterConfig connect_characters(const std::string& where, const char* what, CharacterConnection& connection,
                                   int hurry_fd, Messages& messages) {
    CharacterConfig config;
    if (where == "none") {
        return config;
    }
    if (where == "stdio") {
        if (is_regular(STDOUT_FILENO)) {
            connection.output.emplace(std::make_shared<DescriptorTarget>(STDOUT_FILENO), hurry_fd).connect(config);
        } else {
            config.output_fd = STDOUT_FILENO;
        }
        // A terminal is read only in the foreground, because reading it in the background would stop this process.
        const bool terminal = ::isatty(STDIN_FILENO) == 1;
        config.escape_keys = terminal && RawTerminal::is_available(STDIN_FILENO);
        config.input_fd = !terminal || config.escape_keys ? STDIN_FILENO : -1;
        config.show_help = [&messages] { messages.say(kKeysHelp); };
        return config;
    }
    connection.file = std::make_shared<LongLivedFile>(where, std::string("write ") + what + " output to " + where);
    if (connection.file->is_regular()) {
        connection.output.emplace(connection.file, hurry_fd).connect(config);
    } else {
        config.output_fd = connection.file->fd();
    }
    return config;
}

} // namespace vmm
