// SPDX-License-Identifier: Apache-2.0
// Every CPU kernel without torch, for the sanitizers (`make sanitize`) and test_sanitize_driver.py.
//
// Each problem runs with every instruction set of this CPU and with 1 to 4 threads. Its arrays lie
// on the heap, no longer than the kernel asks, and hold NaN until they are written, so that an
// overrun is the sanitizer's to see, and a value that was never written shows here. Results must be
// finite, the same bits at each number of threads, and the same within rounding on each instruction
// set. Whether they are right is for the tests that compare with float64.
//
// It links nothing but libc, so that an emulator can run it for a CPU that is not at hand.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/patch_consistency.h"
#include "cpu/pixel_contrast.h"
#include "cpu/pixel_contrast_ranks.h"
#include "cpu/pseudo_labels.h"
#include "cpu/upsampled_cross_entropy.h"

namespace {

using pipa::Dtype;
using pipa::Isa;
using pipa::Parallel;

constexpr int kMaxThreads = 4;
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::bfloat16, Dtype::float16};
constexpr int64_t kIgnore = 255;

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

void launch(int workers, void (*body)(void* context, int worker), void* context) {
  std::vector<std::thread> others;
  for (int worker = 1; worker < workers; ++worker) others.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& other : others) other.join();
}

// ---- memory ----

template <class T>
std::vector<T> unwritten(int64_t count) {  // all bits set: NaN, or -1
  std::vector<T> values(count);
  if (count > 0) std::memset(values.data(), 0xff, count * sizeof(T));
  return values;
}

// Starts one float past a multiple of 64 bytes, where aligning it costs most.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : base_(static_cast<float*>(::operator new((floats + 1) * sizeof(float), kAlign))) {
    std::memset(base_, 0xff, (floats + 1) * sizeof(float));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(base_, kAlign); }

  float* data() { return base_ + 1; }

 private:
  static constexpr std::align_val_t kAlign{64};
  float* base_;
};

// Collects a call's outputs.
class Results {
 public:
  explicit Results(bool finite) : finite_(finite) {}

  template <class T>
  void add(const std::vector<T>& values, double tolerance = 1e-5) {  // relative, of floats in L2
    if constexpr (std::is_same_v<T, float>) {
      for (float value : values)
        require(!finite_ || std::isfinite(value), "a result is not finite");
      numbers_.push_back(values);
      tolerances_.push_back(tolerance);
    }
    bits_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }

  void add(const pipa::Matrix& matrix) {
    std::vector<float> values(matrix.rows * matrix.columns);
    for (int64_t i = 0; i < matrix.rows; ++i)
      pipa::load_row(matrix, i, values.data() + i * matrix.columns);
    add(values, matrix.dtype == Dtype::float32 ? 1e-5 : 4e-3);
  }

  const std::string& bits() const { return bits_; }

  // Whether each array of floats differs from the other's by rounding only.
  bool near(const Results& other) const {
    bool near = numbers_.size() == other.numbers_.size();
    for (size_t k = 0; near && k < numbers_.size(); ++k) {
      double difference = 0, size = 0;
      for (size_t i = 0; i < numbers_[k].size(); ++i) {
        difference += std::pow(numbers_[k][i] - double{other.numbers_[k][i]}, 2);
        size += std::pow(double{other.numbers_[k][i]}, 2);
      }
      near = std::sqrt(difference) <= tolerances_[k] * std::sqrt(size) + 1e-6;
    }
    return near;
  }

 private:
  bool finite_;
  std::string bits_;
  std::vector<std::vector<float>> numbers_;
  std::vector<double> tolerances_;
};

// ---- inputs ----

std::mt19937_64 generator;

int64_t below(int64_t end) { return static_cast<int64_t>(generator() % end); }
float uniform() { return static_cast<float>(generator() >> 40) * 0x1p-24f; }

enum class Values { usual, hostile };  // hostile: infinite, huge and NaN ones among them

