// SPDX-License-Identifier: Apache-2.0
// The CPU operators on torch's stable ABI: schemas, checks, memory and threads. No arithmetic.
//
// The public functions in pipa_fast/ops check with messages for people. These checks guard memory,
// since torch.ops.pipa_fast_cpu is within anyone's reach.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/packed.h"
#include "cpu/patch_consistency.h"
#include "cpu/pixel_contrast.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kMaxSpan = 80;  // 2 / temperature: beyond it e leaves float's range

pipa::Parallel threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int workers, void (*body)(void*, int), void* context) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker)
                body(context, static_cast<int>(worker));
            });
          }};
}

pipa::Isa choose(const std::string& isa) {
  try {
    return pipa::choose_isa(isa);
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

pipa::Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return pipa::Dtype::float32;
    case ScalarType::BFloat16:
      return pipa::Dtype::bfloat16;
    case ScalarType::Half:
      return pipa::Dtype::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

pipa::Matrix matrix(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 2 && tensor.is_contiguous(), name,
                  " must be a contiguous CPU tensor [rows, D], got ", tensor.dim(), " dimensions");
  STD_TORCH_CHECK(tensor.size(1) >= 1 && tensor.size(1) <= pipa::kMaxDepth, name,
                  " must have 1 to 512 columns, got ", tensor.size(1));
  STD_TORCH_CHECK(tensor.size(0) < INT32_MAX, name, " must have fewer than 2^31 rows");
  return {tensor.const_data_ptr(), tensor.size(0), tensor.size(1), dtype_of(tensor, name)};
}

void check_vector(const Tensor& tensor, ScalarType dtype, int64_t rows, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 1 && tensor.is_contiguous() &&
                      tensor.size(0) == rows && tensor.scalar_type() == dtype,
                  name, " must be a contiguous CPU tensor [", rows, "] of ",
                  dtype == ScalarType::Long ? "int64" : "float32");
}

const int64_t* labels_of(const Tensor& tensor, int64_t rows, const char* name) {
  check_vector(tensor, ScalarType::Long, rows, name);
  return tensor.const_data_ptr<int64_t>();
}

const float* floats_of(const Tensor& tensor, int64_t rows, const char* name) {
  check_vector(tensor, ScalarType::Float, rows, name);
  return tensor.const_data_ptr<float>();
}

const float* weights_of(const std::optional<Tensor>& weights, int64_t rows) {
  return weights ? floats_of(*weights, rows, "weights") : nullptr;
}

void check_temperature(double temperature) {
  STD_TORCH_CHECK(temperature >= 2 / kMaxSpan, "temperature must be at least ", 2 / kMaxSpan,
                  ", got ", temperature);
}

Tensor floats(std::initializer_list<int64_t> size) {
  return torch::stable::empty(size, ScalarType::Float);
}

pipa::PixelContrast pixel_problem(const Tensor& x, const Tensor& labels,
                                  const std::optional<Tensor>& weights, double temperature,
                                  bool all_form, int64_t ignore_index) {
  check_temperature(temperature);
  const pipa::Matrix features = matrix(x, "x");
  return {features,
          labels_of(labels, features.rows, "labels"),
          weights_of(weights, features.rows),
          temperature,
          all_form,
          ignore_index};
}

std::tuple<Tensor, Tensor, Tensor> pixel_contrast_forward(Tensor x, Tensor labels,
                                                          std::optional<Tensor> weights,
                                                          double temperature, bool all_form,
                                                          int64_t ignore_index, std::string isa) {
  const pipa::Isa chosen = choose(isa);
  const pipa::PixelContrast problem =
      pixel_problem(x, labels, weights, temperature, all_form, ignore_index);
  const int64_t n = problem.x.rows;
  Tensor loss = floats({}), z = floats({n}), u = floats({n});
  Tensor scratch = floats({pipa::pixel_contrast_scratch(n, problem.x.columns, chosen, false)});
  pipa::pixel_contrast_forward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                               loss.mutable_data_ptr<float>(), z.mutable_data_ptr<float>(),
                               u.mutable_data_ptr<float>());
  return {loss, z, u};
}

