// SPDX-License-Identifier: Apache-2.0
// The CUDA operators on torch's stable ABI: schemas, checks, memory and streams. No arithmetic.
//
// pipa_fast/ops/_*_cuda.py call these with rows that they have sorted. The checks guard memory,
// since torch.ops.pipa_fast_cuda is within anyone's reach.
#include <Python.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/limits.h"
#include "cuda/patch_consistency.h"
#include "cuda/pixel_contrast.h"
#include "cuda/runtime.h"
#include "torch_cuda.h"

namespace {

using pipa::cuda::Number;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The stream that torch would use.
void* current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const auto getter =
      reinterpret_cast<Getter>(torch_cuda_function("aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(getter != nullptr, "this torch has no CUDA streams");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "torch's current CUDA stream cannot be had");
  return stream;
}

void check(const Tensor& tensor, ScalarType dtype, std::vector<int64_t> shape, const Tensor& x,
           const char* name) {
  bool fits = tensor.is_cuda() && tensor.get_device_index() == x.get_device_index() &&
              tensor.is_contiguous() && tensor.scalar_type() == dtype &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t axis = 0; fits && axis < shape.size(); ++axis)
    fits = tensor.size(axis) == shape[axis];
  STD_TORCH_CHECK(fits, name,
                  " must be a contiguous tensor on the device of the rows, of the "
                  "dtype and shape that csrc/cuda/bindings.cpp tells");
}

// Copies to shared memory take 16 bytes at a time.
void check_aligned(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0, name,
                  " must begin at a multiple of 16 bytes");
}

// Rows of at most 512 columns, of the dtype that `number` multiplies.
int check_rows(const Tensor& x, int64_t number, const char* name) {
  STD_TORCH_CHECK(number >= 0 && number < 4, "number must be 0 to 3, got ", number);
  const ScalarType dtype = number == 0   ? ScalarType::BFloat16
                           : number == 1 ? ScalarType::Half
                                         : ScalarType::Float;
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 2 && x.is_contiguous() && x.scalar_type() == dtype,
                  name, " must be a contiguous CUDA tensor [rows, D] of number ", number);
  STD_TORCH_CHECK(x.size(1) >= 8 && x.size(1) <= 512 && x.size(1) % 8 == 0, name,
                  " must have 8 to 512 columns, a multiple of 8, got ", x.size(1));
  STD_TORCH_CHECK(x.size(0) < pipa::cuda::kMostRows, name, " must have fewer than ",
                  pipa::cuda::kMostRows, " rows, got ", x.size(0));
  check_aligned(x, name);
  return static_cast<int>(x.size(1) * (number < 2 ? 2 : 4));
}

Tensor floats(const Tensor& like, std::vector<int64_t> shape, bool zero) {
  Tensor made = torch::stable::new_empty(like, shape, ScalarType::Float);
  return zero ? torch::stable::fill_(made, 0.0) : made;
}

void launched(const char* wrong, const char* kernel) {
  STD_TORCH_CHECK(wrong == nullptr, kernel, " could not be launched: ", wrong);
}

int64_t padded(const Tensor& rows) {
  const int64_t unit = pipa::cuda::kPadding;
  return (rows.size(0) + unit - 1) / unit * unit;
}

// Without keys, the rows are their own.
pipa::cuda::PixelContrast problem_of(const Tensor& x, const Tensor& first, const Tensor& past,
                                     const Tensor& live, const std::optional<Tensor>& keys,
                                     const std::optional<Tensor>& live_keys, bool all_form,
                                     double scale, int64_t number) {
  const int row_bytes = check_rows(x, number, "x");
  STD_TORCH_CHECK(x.size(0) > 0, "x must have rows");
  check(first, ScalarType::Int, {padded(x)}, x, "first");
  check(past, ScalarType::Int, {padded(x)}, x, "past");
  check(live, ScalarType::Int, {1}, x, "live");
  STD_TORCH_CHECK(keys.has_value() == live_keys.has_value(),
                  "keys and live_keys must come together");
  if (keys) {
    STD_TORCH_CHECK(check_rows(*keys, number, "keys") == row_bytes && keys->size(0) > 0 &&
                        keys->get_device_index() == x.get_device_index(),
                    "keys must have rows, and the columns and the device of x");
    check(*live_keys, ScalarType::Int, {1}, x, "live_keys");
  }
  const Tensor& others = keys ? *keys : x;
  return {x.const_data_ptr(),
          x.size(0),
          row_bytes,
          static_cast<Number>(number),
          static_cast<const int*>(first.const_data_ptr()),
          static_cast<const int*>(past.const_data_ptr()),
          static_cast<const int*>(live.const_data_ptr()),
          others.const_data_ptr(),
          others.size(0),
          static_cast<const int*>((live_keys ? *live_keys : live).const_data_ptr()),
          !keys.has_value(),
          all_form,
          static_cast<float>(scale),
          padded(x)};
}