float draw(Values values) {
  constexpr float kHostile[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-45f};
  if (values == Values::hostile && below(16) == 0) return kHostile[below(6)];
  return 2 * uniform() - 1;
}

struct Features {
  std::vector<char> data;
  pipa::Matrix matrix;

  Features(int64_t rows, int64_t columns, Dtype dtype, Values values, bool unit)
      : data(rows * columns * (dtype == Dtype::float32 ? 4 : 2)),
        matrix{data.data(), rows, columns, dtype} {
    std::vector<float> row(columns);
    for (int64_t i = 0; i < rows; ++i) {
      float square = 0;
      for (float& value : row) {
        value = draw(values);
        square += value * value;
      }
      for (float& value : row) value *= unit ? 1 / std::sqrt(square) : 8;
      pipa::store_row(data.data(), dtype, columns, i, row.data());
    }
  }
};

enum class Labels { one, few, alone, far };

std::vector<int64_t> draw_labels(int64_t count, Labels kind, int64_t out) {
  std::vector<int64_t> labels(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t some = below(5);
    labels[i] = kind == Labels::one     ? 3
                : kind == Labels::alone ? 1000 + i
                : kind == Labels::few   ? some
                                        : (some == 0 ? INT64_MIN : INT64_MAX - some);
    if (kind == Labels::few && below(6) == 0) labels[i] = out;
  }
  return labels;
}

std::vector<float> draw_weights(int64_t count) {
  std::vector<float> weights(count);
  for (float& weight : weights) weight = below(4) == 0 ? 0 : uniform();
  return weights;
}

// ---- what runs a problem ----

struct Caller {
  Isa isa;
  std::vector<Results>* first;  // of each problem, from the first instruction set
  size_t problems = 0;

  // Calls run(parallel, &results) with each number of threads.
  template <class Run>
  void call(Values values, const Run& run) {
    Results one(values == Values::usual);
    run(Parallel{1, launch}, &one);
    for (int threads = 2; threads <= kMaxThreads; ++threads) {
      Results more(values == Values::usual);
      run(Parallel{threads, launch}, &more);
      require(more.bits() == one.bits(), "the number of threads changes the result");
    }
    if (problems == first->size()) first->push_back(one);
    require(values == Values::hostile || one.near((*first)[problems]),
            "the instruction set changes the result");
    ++problems;
  }
};

void run_pixel_contrast(const pipa::PixelContrast& problem, Isa isa, const Parallel& parallel,
                        Results* results) {
  const int64_t n = problem.x.rows, d = problem.x.columns;
  std::vector<float> loss = unwritten<float>(1), z = unwritten<float>(n), u = unwritten<float>(n);
  {
    Scratch scratch(pipa::pixel_contrast_scratch(problem.x, isa, false));
    pipa::pixel_contrast_forward(problem, isa, parallel, scratch.data(), loss.data(), z.data(),
                                 u.data());
  }
  std::vector<char> grad = unwritten<char>(n * d * (problem.x.dtype == Dtype::float32 ? 4 : 2));
  Scratch scratch(pipa::pixel_contrast_scratch(problem.x, isa, true));
  pipa::pixel_contrast_backward(problem, isa, parallel, scratch.data(), 0.5f, z.data(), u.data(),
                                grad.data());
  for (const std::vector<float>* output : {&loss, &z, &u}) results->add(*output);
  results->add(pipa::Matrix{grad.data(), n, d, problem.x.dtype});
}

void call_pixel_contrast(Caller* caller, int64_t n, int64_t d, Dtype dtype, Labels kind,
                         Values values) {
  const Features x(n, d, dtype, values, true);
  const std::vector<int64_t> labels = draw_labels(n, kind, kIgnore);
  const std::vector<float> weights = draw_weights(n);
  for (bool all_form : {false, true})
    for (const float* weight : {weights.data(), static_cast<const float*>(nullptr)}) {
      const pipa::PixelContrast problem{x.matrix, labels.data(), weight, 0.1, all_form, kIgnore};
      caller->call(values, [&](const Parallel& parallel, Results* results) {
        run_pixel_contrast(problem, caller->isa, parallel, results);
      });
    }
}

