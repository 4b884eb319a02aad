// HTTP/1.1 messages (RFC 9112), read by Boost.Beast's parser. http.cpp alone includes it.
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
    /// What the client has handed over with the request (SCM_RIGHTS in unix(7)); null: nothing.
    std::shared_ptr<std::vector<UniqueFd>> descriptors{};
};

struct HttpAnswer {
    unsigned status = 200;
    std::string body{};
    std::string content_type = "application/json";
    std::string allow{}; ///< of 405: the methods that the path has
};

/// How the body that follows a head is bounded.
enum class Framing {
    kWhole,  ///< it is the answer's body
    kChunks, ///< it is pieces by chunk_of(), and last_chunk()
};

/// The status line and the fields of `answer`, with the empty line after them.
[[nodiscard]] std::string head_of(const HttpAnswer& answer, bool keep_alive, Framing framing);
[[nodiscard]] std::string chunk_of(std::string_view piece);
[[nodiscard]] std::string_view last_chunk() noexcept;

/// Takes requests out of the bytes of a connection, one after the other. Any bytes may come.
///
/// Threads: one.
class RequestReader {
  public:
    enum class State {
        kIdle,    ///< no byte of the next request has come
        kPartial, ///< more has to come
        kWhole,   ///< take() returns a request
        kRefused, ///< what came is no request, or too long a one; refusal() says why
    };

    explicit RequestReader(HttpLimits limits = {});
    ~RequestReader();
    RequestReader(const RequestReader&) = delete;
    RequestReader& operator=(const RequestReader&) = delete;

    /// Adds bytes that came. They may belong to several requests.
    void add(std::string_view bytes);
    [[nodiscard]] State state() const noexcept;
    /// True once for a request whose sender waits for "100 Continue" before it sends the body.
    [[nodiscard]] bool wants_continue();
    /// The request, if state() is kWhole. The reader goes on with the bytes behind it.
    [[nodiscard]] HttpRequest take();
    /// The answer to what was refused, if state() is kRefused.
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

    /// Adds bytes that came. Throws Error: they are no answer, or too long a one.
    void add(std::string_view bytes);
    [[nodiscard]] bool has_head() const;
    [[nodiscard]] bool is_whole() const;
    /// After has_head().
    [[nodiscard]] unsigned status() const;
    /// What has come of the body since the last call.
    [[nodiscard]] std::string take_body();

  private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

/// {"error": ..., "advice": ...} of a text as vmm::Error has it: the advice is what stands in brackets at its end.
[[nodiscard]] HttpAnswer error_answer(unsigned status, std::string_view text);

} // namespace vmm::control
