# Headers of libraries that need no building: from a directory that the user names, the system's, or a Debian package fetched through apt.

# Set VARIABLE to the directory of HEADER. OPTION: the cache variable by which a user names it; further arguments: folders to look in.
function(find_headers variable header package option)
  set(${option} "" CACHE PATH "directory of ${header}")
  set(fetched "${CMAKE_BINARY_DIR}/headers/${package}")
  set(in_fetched PATHS "${fetched}/usr/include" PATH_SUFFIXES ${ARGN} NO_CACHE NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  find_path(${variable} ${header} HINTS "${${option}}" PATH_SUFFIXES ${ARGN} NO_CACHE)
  find_path(${variable} ${header} ${in_fetched})
  if(NOT ${variable})
    message(STATUS "fetching ${package} through apt")
    execute_process(COMMAND "${PROJECT_SOURCE_DIR}/cmake/debian-headers.sh" "${fetched}" ${package} RESULT_VARIABLE failed ERROR_VARIABLE reason)
    if(failed)
      message(FATAL_ERROR "${header} is not installed and could not be fetched: ${reason}\ninstall ${package}, or pass -D${option}=DIR")
    endif()
    find_path(${variable} ${header} ${in_fetched} REQUIRED)
  endif()
  set(${variable} "${${variable}}" PARENT_SCOPE)
endfunction()