void pixel_contrast(Caller* caller) {
  constexpr int64_t kShapes[][2] = {{0, 8}, {1, 5}, {2, 1}, {97, 24}, {96, 33}, {193, 512}};
  for (const auto& [n, d] : kShapes)
    for (Dtype dtype : kDtypes)
      call_pixel_contrast(caller, n, d, dtype, Labels::few, Values::usual);
  for (Labels kind : {Labels::one, Labels::few, Labels::alone, Labels::far})
    call_pixel_contrast(caller, 701, 17, Dtype::float32, kind, Values::usual);
  for (Dtype dtype : kDtypes)
    call_pixel_contrast(caller, 150, 12, dtype, Labels::few, Values::hostile);
}

// Rows with themselves, or with keys of other ranks.
void run_ranks(const pipa::PixelContrast& rows, const pipa::OtherRanks* others,
               const pipa::SavedRows& saved, Isa isa, const Parallel& parallel, Results* results) {
  const int64_t n = rows.x.rows;
  const int64_t floats =
      pipa::pixel_contrast_ranks_scratch(rows.x, others ? &others->x : nullptr, isa);
  std::vector<float> z = unwritten<float>(n), losses = unwritten<float>(n),
                     slopes = unwritten<float>(n), pulls = unwritten<float>(n * rows.x.columns);
  Scratch first(floats), second(floats), third(floats);
  pipa::pixel_contrast_denominators(rows, others, isa, parallel, first.data(), z.data());
  pipa::pixel_contrast_positives(rows, others, isa, parallel, second.data(), saved.z, losses.data(),
                                 slopes.data());
  pipa::pixel_contrast_pulls(rows, others, isa, parallel, third.data(), saved, pulls.data());
  for (const std::vector<float>* output : {&z, &losses, &slopes, &pulls}) results->add(*output);
}

struct SavedValues {
  std::vector<float> z, u, w;

  explicit SavedValues(int64_t rows) : z(rows), u(rows), w(rows) {
    for (int64_t i = 0; i < rows; ++i) {
      z[i] = 1 + uniform();
      u[i] = uniform();
      w[i] = uniform();
    }
  }

  pipa::SavedRows view() const { return {z.data(), u.data(), w.data()}; }
};

void call_ranks(Caller* caller, int64_t n, int64_t m, int64_t d, Dtype dtype, Labels kind,
                Values values) {
  const Features x(n, d, dtype, values, true), keys(m, d, dtype, values, true);
  const std::vector<int64_t> labels = draw_labels(n, kind, kIgnore),
                             key_labels = draw_labels(m, kind, kIgnore);
  const SavedValues saved(n), key_saved(m);
  const pipa::OtherRanks others{keys.matrix, key_labels.data(), key_saved.view()};
  for (bool all_form : {false, true})
    for (const pipa::OtherRanks* met : {&others, static_cast<const pipa::OtherRanks*>(nullptr)}) {
      const pipa::PixelContrast rows{x.matrix, labels.data(), nullptr, 0.1, all_form, kIgnore};
      caller->call(values, [&](const Parallel& parallel, Results* results) {
        run_ranks(rows, met, saved.view(), caller->isa, parallel, results);
      });
    }
}

void pixel_contrast_ranks(Caller* caller) {
  constexpr int64_t kShapes[][3] = {{0, 9, 8},    {1, 0, 5},      {1, 1, 1},     {97, 64, 24},
                                    {96, 97, 33}, {70, 193, 512}, {300, 500, 17}};
  for (const auto& [n, m, d] : kShapes)
    for (Dtype dtype : kDtypes) call_ranks(caller, n, m, d, dtype, Labels::few, Values::usual);
  for (Labels kind : {Labels::one, Labels::alone, Labels::far})
    call_ranks(caller, 120, 400, 12, Dtype::float32, kind, Values::usual);
  call_ranks(caller, 120, 150, 12, Dtype::float32, Labels::few, Values::hostile);
}