Tensor pixel_contrast_backward(Tensor grad, Tensor x, Tensor labels, std::optional<Tensor> weights,
                               Tensor z, Tensor u, double temperature, bool all_form,
                               int64_t ignore_index, std::string isa) {
  const pipa::Isa chosen = choose(isa);
  const pipa::PixelContrast problem =
      pixel_problem(x, labels, weights, temperature, all_form, ignore_index);
  const int64_t n = problem.x.rows;
  STD_TORCH_CHECK(grad.is_cpu() && grad.numel() == 1 && grad.scalar_type() == ScalarType::Float,
                  "grad must be a float32 CPU scalar");
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor scratch = floats({pipa::pixel_contrast_scratch(n, problem.x.columns, chosen, true)});
  pipa::pixel_contrast_backward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                                *grad.const_data_ptr<float>(), floats_of(z, n, "z"),
                                floats_of(u, n, "u"), grad_x.mutable_data_ptr());
  return grad_x;
}

std::tuple<Tensor, Tensor> patch_consistency_forward(Tensor anchors, Tensor positives, Tensor bank,
                                                     Tensor anchor_labels, Tensor bank_labels,
                                                     std::optional<Tensor> weights,
                                                     double temperature, std::string isa) {
  const pipa::Isa chosen = choose(isa);
  check_temperature(temperature);
  const pipa::Matrix a = matrix(anchors, "anchors"), p = matrix(positives, "positives"),
                     k = matrix(bank, "bank");
  STD_TORCH_CHECK(p.rows == a.rows && p.columns == a.columns,
                  "positives must have the shape of anchors, [", a.rows, ", ", a.columns,
                  "], got [", p.rows, ", ", p.columns, "]");
  STD_TORCH_CHECK(k.columns == a.columns, "bank must have ", a.columns, " columns, got ",
                  k.columns);
  const pipa::PatchConsistency problem{a,
                                       p,
                                       k,
                                       labels_of(anchor_labels, a.rows, "anchor_labels"),
                                       labels_of(bank_labels, k.rows, "bank_labels"),
                                       weights_of(weights, a.rows),
                                       temperature};
  Tensor loss = floats({}), grad = floats({a.rows, a.columns});
  Tensor scratch = floats({pipa::patch_consistency_scratch(a.rows, k.rows, a.columns, chosen)});
  pipa::patch_consistency_forward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                                  loss.mutable_data_ptr<float>(), grad.mutable_data_ptr<float>());
  return {loss, grad};
}

}  // namespace

STABLE_TORCH_LIBRARY(pipa_fast_cpu, m) {
  m.def(
      "pixel_contrast_forward(Tensor x, Tensor labels, Tensor? weights, float temperature, "
      "bool all_form, int ignore_index, str isa) -> (Tensor loss, Tensor z, Tensor u)");
  m.def(
      "pixel_contrast_backward(Tensor grad, Tensor x, Tensor labels, Tensor? weights, Tensor z, "
      "Tensor u, float temperature, bool all_form, int ignore_index, str isa) -> Tensor");
  m.def(
      "patch_consistency_forward(Tensor anchors, Tensor positives, Tensor bank, "
      "Tensor anchor_labels, Tensor bank_labels, Tensor? weights, float temperature, str isa) "
      "-> (Tensor loss, Tensor dx)");
}

STABLE_TORCH_LIBRARY_IMPL(pipa_fast_cpu, CPU, m) {
  m.impl("pixel_contrast_forward", TORCH_BOX(&pixel_contrast_forward));
  m.impl("pixel_contrast_backward", TORCH_BOX(&pixel_contrast_backward));
  m.impl("patch_consistency_forward", TORCH_BOX(&patch_consistency_forward));
}

// An empty module: importing it loads the library, which registers the operators.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
