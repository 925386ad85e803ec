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
#include "cpu/pixel_contrast_ranks.h"
#include "cpu/pseudo_labels.h"
#include "cpu/upsampled_cross_entropy.h"

// A string argument. torch's own conversion to std::string (up to 2.13) never frees the copy that
// it returns: some 50 bytes a call.
struct Name {
  std::string text;
};

template <>
struct torch::stable::detail::ToImpl<Name> {
  static Name call(StableIValue value, [[maybe_unused]] uint64_t version,
                   [[maybe_unused]] bool is_internal) {
    StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    Name name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};

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

pipa::Isa choose(const Name& isa) {
  try {
    return pipa::choose_isa(isa.text);
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
  // Twice a row's number is an int within the kernels.
  STD_TORCH_CHECK(tensor.size(0) < 1 << 30, name, " must have fewer than 2^30 rows");
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
                                                          int64_t ignore_index, Name isa) {
  const pipa::Isa chosen = choose(isa);
  const pipa::PixelContrast problem =
      pixel_problem(x, labels, weights, temperature, all_form, ignore_index);
  const int64_t n = problem.x.rows;
  Tensor loss = floats({}), z = floats({n}), u = floats({n});
  Tensor scratch = floats({pipa::pixel_contrast_scratch(problem.x, chosen, false)});
  pipa::pixel_contrast_forward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                               loss.mutable_data_ptr<float>(), z.mutable_data_ptr<float>(),
                               u.mutable_data_ptr<float>());
  return {loss, z, u};
}

Tensor pixel_contrast_backward(Tensor grad, Tensor x, Tensor labels, std::optional<Tensor> weights,
                               Tensor z, Tensor u, double temperature, bool all_form,
                               int64_t ignore_index, Name isa) {
  const pipa::Isa chosen = choose(isa);
  const pipa::PixelContrast problem =
      pixel_problem(x, labels, weights, temperature, all_form, ignore_index);
  const int64_t n = problem.x.rows;
  STD_TORCH_CHECK(grad.is_cpu() && grad.numel() == 1 && grad.scalar_type() == ScalarType::Float,
                  "grad must be a float32 CPU scalar");
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor scratch = floats({pipa::pixel_contrast_scratch(problem.x, chosen, true)});
  pipa::pixel_contrast_backward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                                *grad.const_data_ptr<float>(), floats_of(z, n, "z"),
                                floats_of(u, n, "u"), grad_x.mutable_data_ptr());
  return grad_x;
}

// Rows, and the keys that they meet: those of other ranks, or none for the rows themselves.
struct RankedRows {
  pipa::Isa isa;
  pipa::PixelContrast rows;
  std::optional<pipa::OtherRanks> others;
  Tensor scratch;

  RankedRows(const Tensor& x, const Tensor& labels, const std::optional<Tensor>& keys,
             const std::optional<Tensor>& key_labels, double temperature, bool all_form,
             int64_t ignore_index, const Name& name)
      : isa(choose(name)),
        rows(pixel_problem(x, labels, std::nullopt, temperature, all_form, ignore_index)) {
    STD_TORCH_CHECK(keys.has_value() == key_labels.has_value(), "keys and key_labels go together");
    if (keys) {
      const pipa::Matrix matrix_of_keys = matrix(*keys, "keys");
      STD_TORCH_CHECK(
          matrix_of_keys.columns == rows.x.columns && matrix_of_keys.dtype == rows.x.dtype,
          "keys must have the columns and the dtype of x");
      others = {matrix_of_keys, labels_of(*key_labels, matrix_of_keys.rows, "key_labels"), {}};
    }
    scratch =
        floats({pipa::pixel_contrast_ranks_scratch(rows.x, others ? &others->x : nullptr, isa)});
  }

  const pipa::OtherRanks* keys() const { return others ? &*others : nullptr; }
};

Tensor pixel_contrast_denominators(Tensor x, Tensor labels, std::optional<Tensor> keys,
                                   std::optional<Tensor> key_labels, double temperature,
                                   bool all_form, int64_t ignore_index, Name isa) {
  RankedRows problem(x, labels, keys, key_labels, temperature, all_form, ignore_index, isa);
  Tensor z = floats({problem.rows.x.rows});
  pipa::pixel_contrast_denominators(problem.rows, problem.keys(), problem.isa, threads(),
                                    problem.scratch.mutable_data_ptr<float>(),
                                    z.mutable_data_ptr<float>());
  return z;
}