void call_patch_consistency(Caller* caller, int64_t n, int64_t m, int64_t d, Dtype dtype,
                            Labels kind, Values values) {
  const Features anchors(n, d, dtype, values, true), positives(n, d, dtype, values, true),
      bank(m, d, dtype, values, true);
  const std::vector<int64_t> anchor_labels = draw_labels(n, kind, -1),
                             bank_labels = draw_labels(m, kind, -1);
  const std::vector<float> weights = draw_weights(n);
  for (const float* weight : {weights.data(), static_cast<const float*>(nullptr)}) {
    const pipa::PatchConsistency problem{
        anchors.matrix,     positives.matrix, bank.matrix, anchor_labels.data(),
        bank_labels.data(), weight,           0.1};
    caller->call(values, [&](const Parallel& parallel, Results* results) {
      std::vector<float> loss = unwritten<float>(1), grad = unwritten<float>(n * d);
      Scratch scratch(pipa::patch_consistency_scratch(anchors.matrix, bank.matrix, caller->isa));
      pipa::patch_consistency_forward(problem, caller->isa, parallel, scratch.data(), loss.data(),
                                      grad.data());
      results->add(loss);
      results->add(grad);
    });
  }
}

void patch_consistency(Caller* caller) {
  constexpr int64_t kShapes[][3] = {{0, 9, 8},    {1, 0, 5},     {1, 1, 1},      {97, 64, 24},
                                    {96, 65, 33}, {70, 63, 512}, {300, 700, 17}, {500, 129, 8}};
  for (const auto& [n, m, d] : kShapes)
    for (Dtype dtype : kDtypes)
      for (Labels kind : {Labels::few, Labels::alone})
        call_patch_consistency(caller, n, m, d, dtype, kind, Values::usual);
  for (Labels kind : {Labels::one, Labels::far})
    call_patch_consistency(caller, 120, 150, 12, Dtype::float32, kind, Values::usual);
  for (Dtype dtype : kDtypes)
    call_patch_consistency(caller, 120, 150, 12, dtype, Labels::few, Values::hostile);
}

// ---- upsampled maps ----

struct MapShape {
  int64_t images, classes, low_height, low_width, height, width;
};

constexpr MapShape kMapShapes[] = {
    {0, 3, 4, 4, 8, 8},   {1, 1, 1, 1, 1, 1},     {2, 3, 5, 4, 0, 7},    {2, 3, 5, 4, 7, 0},
    {1, 2, 1, 7, 9, 31},  {2, 5, 6, 1, 20, 3},    {3, 19, 5, 3, 33, 29}, {1, 4, 16, 9, 3, 2},
    {1, 3, 70, 4, 90, 9}, {2, 3, 40, 17, 41, 70}, {65, 2, 3, 2, 5, 17}};

struct Maps {
  Features features;
  pipa::Upsampling maps;

  Maps(const MapShape& shape, Dtype dtype, Values values)
      : features(shape.images * shape.classes * shape.low_height, shape.low_width, dtype, values,
                 false),
        maps{features.data.data(), dtype,           shape.images, shape.classes,
             shape.low_height,     shape.low_width, shape.height, shape.width} {}
};

void call_cross_entropy(Caller* caller, const pipa::UpsampledCrossEntropy& problem, Values values,
                        bool with_slope) {
  const pipa::Upsampling& maps = problem.maps;
  caller->call(values, [&](const Parallel& parallel, Results* results) {
    std::vector<float> loss = unwritten<float>(1),
                       slope = unwritten<float>(with_slope ? maps.values() : 0);
    Scratch scratch(
        pipa::upsampled_cross_entropy_scratch(maps, caller->isa, parallel.threads, with_slope));
    int64_t wrong = 0;
    const bool right = pipa::upsampled_cross_entropy_forward(
        problem, caller->isa, parallel, scratch.data(), loss.data(),
        with_slope ? slope.data() : nullptr, &wrong);
    require(right, "a label is called wrong");
    results->add(loss);
    results->add(slope);
  });
}

