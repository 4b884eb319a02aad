// Input from users and programs: requests of the control socket, answers to a client, command lines, configuration
// files.

#include <algorithm>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/host/error.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/cli/config_file.hpp"
#include "vmm/control/http.hpp"
#include "vmm/control/verbs.hpp"
#include "vmm/limits.hpp"

namespace vmm::fuzz {

namespace {

std::string text_of(Bytes bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; // chars may alias any bytes
}

/// A refusal has a status that blames the client, and a message.
void check_refusal(const control::HttpAnswer& answer) {
    constexpr unsigned kFirst = 400;
    constexpr unsigned kLast = 431;
    require(answer.status >= kFirst && answer.status <= kLast, "a request was wrong, and the answer is not that");
    const auto body = nlohmann::json::parse(answer.body, nullptr, false);
    require(body.is_object() && body.contains("error") && body["error"].is_string(), "a refusal does not say why");
    require(!body["error"].get<std::string>().empty(), "a refusal says nothing");
}

void check_request(const control::HttpRequest& request) {
    const auto understood = control::understand(request);
    if (const auto* const refusal = std::get_if<control::HttpAnswer>(&understood)) {
        check_refusal(*refusal);
        return;
    }
    const auto& call = std::get<control::Call>(understood);
    require(call.verb != nullptr && call.verb->method == request.method, "a request became another verb's");
    for (const control::Parameter& parameter : call.verb->parameters) {
        const bool is_number =
            parameter.kind == control::Parameter::Kind::kNumber || parameter.kind == control::Parameter::Kind::kBytes;
        if (is_number) {
            const auto value = call.arguments.number(parameter.name);
            require(!value || (*value >= parameter.least && *value <= parameter.most),
                    "a number is beyond its parameter's limits");
        } else if (parameter.kind == control::Parameter::Kind::kChoice) {
            const auto word = call.arguments.word(parameter.name);
            require(!word || std::ranges::find(parameter.choices, *word) != parameter.choices.end(),
                    "a word is none of its parameter's choices");
        } else if (parameter.kind == control::Parameter::Kind::kPath) {
            const auto path = call.arguments.word(parameter.name);
            require(!path || (path->starts_with('/') && path->find('\0') == std::string::npos &&
                              path->size() <= control::Parameter::kMostPathBytes),
                    "a path is none");
        }
    }
}

/// The bytes arrive in pieces, as on a connection.
void read_requests(Input input) {
    control::RequestReader reader;
    constexpr unsigned kMostRequests = 64;
    unsigned requests = 0;
    while (!input.empty() && reader.state() != control::RequestReader::State::kRefused && requests < kMostRequests) {
        const std::size_t piece = 1 + std::size_t{input.byte()} * 4;
        reader.add(text_of(input.take_bytes(piece)));
        static_cast<void>(reader.wants_continue());
        while (reader.state() == control::RequestReader::State::kWhole && requests < kMostRequests) {
            check_request(reader.take());
            ++requests;
        }
    }
    if (reader.state() == control::RequestReader::State::kRefused) {
        const control::HttpAnswer refusal = reader.refusal();
        require(refusal.status >= 400 && !refusal.body.empty(), "what is no request is refused without a word");
    }
}

void read_answer(Input input) {
    control::AnswerReader reader;
    try {
        while (!input.empty() && !reader.is_whole()) {
            const std::size_t piece = 1 + std::size_t{input.byte()} * 4;
            reader.add(text_of(input.take_bytes(piece)));
            static_cast<void>(reader.take_body());
        }
        if (reader.has_head()) {
            require(reader.status() < 1000, "an answer has a status that is none");
        }
    } catch (const Error& error) {
        require(error.what()[0] != '\0', "an answer is refused without a word");
    }
}

} // namespace

/// The first byte says what the rest is: requests as bytes, one body for a verb, or an answer.
void control(Bytes program) {
    Input input(program);
    constexpr std::size_t kKinds = 3;
    switch (input.below(kKinds)) {
    case 0:
        read_requests(input);
        return;
    case 1: {
        const auto all = control::verbs();
        const control::Verb& verb = all[input.below(std::min<std::size_t>(all.size(), 256))];
        const std::string rest = text_of(input.take_rest());
        const std::size_t line = std::min(rest.find('\n'), rest.size());
        control::HttpRequest request;
        request.method = verb.method;
        request.path = verb.path.substr(0, verb.path.find('{')) +
                       (verb.path.find('{') != std::string::npos ? rest.substr(0, line) : std::string());
        request.query = verb.method == "GET" ? rest.substr(0, line) : std::string();
        request.body = line < rest.size() ? rest.substr(line + 1) : std::string();
        check_request(request);
        return;
    }
    default:
        read_answer(input);
    }
}

/// The first byte says what the rest is: a configuration file, or the words of a command line, each ended by a zero.
void options(Bytes program) {
    Input input(program);
    if (input.below(2) == 0) {
        try {
            for (const ConfigFileEntry& entry : parse_config_file(text_of(input.take_rest()), "fuzz")) {
                require(!entry.values.empty() && entry.values.size() == entry.lines.size(),
                        "a member of a file has no value");
            }
        } catch (const Error& error) {
            require(std::string_view(error.what()).find("fuzz") != std::string_view::npos,
                    "an error does not name its file");
        }
        return;
    }
    std::vector<std::string> words{"vmm"};
    const std::string rest = text_of(input.take_rest());
    constexpr std::size_t kMostWords = 40;
    for (std::size_t start = 0; start < rest.size() && words.size() < kMostWords;) {
        const std::size_t end = std::min(rest.find('\0', start), rest.size());
        words.push_back(rest.substr(start, end - start));
        // These options read files, and the fuzzer has none.
        if (words.back().find("config") != std::string::npos || words.back().find("restore") != std::string::npos) {
            words.pop_back();
        }
        start = end + 1;
    }
    std::vector<const char*> pointers;
    for (const std::string& word : words) {
        pointers.push_back(word.c_str());
    }
    const Command command = parse_command_line(static_cast<int>(pointers.size()), pointers.data());
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        require(!text->text.empty(), "a command line is answered without a word");
        require(text->exit_code == exit_codes::kSuccess || text->text.starts_with("vmm: error: "),
                "a command line is refused, and it does not say so");
    }
}

} // namespace vmm::fuzz
