// Writes the manual pages and the completions of three shells, from the table of options and docs/report.md.
//
// vmm_manual FOLDER docs/report.md

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

void write(const std::filesystem::path& path, const std::string& text) {
    std::filesystem::create_directories(path.parent_path());
    std::ofstream file(path);
    file << text;
    file.close();
    if (!file) {
        throw Error("cannot write " + path.string());
    }
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
    for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size()) {
        text.replace(at, what.size(), by);
    }
    return text;
}

/// Makes text safe for roff (groff_man(7)): hyphens stay hyphens, and no line looks like a request.
std::string roff(std::string text) {
    text = replaced(replaced(std::move(text), "\\", "\\e"), "-", "\\-");
    std::string lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
        lines += (line.starts_with('.') || line.starts_with('\'') ? "\\&" : "") + line + "\n";
    }
    return lines.empty() ? lines : lines.substr(0, lines.size() - 1);
}

/// Translates a line of Markdown: `code` becomes bold.
std::string roff_of_markdown(const std::string& text) {
    std::string out;
    bool bold = false;
    for (const char c : roff(text)) {
        if (c == '`') {
            out += bold ? "\\fR" : "\\fB";
            bold = !bold;
        } else {
            out += c;
        }
    }
    return out;
}

std::string title(const std::string& name, int section, const std::string& summary) {
    return ".TH " + name + " " + std::to_string(section) + " \"\" \"vmm " + kVersion + "\"\n.SH NAME\n" + roff(name) +
           " \\- " + roff(summary) + "\n";
}

std::string words_of(const Option& option) {
    std::string words;
    for (const std::string& name : option.written_names()) {
        words += (words.empty() ? "" : ", ") + name;
    }
    return option.value.form.empty() ? words : words + " " + option.value.form;
}

std::string man_of_options(const std::vector<Option>& options) {
    std::string text;
    for (const Option& option : options) {
        text += ".TP\n\\fB" + roff(words_of(option)) + "\\fR\n" + roff(option.help) + "\n";
        if (!option.standard.empty()) {
            text += "Default: " + roff(option.standard) + ".\n";
        }
    }
    return text;
}

std::string literal(const std::string& text) {
    return ".PP\n.nf\n" + roff(text) + "\n.fi\n";
}

std::string man_of_program(const CommandText& program, const std::vector<CommandText>& commands) {
    std::string text = title("vmm", 1, "virtual machines whose memory is populated beforehand");
    text += ".SH SYNOPSIS\n\\fBvmm\\fR COMMAND [OPTIONS]\n.SH DESCRIPTION\n" + roff(program.help) + "\n.SH COMMANDS\n";
    for (const CommandText& command : commands) {
        text += ".TP\n\\fBvmm " + roff(command.name) + "\\fR\n" + roff(command.help) + "\n";
    }
    text += ".SH OPTIONS\n" + man_of_options(program.options) + ".SH EXAMPLES\n" + literal(program.notes);
    return text + ".SH SEE ALSO\n\\fBvmm\\-run\\fR(1), \\fBvmm\\-report\\fR(5)\n";
}

std::string man_of_command(const CommandText& command) {
    std::string text = title("vmm-" + command.name, 1, command.help);
    text += ".SH SYNOPSIS\n\\fBvmm " + roff(command.name) + "\\fR [OPTIONS]\n.SH DESCRIPTION\n" + roff(command.help) +
            ".\n.SH OPTIONS\n" + man_of_options(command.options);
    if (!command.notes.empty()) {
        text += ".SH NOTES\n" + literal(command.notes);
    }
    return text + ".SH SEE ALSO\n\\fBvmm\\fR(1), \\fBvmm\\-report\\fR(5)\n";
}

/// Translates headings, paragraphs and tables of docs/report.md.
std::string man_of_report(std::istream& markdown) {
    std::string text = title("vmm-report", 5, "the report of a run, and the exit status");
    text += ".SH DESCRIPTION\n";
    bool in_table = false;
    bool first = true;
    for (std::string line; std::getline(markdown, line);) {
        if (line.starts_with("# ")) {
            continue; // The title is written above.
        }
        if (line.starts_with("## ")) {
            text += ".SH " + roff(line.substr(3)) + "\n";
            in_table = false;
        } else if (line.starts_with("|")) {
            std::vector<std::string> cells;
            std::istringstream row(line.substr(1));
            for (std::string cell; std::getline(row, cell, '|');) {
                const auto begin = cell.find_first_not_of(' ');
                const auto end = cell.find_last_not_of(' ');
                cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
            }
            const bool head = !in_table || line.starts_with("|---");
            in_table = true;
            if (head || cells.empty()) {
                continue;
            }
            text += ".TP\n" + roff_of_markdown(cells.front()) + "\n";
            for (std::size_t i = 1; i < cells.size(); ++i) {
                text += roff_of_markdown(cells[i]) + (i + 1 < cells.size() ? ";\n" : "\n");
            }
        } else if (line.empty()) {
            text += first ? "" : ".PP\n";
            in_table = false;
        } else {
            text += roff_of_markdown(line) + "\n";
            first = false;
        }
    }
    return text;
}

/// The names that begin with a dash.
std::vector<std::string> dashed(const Option& option) {
    std::vector<std::string> names;
    for (const std::string& name : option.written_names()) {
        if (name.starts_with('-')) {
            names.push_back(name);
        }
    }
    return names;
}

