// Compiled only to precompile the headers that all tests share (tests/CMakeLists.txt). It has no test.
