// The client's end of a control socket.
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

/// Thrown if nobody serves the socket, or if the server has gone.
class NobodyThere : public Error {
  public:
    using Error::Error;
};

struct ClientAnswer {
    unsigned status = 0;
    std::string body{};
};

/// An answer that comes line by line, for as long as the server sends lines. Threads: one.
class LineStream {
  public:
    /// `socket` must have sent a request. Returns when the head of the answer has come. Throws NobodyThere, or Error.
    explicit LineStream(UniqueFd socket);

    /// The status of the answer. If it is not 200, the request was refused, and refusal() says why.
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

/// Sends requests to a machine, each over a connection of its own. Threads: one.
class Client {
  public:
    /// How long it waits for the first bytes of an answer. Long actions are jobs, and a job is answered as soon as it
    /// has begun.
    static constexpr std::chrono::seconds kPatience{30};

    /// `path` is that of the socket. An answer may take `longer` than kPatience. `longer` must be less than a day.
    explicit Client(std::string path, std::chrono::seconds longer = {})
        : path_(std::move(path)), answer_patience_(kPatience + longer) {}

    /// Sends a request and returns its answer. `descriptors` are handed over with the request; they are loans, at most
    /// kMostDescriptors. Throws NobodyThere, and Error if the answer cannot be understood.
    [[nodiscard]] ClientAnswer ask(std::string_view method, std::string_view target, std::string_view body = {},
                                   std::span<const int> descriptors = {}) const;

    /// Asks for an answer in lines. Throws as ask() does.
    [[nodiscard]] LineStream follow(std::string_view target) const { return LineStream(send("GET", target, {}, {})); }

  private:
    [[nodiscard]] UniqueFd send(std::string_view method, std::string_view target, std::string_view body,
                                std::span<const int> descriptors) const;

    std::string path_;
    std::chrono::milliseconds answer_patience_;
};

} // namespace vmm::control
