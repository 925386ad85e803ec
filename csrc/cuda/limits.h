// SPDX-License-Identifier: Apache-2.0
// What the kernels and those who call them agree on.
#pragma once

namespace pipa::cuda {

// What is multiplied. Float32 goes through TF32: once, or as the sum of three products, whose error
// is that of float32.
enum class Number { bfloat16, float16, tf32, tf32x3 };
constexpr const char* kNumberNames[] = {"bfloat16", "float16", "tf32", "tf32x3"};

// Bytes of the rows that kernels are compiled for: a problem takes the least that holds its own.
constexpr int kWidths[] = {128, 256, 512, 1024, 2048};

constexpr int kPadding = 128;  // rows of [padded] arrays: a multiple, 0 where there is no row
constexpr int kParts = 8;      // programs that share a block's own classes, or the keys of others
constexpr int kMostRows = 1 << 30;  // rows are counted in 32 bits

}  // namespace pipa::cuda
