// SPDX-License-Identifier: Apache-2.0
// Functions of torch's CUDA library, which need not be there where an extension is loaded.
#pragma once

#include <dlfcn.h>

// The function of that name, or null. It is asked of the library itself: Python loads torch's
// libraries without showing them to others, and a linker that is told to need as few as possible,
// as Ubuntu's is, leaves out the one that would lead to it.
inline void* torch_cuda_function(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  return dlsym(library != nullptr ? library : RTLD_DEFAULT, name);
}
