// What the calling thread may do that not every thread may.
#pragma once

namespace vmm {

/// Whether the calling thread may open files. Otherwise it is confined, and to try would end the program: whoever would
/// look something up for the text of an error does without it.
[[nodiscard]] bool may_open_files() noexcept;

/// The calling thread may not, from now on. A thread that it makes has to be told, too.
void note_no_files_in_this_thread() noexcept;

/// What every thread that this process makes is to do first, once the process gives up what it does not need; null:
/// nothing. It is set before such threads are made, and does not throw.
void set_beginning_of_threads(void (*begin)() noexcept) noexcept;
/// Every thread that is made calls it first.
void begin_thread() noexcept;

} // namespace vmm
