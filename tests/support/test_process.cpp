// What every test program sets of the things that it inherits, before anything else of it runs: it finds the same
// whoever starts it, from a terminal, a script's background, under nohup, or with limits and a umask of their own.

#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <csignal>
#include <cstdlib>

namespace {

/// The soft limit is `wanted`, or what is allowed if that is less.
void limit(int resource, rlim_t wanted) {
    rlimit now{};
    if (::getrlimit(resource, &now) == 0) {
        now.rlim_cur = now.rlim_max == RLIM_INFINITY || wanted < now.rlim_max ? wanted : now.rlim_max;
        ::setrlimit(resource, &now);
    }
}

const bool kIsSet = [] {
    ::umask(022);
    // A shell's background processes ignore SIGINT and SIGQUIT, and nohup's SIGHUP: vmm would go on doing so.
    for (const int signal : std::array{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGXFSZ, SIGCHLD, SIGALRM}) {
        std::signal(signal, SIG_DFL);
    }
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    limit(RLIMIT_NOFILE, 4096); // Enough for 254 vCPUs.
    limit(RLIMIT_FSIZE, RLIM_INFINITY);
    limit(RLIMIT_CORE, 0); // Many a test is about a process that ends by a signal.
    ::setenv("LC_ALL", "C", 1);
    ::setenv("TZ", "UTC", 1);
    return true;
}();

} // namespace
