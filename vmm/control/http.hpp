// HTTP/1.1 messages (RFC 9112), read by Boost.Beast's parser. Only http.cpp includes Boost.Beast.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm::control {

/// How long a request may be, in bytes.
struct HttpLimits {
    std::size_t header_bytes = 8 * 1024;
    std::size_t body_bytes = 64 * 1024;
};

/// A request, as its sender wrote it.
struct HttpRequest {
    std::string method; ///< "GET"
    std::string path;   ///< "/jobs/3", without the query
    std::string query;  ///< "since=4"
    std::string body;
    bool keep_alive = true; ///< whether the connection may have another request after this one
    /// The descriptors that the client has handed over with the request (SCM_RIGHTS in unix(7)); null: none.
    std::shared_ptr<std::vector<UniqueFd>> descriptors{};
};

struct HttpAnswer {
    unsigned status = 200;
    std::string body{};
    std::string content_type = "application/json";
    std::string allow{}; ///< for status 405: the methods that the path has
};

/// How the body that follows a head is sent.
enum class Framing {
    kWhole,  ///< the body follows as a whole
    kChunks, ///< the body comes in pieces by chunk_of(), and ends with last_chunk()
};

/// The status line and the fields of `answer`, with the empty line after them.
[[nodiscard]] std::string head_of(const HttpAnswer& answer, bool keep_alive, Framing framing);
[[nodiscard]] std::string chunk_of(std::string_view piece);
[[nodiscard]] std::string_view last_chunk() noexcept;

/// Takes requests out of the bytes of a connection, one after the other. The bytes need not be trusted.
///
/// Threads: one.
class RequestReader {
  public:
    enum class State {
        kIdle,    ///< no byte of the next request has come
        kPartial, ///< more bytes of the request must come
        kWhole,   ///< take() returns a request
        kRefused, ///< the bytes are no request, or too long a one; refusal() says why
    };

    explicit RequestReader(HttpLimits limits = {});
    ~RequestReader();
    RequestReader(const RequestReader&) = delete;
    RequestReader& operator=(const RequestReader&) = delete;

    /// Adds bytes that have come. They may belong to several requests.
    void add(std::string_view bytes);
    [[nodiscard]] State state() const noexcept;
    /// True once for a request whose sender waits for "100 Continue" before it sends the body.
    [[nodiscard]] bool wants_continue();
    /// Returns the request, if state() is kWhole. The reader goes on with the bytes that follow it.
    [[nodiscard]] HttpRequest take();
    /// The answer to the refused request, if state() is kRefused.
    [[nodiscard]] HttpAnswer refusal() const;

  private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

/// Takes one answer out of the bytes of a connection, for a client.
///
/// Threads: one.
class AnswerReader {
  public:
    AnswerReader();
    ~AnswerReader();
    AnswerReader(const AnswerReader&) = delete;
    AnswerReader& operator=(const AnswerReader&) = delete;

    /// Adds bytes that have come. Throws Error if they are no answer, or too long a one.
    void add(std::string_view bytes);
    [[nodiscard]] bool has_head() const;
    [[nodiscard]] bool is_whole() const;
    /// It may be called once has_head() is true.
    [[nodiscard]] unsigned status() const;
    /// Returns the bytes of the body that have come since the last call.
    [[nodiscard]] std::string take_body();

  private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

/// Makes the body {"error": ..., "advice": ...} from a text of vmm::Error. The advice is the part in brackets at its
/// end.
[[nodiscard]] HttpAnswer error_answer(unsigned status, std::string_view text);

} // namespace vmm::control
