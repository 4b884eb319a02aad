# cpack makes vmm_*.deb, libvmm0_*.deb and libvmm-dev_*.deb.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME vmm)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "virtual machine monitor that fills the second-level page table first")
set(CPACK_PACKAGE_VENDOR "The vmm authors")
set(CPACK_PACKAGE_CONTACT "The vmm authors <vmm@example.org>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_COMPONENTS_ALL vmm libvmm libvmm-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
    OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)

set(soname_package libvmm${PROJECT_VERSION_MAJOR})
set(CPACK_DEBIAN_VMM_PACKAGE_NAME vmm)
set(CPACK_DEBIAN_VMM_PACKAGE_SECTION admin)
# The user of the units. dpkg has no way of its own to make one.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/debian/postinst "#!/bin/sh
set -e
if [ \"$1\" = configure ]; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers vmm.conf
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
fi
")
file(CHMOD ${CMAKE_CURRENT_BINARY_DIR}/debian/postinst
     PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEBIAN_VMM_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_BINARY_DIR}/debian/postinst)
set(CPACK_COMPONENT_VMM_DESCRIPTION "Runs virtual machines on KVM whose memory is populated, pinned and mapped in
the second-level page table (EPT, NPT) before the guest's first instruction,
so that the guest takes no second-level page fault.")
set(CPACK_DEBIAN_LIBVMM_PACKAGE_NAME ${soname_package})
set(CPACK_DEBIAN_LIBVMM_PACKAGE_SECTION libs)
set(CPACK_COMPONENT_LIBVMM_DESCRIPTION "Runs virtual machines on KVM within a program, on memory whose second-level
page table is filled beforehand; also for virtual machines of the program's
own. This package has the library that programs need to run.")
set(CPACK_DEBIAN_LIBVMM-DEV_PACKAGE_NAME libvmm-dev)
set(CPACK_DEBIAN_LIBVMM-DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_LIBVMM-DEV_PACKAGE_DEPENDS "${soname_package} (= ${PROJECT_VERSION}), liburing-dev, libfdt-dev, libzstd-dev")
set(CPACK_COMPONENT_LIBVMM-DEV_DESCRIPTION "Runs virtual machines on KVM within a program, on memory whose second-level
page table is filled beforehand; also for virtual machines of the program's
own. This package has what is needed to build such programs.")

# Debian's policy demands of each package a copyright file, a compressed changelog, and overrides with reasons.
find_program(GZIP_PROGRAM gzip REQUIRED)
foreach(pair vmm:vmm libvmm:${soname_package} libvmm-dev:libvmm-dev)
    string(REPLACE ":" ";" pair ${pair})
    list(GET pair 0 component)
    list(GET pair 1 package)
    set(folder ${CMAKE_CURRENT_BINARY_DIR}/debian/${package})
    file(WRITE ${folder}/changelog "${package} (${PROJECT_VERSION}) unstable; urgency=medium

  * See the project's CHANGELOG.md.

 -- The vmm authors <vmm@example.org>  Sun, 01 Nov 2026 00:00:00 +0000
")
    execute_process(COMMAND ${GZIP_PROGRAM} -9nf ${folder}/changelog COMMAND_ERROR_IS_FATAL ANY)
    file(WRITE ${folder}/copyright "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: vmm

Files: *
Copyright: 2026 The vmm authors
License: Apache-2.0
 On Debian systems the text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
")
    install(FILES ${folder}/changelog.gz ${folder}/copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package}
            COMPONENT ${component})
    # scripts/package puts the bill of materials there. If cpack is called by hand, there is none.
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/debian/sbom.spdx.json DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package}
            COMPONENT ${component} OPTIONAL)
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/lintian/${component})
        configure_file(lintian/${component} ${folder}/${package} COPYONLY)
        install(FILES ${folder}/${package} DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides
                COMPONENT ${component})
    endif()
endforeach()
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/debian/triggers "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_LIBVMM_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_BINARY_DIR}/debian/triggers)
include(CPack)