// Labels that no class has are named, in whichever chunk they are found.
void call_wrong_label(Caller* caller, pipa::UpsampledCrossEntropy problem,
                      std::vector<int64_t> labels, int64_t label) {
  if (labels.empty()) return;
  labels[below(static_cast<int64_t>(labels.size()))] = label;
  problem.labels = labels.data();
  const pipa::Upsampling& maps = problem.maps;
  std::vector<float> loss(1), slope(maps.values());
  const Parallel parallel{kMaxThreads, launch};
  Scratch scratch(pipa::upsampled_cross_entropy_scratch(maps, caller->isa, kMaxThreads, true));
  int64_t wrong = 0;
  const bool right = pipa::upsampled_cross_entropy_forward(
      problem, caller->isa, parallel, scratch.data(), loss.data(), slope.data(), &wrong);
  require(!right && wrong == label, "a wrong label goes by");
}

void upsampled_cross_entropy(Caller* caller) {
  for (const MapShape& shape : kMapShapes)
    for (Dtype dtype : kDtypes)
      for (Values values : {Values::usual, Values::hostile}) {
        const Maps map(shape, dtype, values);
        std::vector<int64_t> labels(map.maps.pixels());
        for (int64_t& label : labels) label = below(5) == 0 ? kIgnore : below(shape.classes);
        const std::vector<float> weights = draw_weights(map.maps.pixels());
        const pipa::UpsampledCrossEntropy weighted{map.maps, labels.data(), weights.data(), kIgnore,
                                                   true},
            plain{map.maps, labels.data(), nullptr, kIgnore, false};
        call_cross_entropy(caller, weighted, values, true);
        call_cross_entropy(caller, plain, values, true);
        call_cross_entropy(caller, plain, values, false);
        for (int64_t label : {shape.classes, int64_t{-1}, INT64_MIN, INT64_MAX})
          call_wrong_label(caller, plain, labels, label);
      }
}

void pseudo_labels(Caller* caller) {
  for (const MapShape& shape : kMapShapes)
    for (Dtype dtype : kDtypes)
      for (Values values : {Values::usual, Values::hostile}) {
        const Maps map(shape, dtype, values);
        caller->call(values, [&](const Parallel& parallel, Results* results) {
          const int64_t pixels = map.maps.pixels();
          std::vector<int64_t> labels = unwritten<int64_t>(pixels);
          std::vector<float> confidence = unwritten<float>(pixels), fraction = unwritten<float>(1);
          Scratch scratch(pipa::pseudo_labels_scratch(map.maps, caller->isa, parallel.threads));
          pipa::pseudo_labels(map.maps, 0.5f, caller->isa, parallel, scratch.data(), labels.data(),
                              confidence.data(), fraction.data());
          for (int64_t label : labels)
            require(0 <= label && label < shape.classes, "a pseudo label is no class");
          results->add(labels);
          results->add(confidence);
          results->add(fraction);
        });
      }
}

struct Op {
  const char* name;
  void (*run)(Caller* caller);
};

constexpr Op kOps[] = {{"pixel_contrast", pixel_contrast},
                       {"pixel_contrast_ranks", pixel_contrast_ranks},
                       {"patch_consistency", patch_consistency},
                       {"upsampled_cross_entropy", upsampled_cross_entropy},
                       {"pseudo_labels", pseudo_labels}};

}  // namespace

int main() {
  for (const Op& op : kOps) {
    std::vector<Results> first;
    for (Isa isa : pipa::kIsas) {
      if (!pipa::isa_available(isa)) continue;
      generator.seed(1);  // the same problems
      Caller caller{isa, &first};
      try {
        op.run(&caller);
      } catch (const std::exception& error) {
        std::printf("%s %s, problem %zu: %s\n", op.name, pipa::isa_name(isa), caller.problems,
                    error.what());
        return 1;
      }
      std::printf("%s %s: %zu problems\n", op.name, pipa::isa_name(isa), caller.problems);
      std::fflush(stdout);
    }
  }
  return 0;
}