Tensor pixel_contrast_denominators(Tensor x, Tensor first, Tensor past, Tensor live,
                                   std::optional<Tensor> keys, std::optional<Tensor> live_keys,
                                   bool all_form, double scale, int64_t number) {
  const auto problem = problem_of(x, first, past, live, keys, live_keys, all_form, scale, number);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const pipa::cuda::Slots slots = pipa::cuda::pixel_contrast_slots(problem);
  Tensor sums = floats(x, {slots.count, problem.padded}, true);
  launched(pipa::cuda::pixel_contrast_denominators(problem, slots, sums.mutable_data_ptr<float>(),
                                                   current_stream(x.get_device_index())),
           "pixel_contrast's denominators");
  return sums;
}

Tensor pixel_contrast_positives(Tensor x, Tensor first, Tensor past, Tensor live,
                                std::optional<Tensor> keys, std::optional<Tensor> live_keys,
                                bool all_form, double scale, int64_t number, Tensor z) {
  const auto problem = problem_of(x, first, past, live, keys, live_keys, all_form, scale, number);
  check(z, ScalarType::Float, {problem.padded}, x, "z");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor parts = floats(x, {pipa::cuda::kParts, 2, problem.padded}, true);
  launched(pipa::cuda::pixel_contrast_positives(problem, z.const_data_ptr<float>(),
                                                parts.mutable_data_ptr<float>(),
                                                current_stream(x.get_device_index())),
           "pixel_contrast's positives");
  return parts;
}

Tensor pixel_contrast_cosines(Tensor x, Tensor first, Tensor past, Tensor live,
                              std::optional<Tensor> keys, std::optional<Tensor> live_keys,
                              bool all_form, double scale, int64_t number) {
  const auto problem = problem_of(x, first, past, live, keys, live_keys, all_form, scale, number);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t unit = pipa::cuda::kPadding;
  Tensor tile_sums = floats(x, {(problem.m + unit - 1) / unit, x.size(1)}, false);
  Tensor sums = floats(x, {problem.padded}, true);
  launched(pipa::cuda::pixel_contrast_cosines(problem, tile_sums.mutable_data_ptr<float>(),
                                              sums.mutable_data_ptr<float>(),
                                              current_stream(x.get_device_index())),
           "pixel_contrast's cosines");
  return sums;
}

Tensor pixel_contrast_gradient(Tensor x, Tensor first, Tensor past, Tensor live,
                               std::optional<Tensor> keys, std::optional<Tensor> live_keys,
                               bool all_form, double scale, int64_t number, Tensor slopes,
                               std::optional<Tensor> of_keys, Tensor order, Tensor factor,
                               bool wide) {
  const auto problem = problem_of(x, first, past, live, keys, live_keys, all_form, scale, number);
  check(slopes, ScalarType::Float, {3, problem.padded}, x, "slopes");
  STD_TORCH_CHECK(keys.has_value() == of_keys.has_value(), "keys and of_keys must come together");
  if (keys) check(*of_keys, ScalarType::Float, {3, padded(*keys)}, x, "of_keys");
  check_aligned(of_keys ? *of_keys : slopes, keys ? "of_keys" : "slopes");
  check(order, ScalarType::Long, {problem.n}, x, "order");
  check(factor, ScalarType::Float, {}, x, "factor");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor gradient = wide ? floats(x, {x.size(0), x.size(1)}, false) : torch::stable::empty_like(x);
  launched(pipa::cuda::pixel_contrast_gradient(
               problem, slopes.const_data_ptr<float>(),
               (of_keys ? *of_keys : slopes).const_data_ptr<float>(),
               order.const_data_ptr<int64_t>(), factor.const_data_ptr<float>(), wide,
               gradient.mutable_data_ptr(), current_stream(x.get_device_index())),
           "pixel_contrast's gradient");
  return gradient;
}

