#include "vmm/control/http.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/error.hpp"

namespace vmm::control {
namespace {

using State = RequestReader::State;

constexpr std::string_view kGet = "GET /status?since=4 HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr std::string_view kPost = "POST /stop HTTP/1.1\r\nContent-Length: 13\r\n\r\n{\"force\":true";

unsigned status_of_refused(std::string_view bytes, HttpLimits limits = {}) {
    RequestReader reader(limits);
    reader.add(bytes);
    return reader.state() == State::kRefused ? reader.refusal().status : 0;
}

TEST(RequestReader, TakesARequestInOnePiece) {
    RequestReader reader;
    EXPECT_EQ(reader.state(), State::kIdle);
    reader.add(kGet);
    ASSERT_EQ(reader.state(), State::kWhole);
    const HttpRequest request = reader.take();
    EXPECT_EQ(request.method, "GET");
    EXPECT_EQ(request.path, "/status");
    EXPECT_EQ(request.query, "since=4");
    EXPECT_TRUE(request.keep_alive);
    EXPECT_EQ(reader.state(), State::kIdle);
}

TEST(RequestReader, TakesARequestByteByByte) {
    RequestReader reader;
    const std::string text = std::string(kPost) + "}";
    std::string whole = text;
    whole.replace(whole.find("13"), 2, "14");
    for (std::size_t i = 0; i < whole.size(); ++i) {
        ASSERT_NE(reader.state(), State::kWhole) << i;
        reader.add(std::string_view(whole).substr(i, 1));
    }
    ASSERT_EQ(reader.state(), State::kWhole);
    EXPECT_EQ(reader.take().body, "{\"force\":true}");
}

TEST(RequestReader, TakesRequestsThatCameTogetherOneByOne) {
    RequestReader reader;
    reader.add(std::string(kGet) + std::string(kPost) + std::string(kGet));
    EXPECT_EQ(reader.take().path, "/status");
    ASSERT_EQ(reader.state(), State::kWhole);
    EXPECT_EQ(reader.take().path, "/stop");
    ASSERT_EQ(reader.state(), State::kWhole);
    EXPECT_EQ(reader.take().path, "/status");
    EXPECT_EQ(reader.state(), State::kIdle);
}

TEST(RequestReader, TakesABodyInChunks) {
    RequestReader reader;
    reader.add("POST /stop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    ASSERT_EQ(reader.state(), State::kWhole);
    EXPECT_EQ(reader.take().body, "{}");
}

/// The parser asserts that it is never shown fewer bytes at the end than the shortest end has.
TEST(RequestReader, TakesABodyInChunksInPiecesOfAnySize) {
    const std::string head = "POST /stop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (const bool is_empty : {true, false}) {
        for (const char* const end : {"0\r\n\r\n", "000\r\n\r\n", "0;a=b\r\n\r\n", "0\r\nName: value\r\n\r\n"}) {
            const std::string whole = head + (is_empty ? "" : "1\r\n{\r\n1\r\n}\r\n") + end;
            for (std::size_t first = 1; first <= whole.size(); ++first) {
                for (std::size_t size = 1; size <= 6; ++size) {
                    RequestReader reader(HttpLimits{});
                    reader.add(std::string_view(whole).substr(0, first));
                    for (std::size_t at = first; at < whole.size(); at += size) {
                        ASSERT_EQ(reader.state(), RequestReader::State::kPartial) << first << ", " << size;
                        reader.add(std::string_view(whole).substr(at, size));
                    }
                    ASSERT_EQ(reader.state(), RequestReader::State::kWhole) << first << ", " << size;
                    ASSERT_EQ(reader.take().body, is_empty ? "" : "{}");
                }
            }
        }
    }
}

TEST(RequestReader, SaysOnceThatTheSenderWaits) {
    RequestReader reader;
    reader.add("POST /stop HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    EXPECT_TRUE(reader.wants_continue());
    EXPECT_FALSE(reader.wants_continue());
    reader.add("{}");
    EXPECT_EQ(reader.state(), State::kWhole);
}

TEST(RequestReader, RefusesAHeadThatIsTooLong) {
    const HttpLimits limits;
    const std::string field = "X: " + std::string(limits.header_bytes, 'x');
    EXPECT_EQ(status_of_refused("GET / HTTP/1.1\r\n" + field + "\r\n\r\n"), 431U);
    EXPECT_EQ(status_of_refused("GET / HTTP/1.1\r\n" + field), 431U); // without its end
    EXPECT_EQ(status_of_refused("GET /" + std::string(limits.header_bytes, 'x')), 431U);
}

TEST(RequestReader, RefusesABodyThatIsTooLong) {
    const std::string head = "POST / HTTP/1.1\r\n";
    EXPECT_EQ(status_of_refused(head + "Content-Length: 65537\r\n\r\n"), 413U);
    EXPECT_EQ(status_of_refused(head + "Transfer-Encoding: chunked\r\n\r\n10001\r\n" + std::string(65537, 'x')), 413U);
    EXPECT_NE(status_of_refused(head + "Content-Length: 18446744073709551616\r\n\r\n"), 0U);
    EXPECT_NE(status_of_refused(head + "Content-Length: -1\r\n\r\n"), 0U);
}

TEST(RequestReader, RefusesGarbage) {
    for (const std::string bytes : {"\x16\x03\x01\x02 hello\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
                                    "GET / HTTP/1.1\r\nno colon\r\n\r\n", " / HTTP/1.1\r\n\r\n"}) {
        EXPECT_NE(status_of_refused(bytes), 0U) << bytes;
    }
    EXPECT_NE(status_of_refused(std::string("GET /\0 HTTP/1.1\r\n\r\n", 19)), 0U);
}

TEST(RequestReader, HoldsForAnyBytes) {
    std::mt19937 random(1); // NOLINT(cert-msc51-cpp): the same bytes each time
    for (int round = 0; round < 2000; ++round) {
        std::string bytes = std::string(kPost) + "}" + std::string(kGet);
        for (int change = 0; change < 3; ++change) {
            bytes[random() % bytes.size()] = static_cast<char>(random());
        }
        RequestReader reader;
        for (std::size_t at = 0; at < bytes.size(); at += 7) {
            reader.add(std::string_view(bytes).substr(at, 7));
        }
        for (int taken = 0; reader.state() == State::kWhole; ++taken) {
            ASSERT_LT(taken, 100);
            static_cast<void>(reader.take());
        }
    }
}

TEST(AnswerReader, TakesAnAnswerAndItsChunks) {
    HttpAnswer answer;
    answer.body = "{}\n";
    AnswerReader whole;
    whole.add(head_of(answer, true, Framing::kWhole) + answer.body);
    ASSERT_TRUE(whole.is_whole());
    EXPECT_EQ(whole.status(), 200U);
    EXPECT_EQ(whole.take_body(), "{}\n");

    AnswerReader chunks;
    chunks.add(head_of(answer, false, Framing::kChunks));
    EXPECT_TRUE(chunks.has_head());
    chunks.add(chunk_of("one\n"));
    EXPECT_EQ(chunks.take_body(), "one\n");
    chunks.add(chunk_of("two\n") + std::string(last_chunk()));
    EXPECT_EQ(chunks.take_body(), "two\n");
    EXPECT_TRUE(chunks.is_whole());
}

TEST(AnswerReader, TakesEachChunkAsSoonAsItIsThere) {
    AnswerReader reader;
    HttpAnswer answer;
    answer.status = 200;
    reader.add(head_of(answer, false, Framing::kChunks));
    for (const std::string& text : std::vector<std::string>{"1", "two\n", std::string(300, 'x')}) {
        for (const char byte : chunk_of(text)) {
            reader.add({&byte, 1});
        }
        EXPECT_EQ(reader.take_body(), text);
        EXPECT_FALSE(reader.is_whole());
    }
    for (const char byte : last_chunk()) {
        EXPECT_FALSE(reader.is_whole());
        reader.add({&byte, 1});
    }
    EXPECT_TRUE(reader.is_whole());
}

TEST(AnswerReader, WithABadEndIsRefused) {
    AnswerReader reader;
    reader.add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na");
    for (const std::string_view piece : {std::string_view("\0\n", 2), std::string_view("\r\n")}) {
        try {
            reader.add(piece);
        } catch (const Error&) {
            return;
        }
    }
    EXPECT_FALSE(reader.is_whole());
}

TEST(AnswerReader, RefusesWhatIsNone) {
    AnswerReader reader;
    EXPECT_THROW(reader.add("SSH-2.0-OpenSSH\r\n\r\n"), Error);
}

TEST(ErrorAnswer, SplitsAdviceFromTheError) {
    EXPECT_EQ(error_answer(400, "cannot do it: why (do that)").body,
              "{\"error\":\"cannot do it: why\",\"advice\":\"do that\"}\n");
    EXPECT_EQ(error_answer(400, "cannot do it").body, "{\"error\":\"cannot do it\",\"advice\":\"\"}\n");
    EXPECT_EQ(error_answer(404, "\xff").body, "{\"error\":\"\xef\xbf\xbd\",\"advice\":\"\"}\n");
}

} // namespace
} // namespace vmm::control
