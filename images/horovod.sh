#!/bin/sh
# Builds Horovod into /opt/venv against the TensorFlow that is there; FLAVOUR=gpu: with NCCL, and CUDA from /toolkit.
set -eu
packages=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ "$FLAVOUR" = gpu ]; then
    nccl=$packages/nvidia/nccl
    ln -s libnccl.so.2 "$nccl/lib/libnccl.so" # the linker's name of it, which the wheel leaves out
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED HOROVOD_NCCL_INCLUDE="$nccl/include" \
        HOROVOD_NCCL_LIB="$nccl/lib" HOROVOD_CUDA_HOME=/toolkit/cuda-12.5 HOROVOD_BUILD_CUDA_CC_LIST="$CUDA_ARCHITECTURES"
    # shellcheck disable=SC2016
    export LDFLAGS='-Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib'
fi
export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 \
    HOROVOD_WITH_GLOO=1 CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS="-j$(nproc)" PATH="/opt/venv/bin:$PATH"
sh /build/install.sh /build/horovod.txt --no-build-isolation --no-binary horovod --no-deps
strip --strip-unneeded "$packages"/horovod/tensorflow/mpi_lib*.so
# Headers for such builds, a library for TensorFlow's own: nothing that runs reads them.
rm -rf "$packages/tensorflow/include" "$packages"/clang "$packages"/libclang-*
