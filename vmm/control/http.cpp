#include "vmm/control/http.hpp"

#include <optional>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm::control {

namespace {

namespace http = boost::beast::http;
using RequestParser = http::request_parser<http::string_body>;
using ResponseParser = http::response_parser<http::string_body>;
using ErrorCode = boost::system::error_code;

/// The most bytes of an answer. If more come, the client assumes that the server is broken.
constexpr std::size_t kMostAnswerHeaderBytes = 64UL * 1024;
constexpr std::size_t kMostAnswerBytes = 64UL * 1024 * 1024;

/// Gives a parser what has come. The parser aborts the process if it is shown fewer than five bytes of the end of a
/// body in chunks for a second time. This class therefore keeps back a shorter rest until more has come.
class Feeder {
  public:
    /// Removes from `pending` what `parser` takes.
    template <typename Parser>
    ErrorCode feed(Parser& parser, std::string& pending) {
        ErrorCode error;
        std::size_t taken = 0;
        while (taken < pending.size() && pending.size() - taken >= least_ && !parser.is_done()) {
            const std::size_t put =
                parser.put(boost::asio::buffer(pending.data() + taken, pending.size() - taken), error);
            taken += put;
            const bool needs_more = error == http::error::need_more;
            least_ = needs_more ? kShortestEnd : 0;
            if (needs_more) {
                error = {};
            }
            if (error || put == 0) {
                break;
            }
        }
        pending.erase(0, taken);
        return error;
    }

  private:
    static constexpr std::size_t kShortestEnd = std::string_view("0\r\n\r\n").size();
    std::size_t least_ = 0; ///< this many bytes must be there before the parser is called again
};

std::string text_of(boost::beast::string_view view) {
    return {view.data(), view.size()};
}

} // namespace

std::string head_of(const HttpAnswer& answer, bool keep_alive, Framing framing) {
    std::string head =
        vmm::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n", answer.status,
                    text_of(http::obsolete_reason(http::int_to_status(answer.status))), answer.content_type);
    head += framing == Framing::kChunks ? std::string("Transfer-Encoding: chunked\r\nCache-Control: no-store\r\n")
                                        : vmm::format("Content-Length: {}\r\n", answer.body.size());
    if (!answer.allow.empty()) {
        head += "Allow: " + answer.allow + "\r\n";
    }
    if (!keep_alive) {
        head += "Connection: close\r\n";
    }
    return head + "\r\n";
}

std::string chunk_of(std::string_view piece) {
    return vmm::format("{:x}\r\n{}\r\n", piece.size(), piece);
}

std::string_view last_chunk() noexcept {
    return "0\r\n\r\n";
}

struct RequestReader::Parts {
    explicit Parts(HttpLimits wanted) : limits(wanted) { begin(); }

    void begin() {
        parser.emplace();
        parser->header_limit(static_cast<std::uint32_t>(limits.header_bytes));
        parser->body_limit(limits.body_bytes);
        parser->eager(true);
        feeder = {};
        told_to_go_on = false;
    }
    void go_on() {
        if (!error && !parser->is_done()) {
            error = feeder.feed(*parser, pending);
        }
    }

    HttpLimits limits;
    std::string pending; ///< what the parser has not taken yet
    std::optional<RequestParser> parser;
    Feeder feeder;
    ErrorCode error;
    bool told_to_go_on = false;
};

RequestReader::RequestReader(HttpLimits limits) : parts_(std::make_unique<Parts>(limits)) {}

RequestReader::~RequestReader() = default;

void RequestReader::add(std::string_view bytes) {
    parts_->pending += bytes;
    parts_->go_on();
}

RequestReader::State RequestReader::state() const noexcept {
    if (parts_->error) {
        return State::kRefused;
    }
    if (parts_->parser->is_done()) {
        return State::kWhole;
    }
    return parts_->pending.empty() && !parts_->parser->got_some() ? State::kIdle : State::kPartial;
}

bool RequestReader::wants_continue() {
    Parts& parts = *parts_;
    if (state() != State::kPartial || !parts.parser->is_header_done() || parts.told_to_go_on) {
        return false;
    }
    parts.told_to_go_on = true;
    return boost::beast::iequals(parts.parser->get()[http::field::expect], "100-continue");
}

HttpRequest RequestReader::take() {
    Parts& parts = *parts_;
    auto& message = parts.parser->get();
    HttpRequest request;
    request.method = text_of(message.method_string());
    const std::string target = text_of(message.target());
    const std::size_t mark = target.find('?');
    request.path = target.substr(0, mark);
    request.query = mark == std::string::npos ? "" : target.substr(mark + 1);
    request.body = std::move(message.body());
    request.keep_alive = message.keep_alive();
    parts.begin();
    parts.go_on();
    return request;
}

HttpAnswer RequestReader::refusal() const {
    const ErrorCode& error = parts_->error;
    if (error == http::error::header_limit) {
        return error_answer(431, vmm::format("the head of the request is longer than {} bytes (send fewer or shorter "
                                             "fields)",
                                             parts_->limits.header_bytes));
    }
    if (error == http::error::body_limit) {
        return error_answer(413, vmm::format("the body of the request is longer than {} bytes (send a shorter one)",
                                             parts_->limits.body_bytes));
    }
    if (error == http::error::bad_version) {
        return error_answer(505, "the request is of another version of HTTP (send HTTP/1.1)");
    }
    return error_answer(400, "what came is no HTTP request: " + error.message() + " (send HTTP/1.1, or use `vmm ctl`)");
}

struct AnswerReader::Parts {
    Parts() {
        parser.header_limit(static_cast<std::uint32_t>(kMostAnswerHeaderBytes));
        parser.body_limit(boost::none);
        parser.eager(true);
    }

    std::string pending;
    ResponseParser parser;
    Feeder feeder;
};

AnswerReader::AnswerReader() : parts_(std::make_unique<Parts>()) {}

AnswerReader::~AnswerReader() = default;

void AnswerReader::add(std::string_view bytes) {
    parts_->pending += bytes;
    const ErrorCode error = parts_->feeder.feed(parts_->parser, parts_->pending);
    if (error || parts_->parser.get().body().size() > kMostAnswerBytes) {
        throw Error("cannot understand the answer of the machine's control socket: " +
                    (error ? error.message() : std::string("it is too long")) +
                    " (is it a socket of `vmm run --api`?)");
    }
}

bool AnswerReader::has_head() const {
    return parts_->parser.is_header_done();
}

bool AnswerReader::is_whole() const {
    return parts_->parser.is_done();
}

unsigned AnswerReader::status() const {
    return parts_->parser.get().result_int();
}

std::string AnswerReader::take_body() {
    return std::exchange(parts_->parser.get().body(), {});
}

HttpAnswer error_answer(unsigned status, std::string_view text) {
    std::string error(text);
    std::string advice;
    if (const std::size_t open = error.rfind(" ("); error.ends_with(')') && open != std::string::npos) {
        advice = error.substr(open + 2, error.size() - open - 3);
        error.resize(open);
    }
    const nlohmann::ordered_json body = {{"error", error}, {"advice", advice}};
    HttpAnswer answer;
    answer.status = status;
    // The text may quote what a client sent, with any bytes.
    answer.body = body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    return answer;
}

} // namespace vmm::control