std::string bash(const CommandText& program, const std::vector<CommandText>& commands) {
    std::string text = "# bash completion for vmm; made from the table of options\n_vmm() {\n"
                       "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
                       "    local command=${COMP_WORDS[1]}\n    COMPREPLY=()\n"
                       "    if [[ $current == = ]]; then current=; fi\n"
                       "    if [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
                       "    if ((COMP_CWORD == 1)); then\n        COMPREPLY=($(compgen -W \"";
    for (const CommandText& command : commands) {
        text += command.name + " ";
    }
    for (const Option& option : program.options) {
        text += joined(dashed(option), " ") + " ";
    }
    text += "\" -- \"$current\"))\n        return\n    fi\n    case $command in\n";
    for (const CommandText& command : commands) {
        text += "    " + command.name + ")\n        case $previous in\n";
        std::vector<std::string> all;
        for (const Option& option : command.options) {
            const std::vector<std::string> names = dashed(option);
            all.insert(all.end(), names.begin(), names.end());
            if (names.empty() || option.value.form.empty()) {
                continue;
            }
            text += "        " + joined(names, "|") + ") COMPREPLY=(";
            const std::vector<std::string>& words = option.value.choices;
            text += words.empty() ? "" : "$(compgen -W \"" + joined(words, " ") + "\" -- \"$current\")";
            text += option.value.is_file ? " $(compgen -f -- \"$current\")" : "";
            text += "); return ;;\n";
        }
        text += "        esac\n        if [[ $current == -* ]]; then COMPREPLY=($(compgen -W \"" + joined(all, " ") +
                "\" -- \"$current\")); else COMPREPLY=($(compgen -f -- \"$current\")); fi\n        ;;\n";
    }
    return text + "    esac\n}\ncomplete -o filenames -F _vmm vmm\n";
}

/// Makes text safe for single quotes of zsh's _arguments, where brackets and colons have a meaning.
std::string zsh_text(std::string text) {
    for (const char* const c : {"[", "]", ":"}) {
        text = replaced(std::move(text), c, std::string("\\") + c);
    }
    return replaced(std::move(text), "'", "'\\''");
}

std::string zsh_of_options(const std::vector<Option>& options) {
    std::string text;
    for (const Option& option : options) {
        for (const std::string& name : dashed(option)) {
            text += " \\\n        '*" + name +
                    (option.value.form.empty() ? ""
                     : name.starts_with("--")  ? "="
                                               : "+") +
                    "[" + zsh_text(option.help) + "]";
            if (!option.value.form.empty()) {
                const std::vector<std::string>& words = option.value.choices;
                text += ":" + zsh_text(option.value.form) + ":" +
                        (!words.empty()         ? "(" + joined(words, " ") + ")"
                         : option.value.is_file ? "_files"
                                                : "");
            }
            text += "'";
        }
    }
    return text;
}

std::string zsh(const CommandText& program, const std::vector<CommandText>& commands) {
    std::string text = "#compdef vmm\n# made from the table of options\nif (( CURRENT == 2 )); then\n"
                       "    local -a commands=(";
    for (const CommandText& command : commands) {
        text += "\n        '" + command.name + ":" + replaced(command.help, "'", "'\\''") + "'";
    }
    text += ")\n    _describe command commands\n    _arguments" + zsh_of_options(program.options) +
            "\n    return\nfi\nlocal command=$words[2]\nshift words\n(( CURRENT-- ))\ncase $command in\n";
    for (const CommandText& command : commands) {
        text += command.name + ")\n    _arguments" + zsh_of_options(command.options) +
                " \\\n        '*:file:_files'\n    ;;\n";
    }
    return text + "esac\n";
}

std::string fish_of_options(const std::vector<Option>& options, const std::string& when) {
    std::string text;
    for (const Option& option : options) {
        const std::vector<std::string> names = dashed(option);
        if (names.empty()) {
            continue;
        }
        text += "complete -c vmm -n '" + when + "'";
        for (const std::string& name : names) {
            text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
        }
        if (!option.value.form.empty()) {
            text += option.value.is_file ? " -r -F" : " -x";
            const std::vector<std::string>& words = option.value.choices;
            text += words.empty() ? "" : " -a '" + joined(words, " ") + "'";
        }
        text += " -d '" + replaced(replaced(option.help, "\\", "\\\\"), "'", "\\'") + "'\n";
    }
    return text;
}

std::string fish(const CommandText& program, const std::vector<CommandText>& commands) {
    std::string text = "# fish completion for vmm; made from the table of options\n";
    for (const CommandText& command : commands) {
        text += "complete -c vmm -n __fish_use_subcommand -f -a " + command.name + " -d '" +
                replaced(command.help, "'", "\\'") + "'\n";
    }
    text += fish_of_options(program.options, "__fish_use_subcommand");
    for (const CommandText& command : commands) {
        text += fish_of_options(command.options, "__fish_seen_subcommand_from " + command.name);
    }
    return text;
}

void write_all(const std::filesystem::path& folder, const std::string& report_markdown) {
    const std::vector<CommandText> all = describe_commands();
    const CommandText& program = all.front();
    const std::vector<CommandText> commands(all.begin() + 1, all.end());
    write(folder / "man/man1/vmm.1", man_of_program(program, commands));
    for (const CommandText& command : commands) {
        write(folder / ("man/man1/vmm-" + command.name + ".1"), man_of_command(command));
    }
    std::ifstream markdown(report_markdown);
    if (!markdown) {
        throw Error("cannot read " + report_markdown);
    }
    write(folder / "man/man5/vmm-report.5", man_of_report(markdown));
    write(folder / "share/bash-completion/completions/vmm", bash(program, commands));
    write(folder / "share/zsh/vendor-completions/_vmm", zsh(program, commands));
    write(folder / "share/fish/vendor_completions.d/vmm.fish", fish(program, commands));
}

} // namespace

} // namespace vmm

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: vmm_manual FOLDER docs/report.md\n";
        return 2;
    }
    try {
        vmm::write_all(argv[1], argv[2]);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "vmm_manual: " << error.what() << '\n';
        return 1;
    }
}
