# Debian's cross compiler for 64-bit ARM:
#   runtime/cpp/cmake/aarch64-sysroot.sh build/arm64
#   cmake -S runtime/cpp -B build/cpp-aarch64 --toolchain runtime/cpp/cmake/aarch64.cmake -DGRIDPOOL_SYSROOT=$PWD/build/arm64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GRIDPOOL_SYSROOT)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${GRIDPOOL_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR} "${GRIDPOOL_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig")
# The linker need not look for what FFmpeg's libraries need themselves.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,--allow-shlib-undefined")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,--unresolved-symbols=ignore-in-shared-libs")
