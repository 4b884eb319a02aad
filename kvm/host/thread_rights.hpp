// What the calling thread may do, if not every thread may do it.
#pragma once

namespace vmm {

/// True if the calling thread may open files. If not, the thread is confined, and an attempt would end the program: a
/// function that wants to look something up for the text of an error must do without it.
[[nodiscard]] bool may_open_files() noexcept;

/// Notes that the calling thread may not open files from now on. A thread that it creates must call this, too.
void note_no_files_in_this_thread() noexcept;

/// Sets a function that every new thread of this process must call first, once the process gives up rights that it does
/// not need; null: none. It is set before such threads are created, and does not throw.
void set_beginning_of_threads(void (*begin)() noexcept) noexcept;
/// Calls that function. Every thread calls this first.
void begin_thread() noexcept;

} // namespace vmm
