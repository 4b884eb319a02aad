#include "vmm/cli/messages.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "kvm/host/format.hpp"
#include "vmm/cli/long_lived_file.hpp"
#include "vmm/cli/option_names.hpp"
#include "vmm/machine/character_console.hpp"

namespace vmm {

namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
    switch (level) {
    case LogLevel::kDebug:
        return spdlog::level::debug;
    case LogLevel::kInfo:
        return spdlog::level::info;
    case LogLevel::kWarning:
        return spdlog::level::warn;
    case LogLevel::kError:
        return spdlog::level::err;
    }
    return spdlog::level::err;
}

/// Hands lines to a queue, so that logging never waits for a reader.
class QueueSink final : public spdlog::sinks::base_sink<std::mutex> {
  public:
    explicit QueueSink(QueuedOutput& queue) : queue_(queue) {}

  private:
    void sink_it_(const spdlog::details::log_msg& message) override {
        spdlog::memory_buf_t line;
        formatter_->format(message, line);
        queue_.write({line.data(), line.size()});
    }
    void flush_() override {}

    QueuedOutput& queue_;
};

} // namespace

Messages::Messages()
    : terminal_(std::make_shared<DescriptorTarget>(STDERR_FILENO), {.gap = [](std::uint64_t texts) {
                    return vmm::format("vmm: warning: {} messages were dropped here: nobody read them in time\n",
                                       texts);
                }}) {}

void Messages::open_log(const RunCommand& command) {
    level_.store(command.log_level);
    auto terminal = std::make_shared<QueueSink>(terminal_);
    terminal->set_level(spdlog_level(command.log_level));
    terminal->set_pattern("vmm: %l: %v");
    std::vector<spdlog::sink_ptr> sinks{terminal};
    if (!command.log_file.empty()) {
        auto opened = std::make_shared<LongLivedFile>(command.log_file, "write the log to " + command.log_file);
        opened->keep();
        // A full disk under the log stops neither the guest nor other messages.
        file_.emplace(std::move(opened),
                      QueuedOutput::Options{
                          .gap = [](std::uint64_t texts) { return vmm::format("{} lines were dropped here\n", texts); },
                          .refused =
                              [this](int error_number) {
                                  say("vmm: warning: cannot write the log: " + why_output_is_lost(error_number) + "\n");
                              }});
        auto file = std::make_shared<QueueSink>(*file_);
        file->set_level(std::min(spdlog::level::info, spdlog_level(command.log_level)));
        sinks.push_back(file);
    }
    logger_ = std::make_shared<spdlog::logger>("vmm", sinks.begin(), sinks.end());
    logger_->set_level(spdlog::level::debug);
    logger_->set_error_handler([](const std::string&) {}); // spdlog's own message would wait for a reader
}

void Messages::prepare_for_sandbox() {
    ::tzset(); // lines of the log have the local time, and the first one would read a file for that
    terminal_.start();
    if (file_) {
        file_->start();
    }
}

void Messages::log(LogLevel level, std::string_view line) {
    if (logger_) {
        logger_->log(spdlog_level(level), "{}", with_option_names(line));
    }
}

void Messages::set_log_level(LogLevel level) {
    level_.store(level);
    if (logger_) {
        logger_->sinks().front()->set_level(spdlog_level(level));
    }
}

void Messages::say_error(std::string_view what) {
    const std::string words = with_option_names(what);
    say(vmm::format("vmm: error: {}\n", words));
    if (file_ && logger_) {
        logger_->sinks().back()->log(spdlog::details::log_msg("vmm", spdlog::level::err, {words.data(), words.size()}));
    }
}

void Messages::end(const WritePatience& patience) noexcept {
    try {
        if (file_) {
            file_->finish(patience);
            if (const QueuedOutput::Lost lost = file_->lost(); lost.bytes != 0) {
                say(vmm::format("vmm: warning: {} bytes of the log were lost: {}\n", lost.bytes,
                                lost.error_number != 0 ? why_output_is_lost(lost.error_number)
                                                       : "it was taken too slowly"));
            }
        }
        terminal_.finish(patience);
    } catch (const std::exception&) { // there is no memory for the message
    }
}

} // namespace vmm
