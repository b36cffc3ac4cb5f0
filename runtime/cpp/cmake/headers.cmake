# Headers of libraries that need no building: a directory that the user names, the system's, or a Debian package's that apt brings.

# Set VARIABLE to the directory of HEADER. OPTION: the cache variable by which a user names it.
function(find_headers variable header package option)
  set(fetched "${CMAKE_BINARY_DIR}/headers/${package}")
  set(${option} "" CACHE PATH "directory of ${header}")
  find_path(${variable} ${header} HINTS "${${option}}" PATHS "${fetched}/usr/include" PATH_SUFFIXES ${ARGN} NO_CACHE)
  if(NOT ${variable})
    message(STATUS "fetching ${package} through apt")
    execute_process(COMMAND "${PROJECT_SOURCE_DIR}/cmake/debian-headers.sh" "${fetched}" ${package} RESULT_VARIABLE failed ERROR_VARIABLE reason)
    if(failed)
      message(FATAL_ERROR "${header} is not installed and could not be fetched: ${reason}\ninstall ${package}, or pass -D${option}=DIR")
    endif()
    find_path(${variable} ${header} PATHS "${fetched}/usr/include" PATH_SUFFIXES ${ARGN} NO_CACHE NO_DEFAULT_PATH REQUIRED)
  endif()
  set(${variable} "${${variable}}" PARENT_SCOPE)
endfunction()
