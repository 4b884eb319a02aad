// Runs actions that change a whole process, in a process of their own.
#pragma once

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <exception>
#include <string>

#include "support/host_pipe.hpp"

namespace vmm::testing {

/// Runs `action` in a forked child and returns the text that it returns; "died" if the child crashed.
template <typename Action>
std::string in_child_process(Action action) {
    const Pipe result;
    const pid_t child = ::fork();
    if (child == 0) {
        std::string text;
        try {
            text = action();
        } catch (const std::exception& error) {
            text = std::string("exception: ") + error.what();
        }
        write_text(result.writer.get(), text.empty() ? std::string(1, '\0') : text);
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    const std::string text = read_available(result.reader.get());
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || text.empty()) {
        return "died";
    }
    return text == std::string(1, '\0') ? "" : text;
}

/// Gives up every capability of this process.
inline void drop_capabilities() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    const std::array<__user_cap_data_struct, 2> none{};
    if (::syscall(SYS_capset, &header, none.data()) != 0) {
        throw std::runtime_error("cannot drop capabilities");
    }
}

inline void set_limit(__rlimit_resource resource, rlim_t value) {
    const rlimit limit{value, value};
    if (::setrlimit(resource, &limit) != 0) {
        throw std::runtime_error("cannot set a limit");
    }
}

} // namespace vmm::testing
