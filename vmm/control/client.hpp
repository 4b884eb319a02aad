// The other end of a control socket.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/control/http.hpp"

namespace vmm::control {

/// Nobody serves there, or whoever did has gone.
class NobodyThere : public Error {
  public:
    using Error::Error;
};

struct ClientAnswer {
    unsigned status = 0;
    std::string body{};
};

/// An answer that comes in lines, as long as the other side has some. Threads: one.
class LineStream {
  public:
    /// `socket` has sent a request. Returns when the head of the answer has come. Throws NobodyThere, or Error.
    explicit LineStream(UniqueFd socket);

    /// Not 200: the request was refused, and refusal() says why.
    [[nodiscard]] unsigned status() const { return reader_.status(); }
    [[nodiscard]] const std::string& refusal() const { return refusal_; }

    /// Waits for the next line, and returns it without its newline; nothing if the answer has ended.
    [[nodiscard]] std::optional<std::string> next();

  private:
    UniqueFd socket_;
    AnswerReader reader_;
    std::string refusal_;
    std::string pending_;
};

/// Asks a machine, over one connection for each request. Threads: one.
class Client {
  public:
    /// How long it waits for the first word of an answer. What takes long is a job, which is begun at once.
    static constexpr std::chrono::seconds kPatience{30};

    /// `path` is that of the socket. An answer may take `longer` than kPatience, less than a day.
    explicit Client(std::string path, std::chrono::seconds longer = {})
        : path_(std::move(path)), answer_patience_(kPatience + longer) {}

    /// Hands `descriptors` over with the request: loans, at most kMostDescriptors. Throws NobodyThere, or Error: the
    /// answer cannot be understood.
    [[nodiscard]] ClientAnswer ask(std::string_view method, std::string_view target, std::string_view body = {},
                                   std::span<const int> descriptors = {}) const;

    /// Asks for an answer in lines. Throws as ask().
    [[nodiscard]] LineStream follow(std::string_view target) const { return LineStream(send("GET", target, {}, {})); }

  private:
    [[nodiscard]] UniqueFd send(std::string_view method, std::string_view target, std::string_view body,
                                std::span<const int> descriptors) const;

    std::string path_;
    std::chrono::milliseconds answer_patience_;
};

} // namespace vmm::control
