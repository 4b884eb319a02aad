# Units for systemd, a user for guests, and the program that answers a Prometheus server: files of the package `vmm`.

# systemd knows MemoryKSM= from version 254 on; an older version warns about it. The package is for the distribution on which
# it is made.
set(memory_ksm "# MemoryKSM=no is left out: systemd knows it from version 254 on. Without it, memory is not merged, either.")
find_program(SYSTEMD_ANALYZE_PROGRAM systemd-analyze)
if(SYSTEMD_ANALYZE_PROGRAM)
    execute_process(COMMAND ${SYSTEMD_ANALYZE_PROGRAM} --version OUTPUT_VARIABLE systemd_version ERROR_QUIET)
    if(systemd_version MATCHES "^systemd ([0-9]+)" AND CMAKE_MATCH_1 GREATER_EQUAL 254)
        set(memory_ksm "MemoryKSM=no")
    endif()
endif()
set(bindir ${CMAKE_INSTALL_FULL_BINDIR})
set(libexecdir ${CMAKE_INSTALL_FULL_LIBEXECDIR})
set(units)
foreach(unit vmm@.service vmm-api@.socket vmm-pool@.service vmm-metrics.socket vmm-metrics@.service)
    configure_file(systemd/${unit}.in ${CMAKE_CURRENT_BINARY_DIR}/systemd/${unit} @ONLY)
    list(APPEND units ${CMAKE_CURRENT_BINARY_DIR}/systemd/${unit})
endforeach()
install(FILES ${units} DESTINATION lib/systemd/system COMPONENT vmm)
install(FILES systemd/vmm.sysusers DESTINATION lib/sysusers.d RENAME vmm.conf COMPONENT vmm)
install(PROGRAMS systemd/metrics-http DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/vmm COMPONENT vmm)
