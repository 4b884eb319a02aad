// Compiled so that the headers all tests share are precompiled (tests/CMakeLists.txt). There is no test in it.
