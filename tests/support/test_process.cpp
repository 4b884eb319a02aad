// Each test program sets these inherited properties before anything else runs in it. So it behaves the same whoever
// starts it: from a terminal, a script's background, under nohup, or with other limits and another umask.

#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <csignal>
#include <cstdlib>

namespace {

/// Sets the soft limit to `wanted`, or to the hard limit if that is less.
void limit(int resource, rlim_t wanted) {
    rlimit now{};
    if (::getrlimit(resource, &now) == 0) {
        now.rlim_cur = now.rlim_max == RLIM_INFINITY || wanted < now.rlim_max ? wanted : now.rlim_max;
        ::setrlimit(resource, &now);
    }
}

const bool kIsSet = [] {
    ::umask(022);
    // A shell's background processes ignore SIGINT and SIGQUIT, and under nohup SIGHUP is ignored. vmm would inherit
    // that.
    for (const int signal : std::array{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGXFSZ, SIGCHLD, SIGALRM}) {
        std::signal(signal, SIG_DFL);
    }
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    limit(RLIMIT_NOFILE, 4096); // enough for 254 vCPUs
    limit(RLIMIT_FSIZE, RLIM_INFINITY);
    limit(RLIMIT_CORE, 0); // Many tests are about a process that a signal ends.
    ::setenv("LC_ALL", "C", 1);
    ::setenv("TZ", "UTC", 1);
    return true;
}();

} // namespace