std::tuple<Tensor, Tensor> pixel_contrast_positives(Tensor x, Tensor labels, Tensor z,
                                                    std::optional<Tensor> keys,
                                                    std::optional<Tensor> key_labels,
                                                    double temperature, bool all_form,
                                                    int64_t ignore_index, Name isa) {
  RankedRows problem(x, labels, keys, key_labels, temperature, all_form, ignore_index, isa);
  const int64_t n = problem.rows.x.rows;
  Tensor losses = floats({n}), slopes = floats({n});
  pipa::pixel_contrast_positives(problem.rows, problem.keys(), problem.isa, threads(),
                                 problem.scratch.mutable_data_ptr<float>(), floats_of(z, n, "z"),
                                 losses.mutable_data_ptr<float>(),
                                 slopes.mutable_data_ptr<float>());
  return {losses, slopes};
}

pipa::SavedRows saved_rows(const Tensor& saved, int64_t rows, const char* name) {
  STD_TORCH_CHECK(saved.is_cpu() && saved.dim() == 2 && saved.is_contiguous() &&
                      saved.size(0) == 3 && saved.size(1) == rows &&
                      saved.scalar_type() == ScalarType::Float,
                  name, " must be a contiguous CPU tensor [3, ", rows, "] of float32");
  const float* values = saved.const_data_ptr<float>();
  return {values, values + rows, values + 2 * rows};
}

Tensor pixel_contrast_pulls(Tensor x, Tensor labels, Tensor saved, std::optional<Tensor> keys,
                            std::optional<Tensor> key_labels, std::optional<Tensor> key_saved,
                            double temperature, bool all_form, int64_t ignore_index, Name isa) {
  RankedRows problem(x, labels, keys, key_labels, temperature, all_form, ignore_index, isa);
  STD_TORCH_CHECK(keys.has_value() == key_saved.has_value(), "keys and key_saved go together");
  if (keys) problem.others->saved = saved_rows(*key_saved, problem.others->x.rows, "key_saved");
  const int64_t n = problem.rows.x.rows;
  Tensor pulls = floats({n, problem.rows.x.columns});
  pipa::pixel_contrast_pulls(problem.rows, problem.keys(), problem.isa, threads(),
                             problem.scratch.mutable_data_ptr<float>(),
                             saved_rows(saved, n, "saved"), pulls.mutable_data_ptr<float>());
  return pulls;
}

std::tuple<Tensor, Tensor> patch_consistency_forward(Tensor anchors, Tensor positives, Tensor bank,
                                                     Tensor anchor_labels, Tensor bank_labels,
                                                     std::optional<Tensor> weights,
                                                     double temperature, Name isa) {
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
  Tensor scratch = floats({pipa::patch_consistency_scratch(a, k, chosen)});
  pipa::patch_consistency_forward(problem, chosen, threads(), scratch.mutable_data_ptr<float>(),
                                  loss.mutable_data_ptr<float>(), grad.mutable_data_ptr<float>());
  return {loss, grad};
}

pipa::Upsampling upsampling(const Tensor& logits, int64_t height, int64_t width) {
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 4 && logits.is_contiguous(),
                  "logits must be a contiguous CPU tensor [B, K, h, w], got ", logits.dim(),
                  " dimensions");
  for (int64_t axis = 1; axis < 4; ++axis)
    STD_TORCH_CHECK(logits.size(axis) > 0, "logits must have K, h, w > 0");
  STD_TORCH_CHECK(height >= 0 && width >= 0, "size must not be negative");
  // Classes, rows and columns are counted in 32 bits within the kernels, and so are tasks.
  const int64_t limit = INT32_MAX / 64;
  for (int64_t length :
       {logits.size(0), logits.size(1), logits.size(2), logits.size(3), height, width})
    STD_TORCH_CHECK(length < limit, "logits and size must be shorter than ", limit,
                    " along each axis, got ", length);
  return {logits.const_data_ptr(),
          dtype_of(logits, "logits"),
          logits.size(0),
          logits.size(1),
          logits.size(2),
          logits.size(3),
          height,
          width};
}