std::tuple<Tensor, Tensor> patch_consistency_sums(Tensor anchors, Tensor keys, Tensor first,
                                                  Tensor past, Tensor live, Tensor live_keys,
                                                  double scale, double shift, int64_t number,
                                                  int64_t splits) {
  const int row_bytes = check_rows(anchors, number, "anchors");
  STD_TORCH_CHECK(check_rows(keys, number, "keys") == row_bytes &&
                      keys.get_device_index() == anchors.get_device_index(),
                  "keys must have the columns and the device of anchors");
  const int64_t n = anchors.size(0), m = keys.size(0);
  STD_TORCH_CHECK(n > 0, "anchors must have rows");
  STD_TORCH_CHECK(splits > 0 && splits <= 64, "splits must be 1 to 64, got ", splits);
  check(first, ScalarType::Int, {n}, anchors, "first");
  check(past, ScalarType::Int, {n}, anchors, "past");
  check(live, ScalarType::Int, {1}, anchors, "live");
  check(live_keys, ScalarType::Int, {1}, anchors, "live_keys");
  const torch::stable::accelerator::DeviceGuard guard(anchors.get_device_index());
  Tensor z = floats(anchors, {splits, n}, false);
  Tensor o = floats(anchors, {splits, n, anchors.size(1)}, false);
  const pipa::cuda::PatchConsistency problem{anchors.const_data_ptr(),
                                             n,
                                             keys.const_data_ptr(),
                                             m,
                                             row_bytes,
                                             static_cast<Number>(number),
                                             static_cast<const int*>(first.const_data_ptr()),
                                             static_cast<const int*>(past.const_data_ptr()),
                                             static_cast<const int*>(live.const_data_ptr()),
                                             static_cast<const int*>(live_keys.const_data_ptr()),
                                             static_cast<float>(scale),
                                             static_cast<float>(shift)};
  launched(pipa::cuda::patch_consistency_sums(
               problem, static_cast<int>(splits), z.mutable_data_ptr<float>(),
               o.mutable_data_ptr<float>(), current_stream(anchors.get_device_index())),
           "patch_consistency's sums");
  return {z, o};
}

}  // namespace

#define PIPA_ROWS                                                                            \
  "Tensor x, Tensor first, Tensor past, Tensor live, Tensor? keys, Tensor? live_keys, bool " \
  "all_form, float scale, int number"

STABLE_TORCH_LIBRARY(pipa_fast_cuda, m) {
  m.def("pixel_contrast_denominators(" PIPA_ROWS ") -> Tensor");
  m.def("pixel_contrast_positives(" PIPA_ROWS ", Tensor z) -> Tensor");
  m.def("pixel_contrast_cosines(" PIPA_ROWS ") -> Tensor");
  m.def("pixel_contrast_gradient(" PIPA_ROWS
        ", Tensor slopes, Tensor? of_keys, Tensor order, Tensor factor, bool wide) -> Tensor");
  m.def(
      "patch_consistency_sums(Tensor anchors, Tensor keys, Tensor first, Tensor past, Tensor live, "
      "Tensor live_keys, float scale, float shift, int number, int splits) -> (Tensor z, Tensor "
      "o)");
}

STABLE_TORCH_LIBRARY_IMPL(pipa_fast_cuda, CUDA, m) {
  m.impl("pixel_contrast_denominators", TORCH_BOX(&pixel_contrast_denominators));
  m.impl("pixel_contrast_positives", TORCH_BOX(&pixel_contrast_positives));
  m.impl("pixel_contrast_cosines", TORCH_BOX(&pixel_contrast_cosines));
  m.impl("pixel_contrast_gradient", TORCH_BOX(&pixel_contrast_gradient));
  m.impl("patch_consistency_sums", TORCH_BOX(&patch_consistency_sums));
}

static PyObject* why_not(PyObject*, PyObject*) {
  const char* reason = pipa::cuda::runtime_why_not();
  return PyUnicode_FromString(reason ? reason : "");
}

static PyObject* compiled(PyObject*, PyObject*) {
  std::string numbers, widths;
  for (const char* name : pipa::cuda::kNumberNames) numbers += std::string(" ") + name;
  for (int width : pipa::cuda::kWidths) widths += " " + std::to_string(width);
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:i,s:i}", "version", PIPA_FAST_VERSION, "archs",
                       PIPA_FAST_CUDA_ARCHS, "ptx", PIPA_FAST_CUDA_PTX, "numbers",
                       numbers.c_str() + 1, "widths", widths.c_str() + 1, "runtime",
                       pipa::cuda::runtime_version(), "driver", pipa::cuda::driver_version());
}

// Importing it loads the library, which registers the operators.
PyMODINIT_FUNC PyInit__CUDA() {
  static PyMethodDef methods[] = {
      {"why_not", why_not, METH_NOARGS,
       "Return why the CUDA runtime that is linked in finds no device, \"\" where it does."},
      {"compiled", compiled, METH_NOARGS,
       "Return what was compiled, in words: version, archs and ptx (as in PIPA_FAST_CUDA_ARCHS), "
       "numbers, widths [bytes of a row]; and the CUDA versions, 13000 for 13.0, of the runtime "
       "and "
       "of the driver that is here, 0 for none."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_CUDA", nullptr, -1, methods};
  return PyModule_Create(&module);
}