void check_pixels(const Tensor& tensor, ScalarType dtype, const pipa::Upsampling& maps,
                  const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 3 && tensor.is_contiguous() &&
                      tensor.size(0) == maps.images && tensor.size(1) == maps.height &&
                      tensor.size(2) == maps.width && tensor.scalar_type() == dtype,
                  name, " must be a contiguous CPU tensor [", maps.images, ", ", maps.height, ", ",
                  maps.width, "] of ", dtype == ScalarType::Long ? "int64" : "float32");
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy_forward(Tensor logits, Tensor labels,
                                                           std::optional<Tensor> weights,
                                                           int64_t ignore_index, bool all_pixels,
                                                           bool gradient, Name isa) {
  const pipa::Isa chosen = choose(isa);
  STD_TORCH_CHECK(labels.dim() == 3, "labels must be [B, H, W], got ", labels.dim(), " dimensions");
  const pipa::Upsampling maps = upsampling(logits, labels.size(1), labels.size(2));
  check_pixels(labels, ScalarType::Long, maps, "labels");
  if (weights) check_pixels(*weights, ScalarType::Float, maps, "weights");
  const pipa::UpsampledCrossEntropy problem{maps, labels.const_data_ptr<int64_t>(),
                                            weights ? weights->const_data_ptr<float>() : nullptr,
                                            ignore_index, all_pixels};
  const pipa::Parallel parallel = threads();
  Tensor loss = floats({});
  Tensor slope =
      gradient ? floats({maps.images, maps.classes, maps.low_height, maps.low_width}) : floats({0});
  Tensor scratch =
      floats({pipa::upsampled_cross_entropy_scratch(maps, chosen, parallel.threads, gradient)});
  int64_t wrong = 0;
  const bool right = pipa::upsampled_cross_entropy_forward(
      problem, chosen, parallel, scratch.mutable_data_ptr<float>(), loss.mutable_data_ptr<float>(),
      gradient ? slope.mutable_data_ptr<float>() : nullptr, &wrong);
  STD_TORCH_CHECK(right, "labels must be classes 0 to ", maps.classes - 1, " or ignore_index ",
                  ignore_index, ", got ", wrong);
  return {loss, slope};
}

std::tuple<Tensor, Tensor, Tensor> pseudo_labels(Tensor logits, int64_t height, int64_t width,
                                                 double threshold, Name isa) {
  const pipa::Isa chosen = choose(isa);
  const pipa::Upsampling maps = upsampling(logits, height, width);
  const pipa::Parallel parallel = threads();
  Tensor labels = torch::stable::empty({maps.images, height, width}, ScalarType::Long);
  Tensor confidence = floats({maps.images, height, width}), fraction = floats({});
  Tensor scratch = floats({pipa::pseudo_labels_scratch(maps, chosen, parallel.threads)});
  pipa::pseudo_labels(maps, static_cast<float>(threshold), chosen, parallel,
                      scratch.mutable_data_ptr<float>(), labels.mutable_data_ptr<int64_t>(),
                      confidence.mutable_data_ptr<float>(), fraction.mutable_data_ptr<float>());
  return {labels, confidence, fraction};
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
      "pixel_contrast_denominators(Tensor x, Tensor labels, Tensor? keys, Tensor? key_labels, "
      "float temperature, bool all_form, int ignore_index, str isa) -> Tensor");
  m.def(
      "pixel_contrast_positives(Tensor x, Tensor labels, Tensor z, Tensor? keys, "
      "Tensor? key_labels, float temperature, bool all_form, int ignore_index, str isa) "
      "-> (Tensor losses, Tensor slopes)");
  m.def(
      "pixel_contrast_pulls(Tensor x, Tensor labels, Tensor saved, Tensor? keys, "
      "Tensor? key_labels, Tensor? key_saved, float temperature, bool all_form, "
      "int ignore_index, str isa) -> Tensor");
  m.def(
      "patch_consistency_forward(Tensor anchors, Tensor positives, Tensor bank, "
      "Tensor anchor_labels, Tensor bank_labels, Tensor? weights, float temperature, str isa) "
      "-> (Tensor loss, Tensor dx)");
  m.def(
      "upsampled_cross_entropy_forward(Tensor logits, Tensor labels, Tensor? weights, "
      "int ignore_index, bool all_pixels, bool gradient, str isa) -> (Tensor loss, Tensor slope)");
  m.def(
      "pseudo_labels(Tensor logits, int height, int width, float threshold, str isa) "
      "-> (Tensor labels, Tensor confidence, Tensor confident_fraction)");
}

STABLE_TORCH_LIBRARY_IMPL(pipa_fast_cpu, CPU, m) {
  m.impl("pixel_contrast_forward", TORCH_BOX(&pixel_contrast_forward));
  m.impl("pixel_contrast_backward", TORCH_BOX(&pixel_contrast_backward));
  m.impl("pixel_contrast_denominators", TORCH_BOX(&pixel_contrast_denominators));
  m.impl("pixel_contrast_positives", TORCH_BOX(&pixel_contrast_positives));
  m.impl("pixel_contrast_pulls", TORCH_BOX(&pixel_contrast_pulls));
  m.impl("patch_consistency_forward", TORCH_BOX(&patch_consistency_forward));
  m.impl("upsampled_cross_entropy_forward", TORCH_BOX(&upsampled_cross_entropy_forward));
  m.impl("pseudo_labels", TORCH_BOX(&pseudo_labels));
}

// An empty module: importing it loads the library, which registers the operators.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
